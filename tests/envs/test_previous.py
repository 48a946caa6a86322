"""PreviousStep: the last action and reward in the observation."""

import gymnasium as gym
import numpy as np
import pytest

from envs import make
from envs.previous import PreviousStep


def test_values_over_an_episode_and_after_the_next_reset():
    env = make("fbrl/TMaze-v0", corridor=1, previous_action=True, previous_reward=True)
    assert env.observation_space["previous_action"] == gym.spaces.Discrete(4)

    def seen(observation):
        assert env.observation_space.contains(observation)
        return observation["observation"], observation["previous_action"], observation["previous_reward"].tolist()

    cue, *previous = seen(env.reset(seed=0)[0])
    assert previous == [0, [0.0]]
    assert seen(env.step(2)[0]) == (cue, 3, [0.0])
    assert seen(env.step(0)[0]) == (3, 1, [0.0])
    assert seen(env.step(1 + cue)[0]) == (3, 2 + cue, [1.0])
    assert seen(env.reset()[0])[1:] == (0, [0.0])


@pytest.mark.parametrize(("action", "reward"), [(True, False), (False, True)])
def test_one_without_the_other(action, reward):
    env = make("MiniGrid-MemoryS11-v0", previous_action=action, previous_reward=reward)
    added = {"previous_action"} if action else {"previous_reward"}
    assert set(env.observation_space) == set(env.reset(seed=0)[0]) == {"image", "direction"} | added


def test_rewards_are_exact_to_float32_and_old_observations_stay():
    env = make("CartPole-v1", previous_reward=True)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(0)
    assert first["previous_reward"].tolist() == [0.0]
    assert second["previous_reward"].tolist() == [1.0]
    assert second["previous_reward"].dtype == np.float32
    np.testing.assert_array_equal(first["observation"], gym.make("CartPole-v1").reset(seed=0)[0])


def test_only_discrete_actions_can_be_shown():
    with pytest.raises(ValueError, match="Discrete actions that start at 0"):
        make("Pendulum-v1", previous_action=True)
    assert "previous_reward" in make("Pendulum-v1", previous_reward=True).observation_space.spaces
    shifted = gym.make("CartPole-v1")
    shifted.action_space = gym.spaces.Discrete(2, start=1)
    with pytest.raises(ValueError, match="start at 0"):
        PreviousStep(shifted)
