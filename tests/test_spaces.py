"""Every space that Stable-Baselines3's PPO takes can be acted in and learnt from."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from fbrl import MemoryPPO
from fbrl.spaces import check_spaces, contiguous
from tests.tasks import DICT, EVERY_CORE, VECTOR, RandomTask, collect, make_model, parameters, vec

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OBSERVATIONS = {
    "box": VECTOR,
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": IMAGE,
    "whole_numbers": spaces.Box(-5, 7, (3,), np.int64),
    "half_precision": spaces.Box(-1, 1, (3,), np.float16),
    "without_bounds": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "number": spaces.Box(-1, 1, ()),
    "discrete": spaces.Discrete(5),
    "discrete_from": spaces.Discrete(5, start=-2),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_discrete_from": spaces.MultiDiscrete([3, 4], start=[-1, 7]),
    "multi_binary": spaces.MultiBinary(3),
    "multi_binary_matrix": spaces.MultiBinary([2, 3]),
    "dict_from": spaces.Dict(
        {
            "number": spaces.Box(-1, 1, ()),
            "symbol": spaces.Discrete(4, start=9),
            "pair": spaces.MultiDiscrete([2, 3], start=[5, -6]),
        }
    ),
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
    "box_of_doubles": spaces.Box(-0.5, 0.25, (2,), np.float64),
    "box_of_whole_numbers": spaces.Box(-3, 4, (2,), np.int32),
    "discrete": spaces.Discrete(3),
    "discrete_from": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_discrete_from": spaces.MultiDiscrete([2, 3], start=[-4, 8]),
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
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("core", EVERY_CORE)
def test_cores(core):
    space = OBSERVATIONS["dict"]
    env = vec(2, observation_space=space, action_space=ACTIONS["box"])
    assert_learns(make_model(core, env, "MultiInputPolicy"), env.action_space)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations(name):
    space = OBSERVATIONS[name]
    env = vec(2, observation_space=space)
    assert_learns(make_model("fast", env, policy_for(space), n_epochs=1), env.action_space)


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # of RandomTask, which asks about a number
def test_actions_that_are_one_number():
    space = spaces.Box(-1, 1, ())
    assert_learns(make_model("fast", vec(action_space=space), n_epochs=1), space)


@pytest.mark.parametrize("name", ACTIONS)
def test_actions(name):
    space = ACTIONS[name]
    assert_learns(make_model("fast", vec(action_space=space), n_epochs=1), space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1, dtype=np.int8),
        spaces.MultiDiscrete([3, 2], start=[1, 4], dtype=np.uint8),
        spaces.MultiDiscrete([3, 2], dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2,), np.float16),
    ],
    ids=str,
)
def test_actions_are_of_the_type_of_their_space(space):
    """``contains`` is false for wider numbers than the space's, and tasks that check their actions end on them."""

    class Checked(RandomTask):
        def step(self, action):
            assert action in self.action_space
            assert np.asarray(action).dtype == self.action_space.dtype
            return super().step(action)

    model = make_model("fast", Checked(action_space=space), n_steps=8, seq_len=8, batch_size=8, n_epochs=1)
    assert_learns(model, space)


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


@pytest.mark.parametrize(
    ("from_zero", "shifted"),
    [
        (spaces.Discrete(5), spaces.Discrete(5, start=-2)),
        (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([3, 4], start=[-1, 7])),
        (spaces.Dict({"a": spaces.Discrete(5)}), spaces.Dict({"a": spaces.Discrete(5, start=3)})),
    ],
    ids=["discrete", "multi_discrete", "dict"],
)
def test_where_a_space_starts_makes_no_difference(from_zero, shifted):
    """What an agent sees and does is counted from there."""

    def shift(value):
        if isinstance(value, dict):
            return {key: part + shifted[key].start for key, part in value.items()}
        return value + shifted.start

    policy = policy_for(from_zero)
    actions = spaces.Discrete(3), spaces.Discrete(3, start=4)
    models = [
        make_model("fast", vec(observation_space=space, action_space=action), policy)
        for space, action in zip((from_zero, shifted), actions, strict=True)
    ]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    state = other = None
    for _ in range(3):
        obs = from_zero.sample()
        action, state = models[0].predict(obs, state, deterministic=True)
        moved, other = models[1].predict(shift(obs), other, deterministic=True)
        assert moved == action + 4
        np.testing.assert_array_equal(state[0], other[0])


REFUSED = {
    "a sequence": (spaces.Sequence(VECTOR), r"must be one of Box, .* got Sequence$"),
    "a graph": (spaces.Graph(VECTOR, None), r"must be one of Box, .* got Graph$"),
    "one of two": (spaces.OneOf([VECTOR, VECTOR]), r"must be one of Box, .* got OneOf$"),
    "a tuple in a dict": (spaces.Dict({"a": spaces.Tuple([VECTOR])}), r"^observation_space\['a'\] .* got Tuple$"),
    "nothing": (spaces.Dict({}), r"^observation_space must hold something, got an empty Dict$"),
    "no numbers": (spaces.Box(-1, 1, (0, 3)), r"must hold at least one number, got the shape \(0, 3\)$"),
    "a matrix": (
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        r"must have one dimension, as a MultiDiscrete, got .*\(2, 2\)$",
    ),
    "a key with a dot": (spaces.Dict({"a.b": VECTOR}), r"^observation_space\['a.b'\] must have a key that torch"),
    "a key of torch's": (spaces.Dict({"type": VECTOR}), r"^observation_space\['type'\] must have a key that torch"),
}
REFUSED_ACTIONS = {
    "a tuple": (spaces.Tuple([VECTOR]), r"^action_space must be one of Box, .* got Tuple$"),
    "a dict": (DICT, r"^action_space must be one of Box, .* got Dict$"),
    "a matrix": (
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        r"^action_space must have one dimension, as a MultiDiscrete; ",
    ),
    "bits": (spaces.MultiBinary([2, 3]), r"^action_space must have one dimension, as a MultiBinary; flatten it, got "),
    "no numbers": (spaces.Box(-1, 1, (0,)), r"^action_space must hold at least one number, got the shape \(0,\)$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_observations_that_are_refused(name):
    """By name, when the model is made."""
    space, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        MemoryPPO("MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", RandomTask(space))


@pytest.mark.filterwarnings("ignore:.*Getting the length of a multi-dimensional")  # of RandomTask's asking for one
@pytest.mark.parametrize("name", REFUSED_ACTIONS)
def test_actions_that_are_refused(name):
    space, message = REFUSED_ACTIONS[name]
    with pytest.raises(ValueError, match=message):
        MemoryPPO("MlpPolicy", RandomTask(action_space=space))


@pytest.mark.parametrize("space", [spaces.Discrete(2, start=1), spaces.MultiDiscrete([2, 3], start=[0, 1])])
def test_an_agent_without_memory_counts_from_zero(space):
    """Stable-Baselines3's PPO sends actions from 0 whatever the space says."""
    with pytest.raises(ValueError, match=r"^action_space must start at 0 for an agent without memory, got "):
        check_spaces(vec(action_space=space), from_zero=True)
    with pytest.raises(ValueError, match=r"^observation_space must start at 0 for an agent without memory, got "):
        check_spaces(vec(observation_space=space), from_zero=True)


def test_minigrid_as_it_comes_is_refused_with_advice():
    with pytest.raises(
        ValueError, match=r"\['mission'\] .*; fbrl.symbolic.SymbolicObservation makes .* got MissionSpace$"
    ):
        MemoryPPO("MultiInputPolicy", "minigrid:MiniGrid-MemoryS7-v0")


@pytest.mark.parametrize(
    ("space", "outside", "message"),
    [
        (spaces.Discrete(5, start=-2), 3, r"^observation{} must be in -2 to 2, got 3$"),
        (spaces.Discrete(5), -1, r"^observation{} must be in 0 to 4, got -1$"),
        (spaces.MultiDiscrete([3, 4]), np.array([0, 4]), r"^observation{} must be in its space, got 4$"),
        (OBSERVATIONS["minigrid"], "image", r"^observation\['image'\]{} must be in its space, got 3$"),
        (OBSERVATIONS["minigrid"], "mission", r"^observation\['mission'\]{} must be in 0 to 9, got 10$"),
    ],
    ids=["discrete_from", "discrete", "multi_discrete", "image", "mission"],
)
def test_symbols_outside_of_their_space_are_named(space, outside, message):
    """When acted on and when learnt from; torch would read beyond a table, or another row of it."""

    class Wrong(RandomTask):
        def step(self, action):
            obs, *rest = super().step(action)
            return self._wrong(obs), *rest

        def _wrong(self, obs):
            if not isinstance(outside, str):
                return outside
            obs[outside] = obs[outside].copy()
            obs[outside][(0, 0, 2) if outside == "image" else 1] = 3 if outside == "image" else 10
            return obs

    task = Wrong(space)
    model = make_model("fast", DummyVecEnv([lambda: task]), policy_for(space))
    with pytest.raises(ValueError, match=message.format(" of environment 0 at step 1")):
        collect(model)
    with pytest.raises(ValueError, match=message.format("")):
        model.predict(task._wrong(space.sample()))


class OtherVecEnv(DummyVecEnv):
    """Gives what other vectorized environments give."""

    def __init__(self, kind):
        super().__init__([lambda: RandomTask(max_length=4) for _ in range(3)])
        self.kind = kind

    def step_wait(self):
        obs, rewards, dones, infos = super().step_wait()
        if self.kind == "whole":
            rewards = np.rint(rewards).astype(np.int64)
        elif self.kind == "truth":
            rewards = rewards > 0
        elif self.kind == "lists":
            rewards, dones = rewards.tolist(), dones.tolist()
        elif self.kind == "columns":
            rewards = rewards[:, None]
        elif self.kind == "doubles":
            rewards, obs = rewards.astype(np.float64), obs.astype(np.float64)
        elif self.kind == "dones":
            dones = dones.astype(np.int32)
        elif self.kind == "float dones":
            dones = dones.astype(np.float32)
        elif self.kind == "strides":
            obs = np.ascontiguousarray(obs[:, ::-1])[:, ::-1]
        else:
            assert self.kind == "infos"
            for info in infos:
                info.pop("terminal_observation", None)
            infos = tuple(infos)
        return obs, rewards, dones, infos


KINDS = ["whole", "truth", "lists", "columns", "doubles", "dones", "float dones", "strides", "infos"]


@pytest.mark.parametrize("kind", KINDS)
def test_vectorized_environments_of_others(kind):
    """Rewards and ends of any type of number, observations of any strides, last observations left out."""
    model = make_model("fast", OtherVecEnv(kind))
    before = parameters(model)
    model.learn(3 * 24)
    assert any(info for info in model.rollout_buffer.episode_starts.ravel())
    assert all(value.isfinite().all() for value in parameters(model).values())
    assert any(not torch.equal(value, before[name]) for name, value in parameters(model).items())


def test_rewards_that_are_no_numbers_are_named():
    class Wrong(OtherVecEnv):
        def step_wait(self):
            obs, _, dones, infos = super().step_wait()
            return obs, ["a", "b", "c"], dones, infos

    with pytest.raises(ValueError, match=r"^rewards must be 3 numbers, got \['a', 'b', 'c'\]$"):
        collect(make_model("fast", Wrong("dones")))


def test_strides_are_made_contiguous_only_where_they_are_not():
    array = np.arange(6).reshape(2, 3)
    assert contiguous(array) is array
    assert contiguous({"a": array[:, ::-1]})["a"].tolist() == [[2, 1, 0], [5, 4, 3]]
