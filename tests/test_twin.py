"""``share_features_extractor=False``: an encoder and a core for the critic of its own."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

from experiment.callbacks import MemoryFigures
from fbrl import MemoryPPO
from fbrl.insight.seen import look
from fbrl.policy import MemoryPolicy
from tests.tasks import CORES, DICT, EVERY_CORE, VECTOR, collect, make_model, parameters, remembers, sharpen, vec

pytestmark = pytest.mark.parametrize("core", EVERY_CORE)
APART = {"share_features_extractor": False}


def make(core, env=None, policy="MlpPolicy", **kwargs):
    return sharpen(make_model(core, env, policy, policy_kwargs=APART, **kwargs), 30)


def assert_replays(model):
    for batch in model.rollout_buffer.get(8):
        with torch.no_grad():
            values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
        torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)
        torch.testing.assert_close(values.flatten(), batch.old_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("observation_space", [VECTOR, DICT], ids=["box", "dict"])
def test_first_ratio_is_one(core, observation_space):
    policy = "MultiInputPolicy" if observation_space is DICT else "MlpPolicy"
    model = make(core, vec(observation_space=observation_space), policy)
    collect(model, rollouts=3)
    assert_replays(model)


@pytest.mark.parametrize("passes", [1, 2])
def test_first_ratio_is_one_with_passes(core, passes):
    if core not in ("plain", "fast"):
        with pytest.raises(ValueError, match="passes needs a FeedbackTransformer core"):
            make(core, passes=passes)
        return
    model = make(core, passes=passes)
    collect(model, rollouts=3)
    assert_replays(model)
    assert model.rollout_buffer.drift[0] < 1e-5
    model.learn(36)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_nothing_is_shared(core, part):
    """The actor's loss has no gradient at what values come from, nor the other way round."""
    model = make(core)
    collect(model, rollouts=2)
    (batch,) = model.rollout_buffer.get()
    values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
    (log_prob if part == "actor" else values).sum().backward()
    others = {"actor": ("vf_", "core.vf", "value"), "critic": ("pi_", "features", "core_input", "core.pi", "action")}
    reached = {name for name, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(reached) > 3
    assert not [name for name in reached if name.startswith(others[part])]
    assert {name.split(".")[1] for name in reached if name.startswith("core.")} == {"pi" if part == "actor" else "vf"}


def test_each_has_a_state_of_its_own(core):
    """The actions depend on the first part of the state, the values on the second."""
    model = make(core)
    collect(model, rollouts=2)
    policy, state = model.policy, model._last_state
    assert len(state) == 2 * len(CORES[core][0](**CORES[core][1]).initial_state(1))
    empty, half = policy.initial_state(3), len(state) // 2
    obs, starts = torch.randn(3, 3), torch.zeros(3, dtype=torch.bool)

    def both(state):
        with torch.no_grad():
            distribution, _ = policy.get_distribution(obs, state, starts)
            return distribution.distribution.probs, policy.predict_values(obs, state, starts)

    probs, values = both(state)
    without_actors, same_values = both((*empty[:half], *state[half:]))
    same_probs, without_critics = both((*state[:half], *empty[half:]))
    assert torch.equal(same_probs, probs)
    assert torch.equal(same_values, values)
    assert torch.equal(without_actors, probs) != remembers(core)
    assert torch.equal(without_critics, values) != remembers(core)


def test_predict_goes_on_from_any_equal_state(core):
    model = make(core, vec(action_space=spaces.Box(-1, 1, (2,))))
    rng, state, copied = np.random.default_rng(0), None, None
    other = make(core, vec(action_space=spaces.Box(-1, 1, (2,))))
    other.set_parameters(model.get_parameters())
    for step in range(7):
        obs, starts = rng.uniform(-1, 1, (2, 3)).astype(np.float32), np.array([step == 4, False])
        actions, state = model.predict(obs, state, starts, deterministic=True)
        others, copied = other.predict(obs, copied, starts, deterministic=True)
        copied = tuple(np.array(part) for part in copied)  # equal, but not the same: nothing kept is used
        np.testing.assert_allclose(others, actions, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="state must be arrays of shapes"):
        model.predict(obs, state[: len(state) // 2])


def test_saved_and_loaded(core, tmp_path):
    model = make(core).learn(36)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", device="cpu", env=vec(2))
    for name, value in parameters(loaded).items():
        assert torch.equal(value, parameters(model)[name]), name
    loaded.learn(24)
    model.policy.save(tmp_path / "policy.pth")
    policy = MemoryPolicy.load(tmp_path / "policy.pth", device="cpu")
    obs = np.ones((2, 3), np.float32)
    for part, same in zip(model.policy.predict(obs)[1], policy.predict(obs)[1], strict=True):
        np.testing.assert_array_equal(part, same)


def test_figures_and_attention_are_the_actors(core):
    model = make(core)
    records = Logger(folder=None, output_formats=[])
    model.set_logger(records)
    callback = MemoryFigures()
    callback.init_callback(model)
    collect(model, callback=callback)
    assert ("memory/mix_0" in records.name_to_value) == (core in ("plain", "fast"))
    if core in ("plain", "fast"):
        _, state = model.policy.predict(np.zeros((1, 3), np.float32))
        assert look(model.policy, np.zeros(3, np.float32), state).attention.shape == (1, 2, 2, 6)
