"""What is said of a step is what the policy makes of it."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from fbrl.insight.seen import attends, look
from tests.tasks import CORES, RandomTask, make_model, sharpen, vec

BATCH = 3


def state_after(model, steps, batch=BATCH):
    rng, state = np.random.default_rng(0), None
    for _ in range(steps):
        _, state = model.predict(rng.normal(size=(batch, 3)).astype(np.float32), state)
    return rng.normal(size=(batch, 3)).astype(np.float32), state


@pytest.mark.parametrize("core", CORES)
def test_it_is_the_policy_s_own(core):
    model = sharpen(make_model(core))
    observation, state = state_after(model, 4)
    seen = look(model.policy, observation, state)
    obs, _ = model.policy.obs_to_tensor(observation)
    tensors = tuple(torch.tensor(part) for part in state)
    starts = torch.zeros(BATCH, dtype=torch.bool)
    with torch.no_grad():
        probs = model.policy.get_distribution(obs, tensors, starts)[0].distribution.probs.numpy()
        without = model.policy.get_distribution(obs, model.policy.initial_state(BATCH), starts)[0].distribution.probs
        values = model.policy.predict_values(obs, tensors, starts).flatten().numpy()
    np.testing.assert_allclose(seen.chances[0], probs, rtol=1e-6)
    np.testing.assert_allclose(seen.value, values, rtol=1e-6)
    expected = (probs * np.log(probs / without.numpy())).sum(axis=1)
    np.testing.assert_allclose(seen.effect, expected, atol=1e-5)
    assert (seen.effect.max() > 1e-4) == (core != "memoryless")
    reads_slots = core in ("plain", "fast", "transformer_xl", "gtrxl")
    assert (seen.attention is not None) == attends(model.policy.core) == reads_slots
    assert (seen.written is not None) == (core in ("plain", "fast"))


@pytest.mark.parametrize("core", ["plain", "fast", "transformer_xl", "gtrxl"])
@pytest.mark.parametrize("steps", [0, 2, 7])
def test_attention_is_over_what_was_written(core, steps):
    """NaN where nothing was: the window of five fills from the right."""
    model = make_model(core)
    seen = look(model.policy, *state_after(model, steps))
    readable = min(steps, 5)
    assert seen.attention.shape == (BATCH, 2, 2, 1 + 5)
    assert np.isnan(seen.attention[..., 1 : 6 - readable]).all()
    assert np.isfinite(seen.attention[..., 6 - readable :]).all()
    np.testing.assert_allclose(np.nansum(seen.attention, axis=-1), 1, atol=1e-6)


def test_the_shares_of_a_memory_vector_follow_the_mix():
    model = make_model("plain")
    observation, state = state_after(model, 3)
    even = look(model.policy, observation, state).written
    model.policy.core.mix.data[1] = 9.0
    seen = look(model.policy, observation, state)
    np.testing.assert_allclose(even.sum(axis=1), 1)
    assert even[:, 1].max() < 0.9 < seen.written[:, 1].min()


def test_an_empty_memory_has_no_effect():
    model = sharpen(make_model("plain"))
    observation, _ = state_after(model, 0)
    np.testing.assert_array_equal(look(model.policy, observation, None).effect, np.zeros(BATCH))


@pytest.mark.parametrize(
    ("space", "sizes"),
    [(spaces.Discrete(5), [5]), (spaces.MultiDiscrete([2, 3]), [2, 3]), (spaces.MultiBinary(3), [2, 2, 2])],
)
def test_every_choice_has_its_chances(space, sizes):
    model = sharpen(make_model("plain", vec(1, action_space=space)))
    seen = look(model.policy, *state_after(model, 2))
    assert [chances.shape for chances in seen.chances] == [(BATCH, size) for size in sizes]
    for chances in seen.chances:
        np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert seen.mean is None
    assert seen.effect.shape == (BATCH,)


def test_continuous_actions_have_a_mean_and_a_deviation():
    model = make_model("plain", vec(1, action_space=spaces.Box(-1, 1, (2,))))
    seen = look(model.policy, *state_after(model, 2))
    assert (seen.chances, seen.mean.shape) == ((), (BATCH, 2))
    np.testing.assert_allclose(seen.std, np.ones((BATCH, 2)))
    assert seen.effect.shape == (BATCH,)


def test_an_agent_without_memory():
    seen = look(PPO("MlpPolicy", RandomTask(), n_steps=8, batch_size=8).policy, np.zeros(3, np.float32), None)
    assert (seen.attention, seen.effect, seen.written) == (None, None, None)
    assert seen.chances[0].shape == (1, 3)


def test_a_critic_with_a_core_of_its_own():
    """The actor's memory is shown."""
    model = make_model("plain", policy_kwargs={"share_features_extractor": False})
    seen = look(model.policy, *state_after(model, 3))
    assert np.isfinite(seen.attention).sum() == BATCH * 2 * 2 * (1 + 3)
