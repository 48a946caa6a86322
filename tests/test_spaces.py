"""Every space that Stable-Baselines3's PPO takes can be acted in and learnt from."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.tasks import CORES, VECTOR, RandomTask, make_model, parameters, vec

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OBSERVATIONS = {
    "box": VECTOR,
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": IMAGE,
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"vector": VECTOR, "bits": spaces.MultiBinary(2), "pair": spaces.MultiDiscrete([2, 3])}),
    "dict_image": spaces.Dict({"picture": IMAGE, "vector": VECTOR, "symbol": spaces.Discrete(4)}),
    "minigrid": spaces.Dict(
        {
            "image": spaces.Box(
                np.zeros((3, 3, 3), np.uint8),
                np.broadcast_to(np.array([10, 5, 2], np.uint8), (3, 3, 3)),
                dtype=np.uint8,
            ),
            "direction": spaces.Discrete(4),
            "mission": spaces.Box(0, 9, (4,), np.int64),
        }
    ),
}
ACTIONS = {
    "box": spaces.Box(-0.5, 0.25, (2,)),
    "box_matrix": spaces.Box(-1, 1, (2, 2)),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


def policy_for(space):
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape) == 3 else "MlpPolicy"


def assert_learns(model, action_space, without_gradient=()):
    """Two rollouts and updates change every parameter and leave it finite; then the agent acts."""
    before = parameters(model)
    model.learn(2 * model.n_steps * model.n_envs)
    for name, value in parameters(model).items():
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) == (name in without_gradient), name
    obs = model.get_env().reset()
    actions, state = model.predict(obs)
    assert len(actions) == model.n_envs
    assert all(len(array) == model.n_envs for array in state)
    assert all(action_space.contains(action) for action in actions)


@pytest.mark.parametrize("core", CORES)
def test_cores(core):
    space = OBSERVATIONS["dict"]
    env = vec(2, observation_space=space, action_space=ACTIONS["box"])
    assert_learns(make_model(core, env, "MultiInputPolicy"), env.action_space)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations(name):
    space = OBSERVATIONS[name]
    env = vec(2, observation_space=space)
    assert_learns(make_model("fast", env, policy_for(space), n_epochs=1), env.action_space)


@pytest.mark.parametrize("name", ACTIONS)
def test_actions(name):
    space = ACTIONS[name]
    assert_learns(make_model("fast", vec(action_space=space), n_epochs=1), space)


@pytest.mark.parametrize(("squash_output", "sde_sample_freq"), [(False, -1), (True, 3)])
def test_state_dependent_exploration(squash_output, sde_sample_freq):
    space = ACTIONS["box"]
    model = make_model(
        "fast",
        vec(action_space=space),
        n_epochs=1,
        use_sde=True,
        sde_sample_freq=sde_sample_freq,
        policy_kwargs={"squash_output": squash_output},
    )
    assert_learns(model, space)


@pytest.mark.parametrize("name", ACTIONS)
def test_one_environment(name):
    """An environment that is not vectorized, a batch of one sequence and a network after the core."""
    task = RandomTask(action_space=ACTIONS[name])
    model = make_model("fast", task, n_steps=8, seq_len=8, batch_size=8, n_epochs=1, policy_kwargs={"net_arch": [7]})
    assert_learns(model, task.action_space)


def test_sequences_of_one_step():
    """The minibatch left over at the end is one sample. Without a second step nothing learns to write."""
    with pytest.warns(UserWarning, match="truncated mini-batch of size 1"):
        model = make_model("plain", vec(1), n_steps=9, seq_len=1, batch_size=4)
    assert_learns(model, model.action_space, without_gradient=["core.mix"])
