"""PreviousStep: the last action and reward in the observation."""

from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest

from envs import make
from envs.grid_walk import next_cells
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


def count(mark, question, before):
    number = max(before, 0)
    return number if question else min(number + mark, 9)


def follow(seen, before):
    if before < 0:
        return seen[:5].argmax()
    swapped = list(combinations(range(5), 2))[seen[5:15].argmax()]
    return swapped[1 - swapped.index(before)] if before in swapped else before


@pytest.mark.parametrize(
    ("env_id", "policy"),
    [
        ("fbrl/Counting-v0", lambda seen, before: count(*seen, before)),
        ("fbrl/HiddenAutomaton-v0", follow),
        ("fbrl/GridWalk-v0", lambda seen, before: 12 if before < 0 else next_cells(5)[before, seen[:4].argmax()]),
    ],
)
def test_the_previous_action_can_stand_in_for_a_memory(env_id, policy):
    """Actions are free where nothing is asked: a policy without memory writes its state into them."""
    env = make(env_id, previous_action=True)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            action = policy(observation["observation"], observation["previous_action"] - 1)
            observation, _, terminated, truncated, info = env.step(int(action))
            done = terminated or truncated
        assert info["is_success"]
