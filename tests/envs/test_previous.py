"""PreviousStep: the last action and reward in the observation."""

from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import make
from envs.grid_walk import next_cells
from envs.previous import PreviousStep
from tests.tasks import make_model


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


class Takes(gym.Env):
    """Any actions."""

    def __init__(self, action_space):
        self.observation_space, self.action_space = gym.spaces.Discrete(2), action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return 1, 0.5, False, False, {}


BOX = gym.spaces.Box(np.array([[-1, 2, -5]], np.float64), np.array([[3, 4, -1]], np.float64), dtype=np.float64)


@pytest.mark.parametrize(
    ("space", "action", "none", "shown"),
    [
        (gym.spaces.Discrete(3), 2, 0, 3),
        (gym.spaces.Discrete(3, start=-1), -1, 0, 1),
        (gym.spaces.Discrete(3, start=5), np.int64(7), 0, 3),
        (gym.spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 0], [2, 1]),
        (gym.spaces.MultiDiscrete([2, 3], start=[4, -1]), np.array([5, -1]), [0, 0], [2, 1]),
        (gym.spaces.MultiDiscrete([[2, 3], [4, 5]]), np.array([[1, 0], [3, 4]]), [0] * 4, [2, 1, 4, 5]),
        (gym.spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [0, 0, 0], [2, 1, 2]),
        (gym.spaces.MultiBinary([1, 2]), np.array([[0, 1]], np.int8), [0, 0], [1, 2]),
        (BOX, np.array([[-0.5, 3, -2]]), [0, 0, 0, 0], [-0.5, 3, -2, 1]),
        (gym.spaces.Box(-1, 1, (), np.float32), np.array(0.25, np.float32), [0, 0], [0.25, 1]),
    ],
)
def test_actions_of_any_space(space, action, none, shown):
    """No action is told from every action."""
    env = PreviousStep(Takes(space))
    for seen, expected in ((env.reset()[0], none), (env.step(action)[0], shown), (env.reset()[0], none)):
        assert env.observation_space.contains(seen)
        assert np.asarray(seen["previous_action"]).tolist() == expected


@pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([2, 3]), BOX, gym.spaces.MultiBinary(3)])
def test_agents_learn_from_actions_of_any_space(space):
    model = make_model("fast", DummyVecEnv([lambda: PreviousStep(Takes(space))]), "MultiInputPolicy", batch_size=12)
    assert model.learn(12).num_timesteps == 12


def test_actions_that_cannot_be_shown():
    with pytest.raises(ValueError, match=r"^the previous action needs Discrete, .* or Box actions, not Tuple$"):
        PreviousStep(Takes(gym.spaces.Tuple([gym.spaces.Discrete(2)])))
    assert "previous_reward" in make("Pendulum-v1", previous_reward=True).observation_space.spaces


def test_a_key_of_the_tasks_own_is_not_replaced():
    with pytest.raises(ValueError, match="has a 'previous_action' of its own"):
        PreviousStep(PreviousStep(Takes(gym.spaces.Discrete(2))))


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
