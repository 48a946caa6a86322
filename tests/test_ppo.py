"""The laws of training: replay, bootstrapping, the reduction to PPO, determinism, errors."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from fbrl import MemoryPPO
from fbrl.cores.core import Core
from fbrl.finite import NotFiniteError
from fbrl.sequences import Sequences
from tests.tasks import (
    DICT,
    EVERY_CORE,
    VECTOR,
    ConstantTask,
    RandomTask,
    collect,
    make_model,
    parameters,
    remembers,
    sharpen,
    vec,
)

GAMMA = 0.9
every_core = pytest.mark.parametrize("core", EVERY_CORE)


def replay(model, batch):
    actions = batch.actions
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(batch.observations, actions)
    return values.flatten(), log_prob


@every_core
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
@pytest.mark.parametrize("observation_space", [VECTOR, DICT], ids=["box", "dict"])
def test_first_ratio_is_one(core, observation_space, action_space):
    """Replaying a rollout gives back the log-probabilities and values it was collected with."""
    policy = "MultiInputPolicy" if observation_space is DICT else "MlpPolicy"
    env = vec(observation_space=observation_space, action_space=action_space)
    model = sharpen(make_model(core, env, policy), 30)
    collect(model, rollouts=3)  # the third starts in the middle of episodes, at other steps in each environment
    starts = model.rollout_buffer.episode_starts
    assert not starts[0].all()
    assert 0 < starts[1:].mean() < 1
    for batch in model.rollout_buffer.get(8):
        values, log_prob = replay(model, batch)
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
        torch.testing.assert_close(values, batch.old_values, rtol=0, atol=1e-5)


@every_core
@pytest.mark.parametrize("part", ["state", "episode_starts"])
def test_the_replay_depends_on_the_state_and_the_episode_starts(core, part):
    """Without either the ratio is not one, so the test above can fail; only of a core without memory it is."""
    model = sharpen(make_model(core, vec(max_length=6)))
    collect(model, rollouts=3)
    (batch,) = model.rollout_buffer.get()
    sequences = batch.observations
    batch_size = len(sequences.episode_starts)
    wrong = {
        "state": model.policy.initial_state(batch_size),
        "episode_starts": torch.zeros_like(sequences.episode_starts),
    }
    values, log_prob = replay(model, batch._replace(observations=sequences._replace(**{part: wrong[part]})))
    assert ((values - batch.old_values).abs().max() > 1e-3) == remembers(core)
    assert ((log_prob - batch.old_log_prob).abs().max() > 1e-3) == remembers(core)


@pytest.mark.parametrize("passes", [1, 2])
def test_first_ratio_is_one_with_passes(passes):
    """The rollout's memory vectors are those that every pass gives back, while the weights are the same."""
    model = sharpen(make_model("fast", passes=passes), 30)
    collect(model, rollouts=3)
    buffer = model.rollout_buffer
    for batch in buffer.get(8):
        values, log_prob = replay(model, batch)
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
        torch.testing.assert_close(values, batch.old_values, rtol=0, atol=1e-5)
    assert len(buffer.drift) == 1
    assert buffer.drift[0] < 1e-5
    (batch,) = buffer.get()
    batch.observations.iterate.memories *= -1
    assert (replay(model, batch)[0] - batch.old_values).abs().max() > 1e-3, "the passes start from the memories"


def test_as_many_passes_as_steps_train_as_the_scan_does():
    """One update of one minibatch; fewer passes do not."""

    def trained(passes):
        model = make_model("fast", n_epochs=1, batch_size=36, learning_rate=1e-2, passes=passes)
        collect(model, rollouts=2)
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.train()
        return parameters(model)

    scan, enough, few = trained(None), trained(4), trained(2)
    for name, weight in scan.items():
        torch.testing.assert_close(enough[name], weight, rtol=0, atol=1e-4)
    assert max((few[name] - weight).abs().max() for name, weight in scan.items()) > 1e-3


def test_the_drift_of_the_memories_is_logged():
    model = make_model("fast", passes=2, n_epochs=3, learning_rate=1e-2)
    records = Logger(folder=None, output_formats=[])
    model.set_logger(records)
    collect(model)
    model.train()
    drift = [records.name_to_value[f"memory/drift_{epoch}"] for epoch in (1, 2, 3)]
    assert 1e-3 < drift[0] < drift[1] < drift[2]
    assert "memory/drift_4" not in records.name_to_value


def test_passes_that_cannot_be():
    with pytest.raises(ValueError, match=r"^passes must be a whole number of at least 1, or None for the scan, got 0$"):
        make_model(passes=0)
    with pytest.raises(ValueError, match=r"^passes needs a FeedbackTransformer core, got Identity$"):
        make_model((Identity, {}), passes=1)


class Recorder(BaseCallback):
    """Keeps what the environments gave at each step."""

    def __init__(self):
        super().__init__()
        self.dones, self.infos, self.rewards = [], [], []

    def _on_step(self):
        self.dones.append(self.locals["dones"].copy())
        self.infos.append(self.locals["infos"])
        self.rewards.append(self.locals["rewards"].copy())
        return True


@every_core
@pytest.mark.parametrize("kind", ["box", "dict", "normalized"])
def test_a_cut_episode_is_bootstrapped_with_the_memory_after_its_last_step(core, kind):
    """reward + gamma V(last observation, memory after the last step), which leaves the memory as it was."""
    is_dict = kind == "dict"
    policy = "MultiInputPolicy" if is_dict else "MlpPolicy"
    env = vec(observation_space=DICT if is_dict else VECTOR)
    model = make_model(core, VecNormalize(env) if kind == "normalized" else env, policy, gamma=GAMMA)
    collect(model)
    state, recorder = model._last_state, Recorder()
    collect(model, callback=recorder)
    buffer = model.rollout_buffer

    def tensors(obs):
        return {key: torch.as_tensor(value) for key, value in obs.items()} if is_dict else torch.as_tensor(obs)

    n_cut = n_over = 0
    for step in range(model.n_steps):
        obs = {key: value[step] for key, value in buffer.observations.items()} if is_dict else buffer.observations[step]
        with torch.no_grad():
            _, _, _, state = model.policy(tensors(obs), state, torch.as_tensor(buffer.episode_starts[step]).bool())
        for env, info in enumerate(recorder.infos[step]):
            expected = recorder.rewards[step][env]
            if recorder.dones[step][env]:
                n_cut += info["TimeLimit.truncated"]
                n_over += not info["TimeLimit.truncated"]
            if recorder.dones[step][env] and info["TimeLimit.truncated"]:
                last, _ = model.policy.obs_to_tensor(info["terminal_observation"])
                row = tuple(part[env : env + 1] for part in state)
                with torch.no_grad():
                    value = model.policy.predict_values(last, row, torch.tensor([False]))
                    without = model.policy.predict_values(last, row, torch.tensor([True]))
                assert (abs(value - without) > 1e-4) == remembers(core)
                expected += GAMMA * value.item()
            assert buffer.rewards[step, env] == pytest.approx(expected, rel=0, abs=1e-5)
    assert n_cut > 1
    assert n_over > 1
    for part, same in zip(model._last_state, state, strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=1e-5)
    # the rollout's last advantage: one step of temporal difference, with the memory after the last step too
    going_on = ~recorder.dones[-1]
    with torch.no_grad():
        values = model.policy.predict_values(tensors(model._last_obs), state, torch.as_tensor(~going_on))
    expected = buffer.rewards[-1] + GAMMA * going_on * values.flatten().numpy() - buffer.values[-1]
    assert going_on.any()
    np.testing.assert_allclose(buffer.advantages[-1], expected, rtol=0, atol=1e-5)


@every_core
def test_the_value_of_a_task_that_is_only_cut_short(core):
    """One reward a step for ever is worth 1 / (1 - gamma); where the values say so, there is nothing to gain."""
    model = make_model(core, vec(task=ConstantTask), gamma=GAMMA, normalize_values=False)
    with torch.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(1 / (1 - GAMMA))
    collect(model, rollouts=2)
    buffer = model.rollout_buffer
    cut = np.roll(buffer.episode_starts, -1, axis=0)[:-1].astype(bool)
    assert cut.any()
    np.testing.assert_allclose(buffer.rewards[:-1][cut], 1 + GAMMA / (1 - GAMMA), rtol=1e-6)
    np.testing.assert_array_equal(buffer.rewards[:-1][~cut], 1)
    np.testing.assert_allclose(buffer.returns, 1 / (1 - GAMMA), rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages, 0, atol=1e-5)


@every_core
def test_two_runs_with_one_seed_are_equal(core):
    models = [make_model(core, vec(), seed=3).learn(72) for _ in range(2)]
    first, second = map(parameters, models)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    one, two = (model.rollout_buffer for model in models)
    for name in ("observations", "actions", "rewards", "values", "log_probs", "advantages", "episode_starts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


class Identity(Core):
    """Hands its input on and remembers nothing."""

    def __init__(self):
        super().__init__()
        self.d_model = 8

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size, 1),)

    def forward(self, x, state, episode_start):
        return x, state


class NormedLinear(BaseFeaturesExtractor):
    """What stands before the core, for a PPO that has none."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.LayerNorm(8, elementwise_affine=False))

    def forward(self, observations):
        return self.layers(observations)


def identity_and_ppo(action_space, **kwargs):
    """A MemoryPPO whose core is the identity map and the PPO that it should be, with the same weights."""
    kwargs = {"n_steps": 12, "batch_size": 6, "n_epochs": 2, "seed": 0, "device": "cpu", "learning_rate": 1e-2} | kwargs
    net_arch = {"pi": [5], "vf": [4]}
    policy_kwargs = {"core_class": Identity, "net_arch": net_arch}
    ours = {"seq_len": 1, "normalize_values": False}
    model = MemoryPPO("MlpPolicy", vec(action_space=action_space), policy_kwargs=policy_kwargs, **ours, **kwargs)
    policy_kwargs = {"features_extractor_class": NormedLinear, "net_arch": net_arch}
    ppo = PPO("MlpPolicy", vec(action_space=action_space), policy_kwargs=policy_kwargs, **kwargs)
    pairs = [
        (model.policy.core_input[0], ppo.policy.features_extractor.layers[1]),
        *(
            (getattr(model.policy, name), getattr(ppo.policy, name))
            for name in ("mlp_extractor", "action_net", "value_net")
        ),
    ]
    for module, other in pairs:
        other.load_state_dict(module.state_dict())
    return model, ppo, pairs


@pytest.mark.parametrize(
    ("action_space", "use_sde"),
    [(spaces.Discrete(3), False), (spaces.Box(-1, 1, (2,)), False), (spaces.Box(-1, 1, (2,)), True)],
    ids=["discrete", "box", "sde"],
)
def test_reduces_to_ppo(action_space, use_sde):
    """With a core that is the identity map and sequences of one step, MemoryPPO is PPO: rollouts and weights."""
    model, ppo, pairs = identity_and_ppo(action_space, use_sde=use_sde, sde_sample_freq=5)
    for agent in (model, ppo):
        agent.set_random_seed(7)
        agent.learn(2 * 36)
    one, two = model.rollout_buffer, ppo.rollout_buffer
    assert one.episode_starts[1:].any()
    for name in ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=0, atol=1e-5)
    for module, other in pairs:
        for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_evaluating_sequences_without_memory_is_evaluating_steps():
    model, ppo, _ = identity_and_ppo(spaces.Discrete(3))
    obs, starts, actions = torch.randn(4, 6, 3), torch.rand(4, 6) < 0.3, torch.randint(3, (24,))
    sequences = Sequences(obs, starts, model.policy.initial_state(4))
    for ours, theirs in zip(
        model.policy.evaluate_actions(sequences, actions),
        ppo.policy.evaluate_actions(obs.flatten(0, 1), actions),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n_steps", "batch_size", "seq_len"), [(12, 6, 4), (6, 12, 4), (12, 12, 24)])
def test_sizes_must_be_multiples_of_the_sequence(n_steps, batch_size, seq_len):
    name, value = ("n_steps", n_steps) if seq_len == 0 or n_steps % seq_len else ("batch_size", batch_size)
    message = f"^{name} must be a multiple of seq_len, got {name}={value} and seq_len={seq_len}$"
    with pytest.raises(ValueError, match=message):
        make_model(env=vec(2), n_steps=n_steps, batch_size=batch_size, seq_len=seq_len)


class Spaces(VecEnv):
    """A vectorized environment that only has spaces."""

    def __init__(self, observation_space):
        super().__init__(1, observation_space, spaces.Discrete(2))

    def get_attr(self, attr_name, indices=None):
        return [None]

    reset = step_async = step_wait = close = set_attr = env_method = env_is_wrapped = get_attr


@pytest.mark.parametrize("make_env", [lambda space: RandomTask(space), Spaces], ids=["env", "vec_env"])
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([VECTOR, VECTOR]), r"^observation_space must be one of Box, .* got Tuple$"),
        (spaces.Text(5), r"^observation_space must be one of Box, .* got Text$"),
        (
            spaces.Dict({"a": VECTOR, "b": spaces.Text(5)}),
            r"^observation_space\['b'\] must be one of Box, .* got Text$",
        ),
        (spaces.Dict({"a": DICT}), r"^observation_space\['a'\] must be one of Box, .* got Dict$"),
    ],
    ids=["tuple", "text", "text_in_dict", "nested"],
)
def test_unsupported_observation_spaces(make_env, space, message):
    with pytest.raises(ValueError, match=message):
        MemoryPPO("MultiInputPolicy", make_env(space))


def test_a_dict_needs_the_policy_for_dicts():
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        make_model(env=vec(observation_space=DICT))


class BrokenTask(ConstantTask):
    """From its fourth step on, gives something that is not finite."""

    def __init__(self, broken, value=np.nan):
        super().__init__(length=4 if broken == "terminal_observation" else 100)
        self.broken, self.value = broken, value

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.t >= 4 and self.broken == "reward":
            reward = self.value
        if self.t >= 4 and self.broken.endswith("observation"):
            obs[1] = self.value
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("broken", ["reward", "observation", "terminal_observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("n_steps", [4, 12])  # where it is the last step of a rollout, and where it is not
def test_what_is_not_finite_is_refused(broken, value, n_steps):
    model = make_model(env=vec(task=BrokenTask, broken=broken, value=value), n_steps=n_steps)
    before = parameters(model)
    with pytest.raises(NotFiniteError, match=f"^{broken} of environment 0 at step 4 must be finite, got {value}$"):
        model.learn(36)
    for name, parameter in parameters(model).items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("broken", ["reward", "observation", "terminal_observation"])
def test_what_overflows_is_refused(broken):
    """A number whose square float32 does not hold, before anything is made of it."""
    model = make_model(env=vec(task=BrokenTask, broken=broken, value=1e20))
    message = rf"^{broken} of environment 0 at step 4 must be at most 1e\+15 in size, or .*, got 1.*e\+20$"
    with pytest.raises(NotFiniteError, match=message):
        model.learn(36)


def test_which_environment_it_was_is_said():
    def make(index):
        return lambda: BrokenTask("observation" if index == 2 else "nothing")

    with pytest.raises(NotFiniteError, match=r"^observation of environment 2 at step 4 must be finite, got nan$"):
        make_model(env=DummyVecEnv([make(index) for index in range(4)])).learn(48)


def test_predict_refuses_what_overflows():
    """A double beyond float32 too."""
    for value in (1e20, 1e300):
        with pytest.raises(NotFiniteError, match=r"^observation must be at most 1e\+15 in size"):
            make_model().predict(np.array([0, value, 0]))


def test_a_value_loss_that_is_not_finite_ends_the_update():
    """Its gradient is finite, but not the norm that it is clipped to: the step would be one of zeros."""
    model = make_model(batch_size=36, normalize_values=False)
    collect(model)
    before = parameters(model)
    model.policy.value_net.bias.data.fill_(1e19)
    with pytest.raises(NotFiniteError, match=r"^the value loss is not finite: values are as large as 1e\+19$"):
        model.train()
    model.policy.value_net.bias.data.zero_()
    model.rollout_buffer.returns.flat[7] = 1e19
    with pytest.raises(NotFiniteError, match=r"^the value loss is not finite: returns are as large as 1e\+19$"):
        model.train()
    for name, parameter in parameters(model).items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("normalize", [True, False])
def test_a_loss_that_is_not_finite_does_not_reach_the_weights(normalize):
    model = make_model(env=vec(task=ConstantTask, reward=1e38), normalize_values=normalize)
    before = parameters(model)
    with pytest.raises(FloatingPointError, match="not finite"):
        model.learn(36)
    for name, parameter in parameters(model).items():
        assert torch.equal(parameter, before[name]), name


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights():
    model = make_model(batch_size=36)
    collect(model)
    model.rollout_buffer.advantages[5, 1] = np.nan
    before = parameters(model)
    with pytest.raises(FloatingPointError, match="not finite"):
        model.train()
    for name, parameter in parameters(model).items():
        assert torch.equal(parameter, before[name]), name


def test_another_rollout_buffer_is_refused():
    with pytest.raises(ValueError, match=r"^rollout_buffer_class must be a SequenceRolloutBuffer, got RolloutBuffer$"):
        make_model(rollout_buffer_class=RolloutBuffer)


@pytest.mark.parametrize(
    "make_env", [lambda space: RandomTask(action_space=space), lambda space: vec(1, action_space=space)]
)
def test_actions_without_bounds_are_refused(make_env):
    space = spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 2], np.float32))
    with pytest.raises(ValueError, match=r"^action_space must have finite bounds, got -inf to 2\.0$"):
        MemoryPPO("MlpPolicy", make_env(space))


def test_one_sample_cannot_be_normalized():
    with pytest.raises(ValueError, match=r"^batch_size must be at least 2 where advantages are normalized, got 1$"):
        make_model(batch_size=1, seq_len=1)
    assert make_model(batch_size=1, seq_len=1, normalize_advantage=False).batch_size == 1


def test_the_length_of_sequences_is_given_by_name():
    """The sixth argument is n_epochs, as PPO's is, and nothing of ours has a place in the order."""
    assert MemoryPPO("MlpPolicy", vec(), 3e-4, 128, 128, 4, device="cpu").n_epochs == 4
    with pytest.raises(TypeError, match="positional argument"):
        MemoryPPO("MlpPolicy", vec(), *[None] * 25, 32)
