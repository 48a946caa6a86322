"""What an odd observation does later is what a replay by hand gives."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fbrl.insight import contamination
from fbrl.insight.contamination import contaminate
from fbrl.insight.recording import record
from tests.tasks import CORES, DICT, RandomTask, make_model, sharpen, vec


def recorded(core, n_episodes=2, max_steps=9, **spaces_):
    env = RandomTask(max_length=30, **spaces_)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = sharpen(make_model(core, vec(1, **spaces_), policy))
    env.reset(seed=3)
    episodes = []
    while len(episodes) < n_episodes:
        episode = record(model, env, max_steps=max_steps)
        if len(episode.steps) > 4:
            episodes.append(episode)
    return model, episodes, env.observation_space


@pytest.mark.parametrize("core", CORES)
def test_it_lasts_as_long_as_the_memory(core):
    after = contaminate(*_arguments(recorded(core)), seed=0)
    assert after.shape[1] == 3
    if core == "memoryless":
        np.testing.assert_allclose(after[:, :2], 0, atol=1e-6)
    else:
        assert after[0, 0] > 1e-4


def test_it_is_what_a_replay_gives(monkeypatch):
    """One episode, the odd observation in its first step."""
    monkeypatch.setattr(contamination, "AT_MOST", 2)  # places: the first and the last, which is left out
    model, episodes, space = recorded("plain", n_episodes=1)
    after = contaminate(model.policy, episodes, space, seed=5)
    space.seed(5)
    observations = [step.observation["observation"] for step in episodes[0].steps]
    clean, odd = (_probabilities(model, rows) for rows in (observations, [space.sample(), *observations[1:]]))
    expected = (clean * np.log(clean / odd)).sum(axis=1)[1:]
    np.testing.assert_allclose(after[:, 0], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(after[:, 2], 1)


def _probabilities(model, observations):
    state, found = model.policy.initial_state(1), []
    for t, observation in enumerate(observations):
        obs, _ = model.policy.obs_to_tensor(observation)
        with torch.no_grad():
            distribution, state = model.policy.get_distribution(obs, state, torch.tensor([t == 0]))
        found.append(distribution.distribution.probs[0].numpy())
    return np.array(found)


def _arguments(made):
    model, episodes, space = made
    return model.policy, episodes, space


@pytest.mark.parametrize(
    "kinds",
    [
        {"observation_space": DICT},
        {"action_space": spaces.Box(-1, 1, (2,))},
        {"action_space": spaces.MultiDiscrete([2, 3])},
        {"action_space": spaces.MultiBinary(3)},
    ],
)
def test_every_space(kinds):
    after = contaminate(*_arguments(recorded("fast", **kinds)), seed=0)
    assert np.isfinite(after).all()
    assert after[0, 0] > 0


def test_an_episode_of_one_step_tells_nothing():
    model, episodes, space = recorded("plain", n_episodes=1)
    episodes = [contamination.Episode(episodes[0].steps[:1], None, False, None, 0.0, 9)]
    assert contaminate(model.policy, episodes, space, seed=0).shape == (0, 3)
