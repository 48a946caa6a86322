"""Listing every start state, and starting in one."""

import math

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import make
from envs.start_states import FixedStart, StartStatesError, start_states

COUNTS = {"S7": 16, "S9": 24, "S11": 32, "S13": 40, "S13Random": 196, "S17Random": 396}
OUR_COUNTS = {"S11-View3": 32, "S13-View3": 40, "S21-View3": 72, "S33-View3": 120, "S21": 72}


def state(env):
    base = env.unwrapped
    return base.grid.encode().tobytes(), tuple(int(i) for i in base.agent_pos), int(base.agent_dir)


def listed_states(env_id):
    env = make(env_id)
    found = set()
    for start in start_states(env_id):
        fixed = FixedStart(env, start.draws)
        fixed.reset()
        found.add(state(fixed))
    return found


def sampled_states(env_id, n):
    env = make(env_id, seed=0)
    found = set()
    for _ in range(n):
        env.reset()
        found.add(state(env))
    return found


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_counts_of_the_memory_tasks(name, count):
    starts = start_states(f"MiniGrid-Memory{name}-v0")
    assert len({start.draws for start in starts}) == len(starts) == count
    assert math.fsum(start.probability for start in starts) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("name", "count"), OUR_COUNTS.items())
def test_counts_of_our_sizes(name, count):
    """The places of the agent, size - 3, times two cues and two sides, all equally likely."""
    starts = start_states(f"fbrl/Memory{name}-v0")
    assert len({start.draws for start in starts}) == count
    assert {start.probability for start in starts} == {1 / count}


def test_probabilities_are_those_of_the_draws():
    """S13Random draws the hallway's end (4..10), the agent's place (1..end), the cue and the side."""
    starts = start_states("MiniGrid-MemoryS13Random-v0")
    for start in starts:
        end, place, cue, side = start.draws
        assert 1 <= place <= end <= 10
        assert {cue, side} <= {0, 1}
        assert start.probability == pytest.approx(1 / (7 * end * 2 * 2))
    assert len({start.probability for start in starts}) == 7


def test_listed_states_are_those_that_seeds_give():
    env_id = "MiniGrid-MemoryS7-v0"
    assert listed_states(env_id) == sampled_states(env_id, 400)
    assert len(listed_states(env_id)) == 16


def test_seeds_give_only_listed_states():
    env_id = "MiniGrid-MemoryS17Random-v0"
    listed, sampled = listed_states(env_id), sampled_states(env_id, 300)
    assert len(listed) == 396
    assert len(sampled) > 100
    assert sampled <= listed


def test_every_reset_gives_the_same_state_whatever_the_seed():
    env = FixedStart(make("MiniGrid-MemoryS11-v0", seed=5, previous_action=True), (3, 1, 0))
    first, _ = env.reset()
    expected = state(env)
    for seed in (None, 0, 1):
        env.step(2)
        observation, _ = env.reset(seed=seed)
        assert state(env) == expected
        np.testing.assert_equal(observation, first)
    assert expected[1] == (3, 5)
    env.draws = (4, 1, 0)
    env.reset()
    assert state(env)[1] == (4, 5)


def test_a_vectorised_environment_can_visit_every_start():
    starts = start_states("MiniGrid-MemoryS7-v0")
    vec_env = DummyVecEnv(
        [lambda start=start: FixedStart(make("MiniGrid-MemoryS7-v0"), start.draws) for start in starts]
    )
    vec_env.seed(0)
    vec_env.reset()
    assert {state(env) for env in vec_env.envs} == listed_states("MiniGrid-MemoryS7-v0")
    vec_env.set_attr("draws", starts[5].draws)
    vec_env.reset()
    assert len({state(env) for env in vec_env.envs}) == 1


def test_a_waiting_seed_does_not_disturb_the_list():
    assert start_states("fbrl/MemoryS7-View3-v0", seed=1) == start_states("MiniGrid-MemoryS7-v0")


def test_a_task_that_starts_always_the_same_has_one_start():
    assert [(start.draws, start.probability) for start in start_states("MiniGrid-Empty-5x5-v0")] == [((), 1.0)]


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToObj-v0", "MiniGrid-Empty-Random-5x5-v0"])
def test_too_many(env_id):
    with pytest.raises(StartStatesError, match="has more than 1000 start states"):
        start_states(env_id)


def test_the_limit_is_exact():
    assert len(start_states("MiniGrid-MemoryS7-v0", limit=16)) == 16
    with pytest.raises(StartStatesError, match="MemoryS7-v0 has more than 15 start states"):
        start_states("MiniGrid-MemoryS7-v0", limit=15)


@pytest.mark.parametrize(("env_id", "what"), [("CartPole-v1", "uniform"), ("MiniGrid-LavaCrossingS9N1-v0", "shuffle")])
def test_other_draws_cannot_be_listed(env_id, what):
    with pytest.raises(StartStatesError, match=f"by {what}; only single integers"):
        start_states(env_id)


def test_endless_redrawing():
    with pytest.raises(StartStatesError, match="draws places until one fits"):
        start_states("MiniGrid-Dynamic-Obstacles-5x5-v0")


@pytest.mark.parametrize(
    ("draws", "message"), [((), "too short"), ((0, 0), "too long"), ((2,), "2 is not in 0..1"), ((-1,), "-1 is not in")]
)
def test_draws_that_lead_nowhere(draws, message):
    env = FixedStart(make("fbrl/TMaze-v0"), draws)
    with pytest.raises(StartStatesError, match=message):
        env.reset()


class Dice(gym.Env):
    """Three ways to draw an integer in ``reset``, one in ``step``."""

    observation_space = gym.spaces.Discrete(100)
    action_space = gym.spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random.integers
        return 25 * draw(2) + 5 * draw(0, 1) + draw(1, 3, endpoint=True), {}

    def step(self, action):
        return self.np_random.integers(6), 0.0, False, False, {}


def test_the_forms_of_integers_and_draws_in_step():
    env = FixedStart(Dice(), (1, 3))  # the middle draw has one possible value
    assert env.reset() == (28, {})
    with pytest.raises(StartStatesError, match="draws random numbers after its reset"):
        env.step(0)
