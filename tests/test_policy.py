import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

from fbrl.policy import MemoryPolicy
from fbrl.sequences import Sequences
from tests.tasks import CORES, DICT, EVERY_CORE, VECTOR, EchoTask, make_model, remembers, sharpen, vec

B, T = 3, 9  # T is longer than the window of 5
ACTION = spaces.Box(-10, 10, (2,))
pytestmark = pytest.mark.parametrize("core", EVERY_CORE)


def make_policy(core, observation_space=VECTOR, action_space=ACTION):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = vec(observation_space=observation_space, action_space=action_space)
    return sharpen(make_model(core, env, policy)).policy


def make_sequences(policy, starts=((0, 4), (1, 6))):
    """B sequences of T steps that go on from a memory; ``starts`` holds (row, step)."""
    episode_starts = torch.zeros(B, T, dtype=torch.bool)
    for row, step in starts:
        episode_starts[row, step] = True
    with torch.no_grad():
        _, state = policy._features(
            Sequences(torch.randn(B, 3, 3), torch.zeros(B, 3, dtype=torch.bool), policy.initial_state(B))
        )
    return Sequences(torch.randn(B, T, 3), episode_starts, state)


def test_nothing_leaks_across_an_episode_start(core):
    """Whatever comes before an episode start, what follows it is the same bit for bit."""
    policy = make_policy(core)
    start = 4
    sequences = make_sequences(policy, [(row, start) for row in range(B)])
    other = make_sequences(policy)
    observations = torch.cat([other.observations[:, :start], sequences.observations[:, start:]], dim=1)
    changed = Sequences(observations, sequences.episode_starts, other.state)
    actions = torch.randn(B * T, 2)
    for first, second in zip(
        policy.evaluate_actions(sequences, actions), policy.evaluate_actions(changed, actions), strict=True
    ):
        first, second = first.reshape(B, T), second.reshape(B, T)
        assert torch.equal(first[:, start:], second[:, start:])
    values, log_prob, _ = policy.evaluate_actions(sequences, actions)
    other_values, other_log_prob, _ = policy.evaluate_actions(changed, actions)
    assert not torch.isclose(values, other_values).view(B, T)[:, :start].any()
    assert not torch.isclose(log_prob, other_log_prob).view(B, T)[:, :start].any()


def test_rows_do_not_mix(core):
    policy = make_policy(core)
    sequences = make_sequences(policy)
    observations = sequences.observations.clone()
    observations[0] += 1
    actions = torch.randn(B * T, 2)
    values, log_prob, _ = policy.evaluate_actions(sequences, actions)
    other_values, other_log_prob, _ = policy.evaluate_actions(sequences._replace(observations=observations), actions)
    torch.testing.assert_close(other_values[T:], values[T:], rtol=0, atol=1e-6)
    torch.testing.assert_close(other_log_prob[T:], log_prob[T:], rtol=0, atol=1e-5)
    assert not torch.isclose(other_values[:T], values[:T]).any()


def test_a_late_loss_reaches_an_early_observation(core):
    """Further back than the window, through what was written in between; but not through an episode start."""
    policy = make_policy(core)
    sequences = make_sequences(policy, [(1, 4)])
    observations = sequences.observations.requires_grad_()
    values, log_prob, _ = policy.evaluate_actions(sequences, torch.randn(B * T, 2))
    (values.view(B, T)[:, -1] + log_prob.view(B, T)[:, -1]).sum().backward()
    reached = observations.grad.abs().sum(dim=-1) > 0
    first, second = (0, 4) if remembers(core) else (T - 1, T - 1)
    assert reached[0].tolist() == [step >= first for step in range(T)]
    assert reached[1].tolist() == [step >= second for step in range(T)]


def test_acting_step_by_step_is_evaluating_sequences(core):
    policy = make_policy(core)
    sequences = make_sequences(policy)
    with torch.no_grad():
        features, last = policy._features(sequences)
        means = policy._distribution(features).mode().view(B, T, 2).numpy()
    state = tuple(part.numpy() for part in sequences.state)
    for step in range(T):
        obs, starts = sequences.observations[:, step].numpy(), sequences.episode_starts[:, step].numpy()
        actions, state = policy.predict(obs, state, starts, deterministic=True)
        np.testing.assert_allclose(actions, means[:, step], rtol=0, atol=1e-5)
    for array, tensor in zip(state, last, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_predict_starts_from_nothing_for_any_batch_size(core, batch_size):
    policy = make_policy(core)
    obs = np.random.default_rng(0).uniform(-1, 1, (batch_size, 3)).astype(np.float32)
    actions, state = policy.predict(obs, deterministic=True)
    assert actions.shape == (batch_size, 2)
    assert type(state) is tuple
    for array in state:
        assert isinstance(array, np.ndarray)
        assert len(array) == batch_size
    for row in range(batch_size):
        alone, _ = policy.predict(obs[row], deterministic=True)
        np.testing.assert_allclose(alone, actions[row], rtol=0, atol=1e-5)


def played(policy, observations, handed_on):
    """Actions and states step by step; ``handed_on`` is what becomes of a state between two calls."""
    steps, state = [], None
    for obs in observations:
        actions, state = policy.predict(obs, None if state is None else handed_on(state), deterministic=True)
        steps.append((actions, state))
    return steps


COPIES = {
    "pickled": lambda state: pickle.loads(pickle.dumps(state)),
    "sliced": lambda state: tuple(part[:] for part in state),
    "listed": lambda state: [part.copy() for part in state],
}


@pytest.mark.parametrize("copy", COPIES)
def test_going_on_from_a_copy_of_the_state_is_going_on_from_it(core, copy):
    policy = make_policy(core)
    observations = np.random.default_rng(0).uniform(-1, 1, (40, B, 3)).astype(np.float32)
    straight, copied = (played(policy, observations, handed_on) for handed_on in (lambda state: state, COPIES[copy]))
    for (actions, state), (other_actions, other_state) in zip(straight, copied, strict=True):
        np.testing.assert_allclose(actions, other_actions, rtol=0, atol=1e-5)
        for part, other in zip(state, other_state, strict=True):
            np.testing.assert_allclose(part, other, rtol=0, atol=1e-5)


def test_a_state_can_be_gone_on_from_twice(core):
    """And stays as it was."""
    policy = make_policy(core)
    rng = np.random.default_rng(0)
    _, state = policy.predict(rng.uniform(-1, 1, (B, 3)).astype(np.float32))
    before = tuple(part.copy() for part in state)
    obs, other = rng.uniform(-1, 1, (2, B, 3)).astype(np.float32)
    first, _ = policy.predict(obs, state, deterministic=True)
    between, _ = policy.predict(other, state, deterministic=True)
    again, _ = policy.predict(obs, state, deterministic=True)
    np.testing.assert_allclose(again, first, rtol=0, atol=1e-6)
    assert not np.allclose(between, first, rtol=0, atol=1e-3)
    for part, same in zip(state, before, strict=True):
        np.testing.assert_array_equal(part, same)
    with pytest.raises(ValueError, match="read-only"):
        state[0][0] = 1


def test_a_state_is_gone_on_from_with_the_weights_of_now(core):
    policy = make_policy(core)
    obs = np.random.default_rng(0).uniform(-1, 1, (B, 3)).astype(np.float32)
    _, state = policy.predict(obs)
    old, _ = policy.predict(obs, state, deterministic=True)
    _, state = policy.predict(obs)
    copy = tuple(part.copy() for part in state)
    policy.load_state_dict({name: weight + 0.1 for name, weight in policy.state_dict().items()})
    new, _ = policy.predict(obs, state, deterministic=True)
    expected, _ = policy.predict(obs, copy, deterministic=True)
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-5)
    assert not np.allclose(new, old, rtol=0, atol=1e-3)


def test_weights_put_in_the_place_of_others(core):
    """As Stable-Baselines3's own ``load_from_vector`` does."""
    policy = make_policy(core)
    obs = np.random.default_rng(0).uniform(-1, 1, (B, 3)).astype(np.float32)
    _, state = policy.predict(obs)
    copy = tuple(part.copy() for part in state)
    policy.load_from_vector(policy.parameters_to_vector() + 0.1)
    new, _ = policy.predict(obs, state, deterministic=True)
    expected, _ = policy.predict(obs, copy, deterministic=True)
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-5)


def test_a_step_that_failed_is_no_step(core, monkeypatch):
    policy = make_policy(core)
    obs = np.random.default_rng(0).uniform(-1, 1, (B, 3)).astype(np.float32)
    _, state = policy.predict(obs)
    copy = tuple(part.copy() for part in state)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "_get_action_dist_from_latent", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.predict(2 * obs, state)
    again, _ = policy.predict(obs, state, deterministic=True)
    expected, _ = policy.predict(obs, copy, deterministic=True)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)


def test_inference_mode_can_be_left_between_two_steps(core):
    policy = make_policy(core)
    observations = np.random.default_rng(0).uniform(-1, 1, (3, B, 3)).astype(np.float32)
    expected = played(policy, observations, lambda state: state)[-1][0]
    with torch.inference_mode():
        _, state = policy.predict(observations[0])
    _, state = policy.predict(observations[1], state)
    actions, _ = policy.predict(observations[2], state, deterministic=True)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


def test_predict_takes_one_observation(core):
    policy = make_policy(core)
    obs = VECTOR.sample()
    action, state = policy.predict(obs, deterministic=True)
    assert action.shape == (2,)
    assert all(len(array) == 1 for array in state)
    batch, batch_state = policy.predict(obs[None], deterministic=True)
    np.testing.assert_array_equal(batch[0], action)
    other = VECTOR.sample()
    second, _ = policy.predict(other, state, deterministic=True)
    again, _ = policy.predict(other[None], batch_state, np.array([False]), deterministic=True)
    np.testing.assert_array_equal(again[0], second)
    first, _ = policy.predict(other, deterministic=True)
    assert np.allclose(second, first) != remembers(core)


def test_predict_takes_one_dict(core):
    policy = make_policy(core, DICT, spaces.Discrete(3))
    obs = DICT.sample()
    action, state = policy.predict(obs)
    assert action.shape == ()
    action, state = policy.predict(obs, state, np.array([False]))
    assert policy.action_space.contains(action)
    actions, _ = policy.predict({key: np.stack([value] * 4) for key, value in obs.items()})
    assert actions.shape == (4,)


def test_an_episode_start_forgets(core):
    policy = make_policy(core)
    earlier, obs = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3)).astype(np.float32)
    _, state = policy.predict(earlier)
    first, _ = policy.predict(obs, deterministic=True)
    second, _ = policy.predict(obs, state, np.array([True, False]), deterministic=True)
    assert np.array_equal(second[0], first[0])
    assert np.allclose(second[1], first[1]) != remembers(core)


def test_predict_leaves_its_state_alone_and_states_pickle(core):
    policy = make_policy(core)
    obs = np.zeros((2, 3), np.float32)
    _, state = policy.predict(obs)
    kept = pickle.loads(pickle.dumps(state))
    first, _ = policy.predict(obs, state, deterministic=True)
    again, _ = policy.predict(obs, kept, deterministic=True)
    np.testing.assert_array_equal(first, again)
    for array, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_predict_refuses_a_state_of_another_batch_size(core):
    policy = make_policy(core)
    _, state = policy.predict(np.zeros((2, 3), np.float32))
    for wrong in (state, state[:1], ()):
        with pytest.raises(ValueError, match=r"^state must be arrays of shapes \[.*\] for 3 observations, got \[.*\]$"):
            policy.predict(np.zeros((3, 3), np.float32), wrong)


def test_predict_refuses_episode_starts_of_another_batch_size(core):
    policy = make_policy(core)
    with pytest.raises(ValueError, match=r"^episode_start must have one entry an observation, 3, got 2$"):
        policy.predict(np.zeros((3, 3), np.float32), episode_start=np.array([True, False]))


def test_predict_refuses_what_is_not_finite(core):
    policy = make_policy(core)
    with pytest.raises(ValueError, match=r"^observation must be finite, got nan$"):
        policy.predict(np.array([0, np.nan, 0], np.float32))
    policy = make_policy(core, DICT, spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"^observation\['vector'\] must be finite, got inf$"):
        policy.predict({"vector": np.array([0, np.inf, 0], np.float32), "symbol": np.array(1)})


def test_predict_refuses_what_reset_returns(core):
    with pytest.raises(ValueError, match=r"^observation must be an array or a dict, got a tuple"):
        make_policy(core).predict((np.zeros(3, np.float32), {}))


def test_acting_stays_within_the_bounds(core):
    policy = make_policy(core, action_space=spaces.Box(-0.01, 0.02, (2,)))
    actions, _ = policy.predict(np.zeros((50, 3), np.float32))
    assert actions.min() == np.float32(-0.01)
    assert actions.max() == np.float32(0.02)


def test_evaluation_of_stable_baselines3(core):
    """``evaluate_policy`` gets the returns of acting by hand with a carried state."""
    model = sharpen(make_model(core, vec(action_space=ACTION)))
    env = vec(2, EchoTask, action_space=ACTION)
    env.seed(5)
    returns, _ = evaluate_policy(model, env, 8, return_episode_rewards=True)

    env.seed(5)
    obs, state, starts, expected = env.reset(), None, np.ones(2, bool), [[], []]
    while min(map(len, expected)) < 4:
        actions, state = model.predict(obs, state, starts, deterministic=True)
        obs, _, starts, infos = env.step(actions)
        for row in np.flatnonzero(starts):
            expected[row].append(infos[row]["episode"]["r"])
    np.testing.assert_allclose(sorted(returns), sorted(expected[0][:4] + expected[1][:4]), rtol=0, atol=1e-4)


def test_evaluation_during_training(core):
    model = make_model(core, vec(action_space=ACTION))
    callback = EvalCallback(vec(2, action_space=ACTION), eval_freq=5, n_eval_episodes=3, verbose=0)
    model.learn(36, callback=callback)
    assert np.isfinite(callback.last_mean_reward)


@pytest.mark.parametrize("net_arch", [None, {"pi": [5], "vf": [6, 7]}])
def test_save_and_load_the_policy_alone(core, net_arch, tmp_path):
    """Sizes that are not the defaults come back."""
    core_class, core_kwargs = CORES[core]
    arguments = {"core_class": core_class, "core_kwargs": core_kwargs, "net_arch": net_arch}
    policy = MemoryPolicy(VECTOR, ACTION, lambda _: 1e-3, **arguments)
    policy.save(tmp_path / "policy.pth")
    loaded = MemoryPolicy.load(tmp_path / "policy.pth", device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (2, 3)).astype(np.float32)
    state = other = None
    for _ in range(3):
        actions, state = policy.predict(obs, state, deterministic=True)
        others, other = loaded.predict(obs, other, deterministic=True)
        np.testing.assert_array_equal(others, actions)
    for array, same in zip(state, other, strict=True):
        np.testing.assert_array_equal(array, same)


def test_heads_have_a_hidden_layer_by_default(core):
    policy = make_policy(core)
    for head in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        assert [type(layer) for layer in head] == [torch.nn.Linear, torch.nn.ReLU]
        assert head[0].weight.shape == (16, 8)
    assert policy.action_net.weight.shape == (2, 16)
    assert len(make_model(core, policy_kwargs={"net_arch": []}).policy.mlp_extractor.policy_net) == 0
    chosen = make_model(core, policy_kwargs={"net_arch": [5]}).policy
    assert [type(layer) for layer in chosen.mlp_extractor.policy_net] == [torch.nn.Linear, torch.nn.Tanh]


def test_orthogonal_initialisation_leaves_the_core_alone(core):
    """Rows of the encoder-to-head layers are orthogonal, the core is as its class makes it."""
    core_class, core_kwargs = CORES[core]
    arguments = {"core_class": core_class, "core_kwargs": core_kwargs, "net_arch": [4]}
    torch.manual_seed(0)
    with_it = MemoryPolicy(VECTOR, ACTION, lambda _: 1e-3, **arguments, ortho_init=True)
    torch.manual_seed(0)
    without = MemoryPolicy(VECTOR, ACTION, lambda _: 1e-3, **arguments, ortho_init=False)
    for (name, one), two in zip(with_it.core.named_parameters(), without.core.parameters(), strict=True):
        assert torch.equal(one, two), name
    weight = with_it.mlp_extractor.policy_net[0].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(4))


def test_the_core_reads_inputs_of_unit_scale(core):
    policy = make_policy(core)
    x = policy.core_input(policy.extract_features(100 * torch.randn(50, 3)))
    torch.testing.assert_close(x.mean(dim=-1), torch.zeros(50), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.square().mean(dim=-1), torch.ones(50), rtol=0, atol=1e-3)


def test_everything_stays_on_the_device_of_its_input(core):
    """On the meta device, which refuses tensors of any other and has no values to look at.

    Of the episode starts, which GRU and LSTM have to look at, those have a copy on the CPU.
    """
    policy = make_policy(core, action_space=spaces.Discrete(3))
    sequences = make_sequences(policy)
    policy = policy.to("meta")
    on_meta = Sequences(
        sequences.observations.to("meta"),
        sequences.episode_starts.to("cpu" if core in ("gru", "lstm") else "meta"),
        tuple(part.to("meta") for part in sequences.state),
    )
    features, state = policy._features(on_meta)
    assert features.shape == (B * T, policy.core.d_model)
    values = policy.predict_values(
        on_meta.observations[:, 0], policy.initial_state(B), torch.zeros(B, dtype=bool, device="meta")
    )
    assert values.shape == (B, 1)
    for part, before in zip(state, sequences.state, strict=True):
        assert part.device.type == "meta"
        assert part.shape == before.shape
        assert part.dtype == before.dtype
    assert features.device.type == values.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_learns_and_predicts_on_cuda(core):
    model = make_model(core, device="cuda").learn(72)
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cuda"}
    obs = np.zeros((2, 3), np.float32)
    _, state = model.predict(obs)
    _, state = model.predict(obs, state, np.array([True, False]))
    assert all(isinstance(array, np.ndarray) for array in state)
