"""Environments that say where they are not finite."""

import pickle

import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from fbrl.vec_env import FiniteVecEnv
from tests.tasks import ConstantTask, RandomTask


class Spoilt(ConstantTask):
    """Not finite in its first observation, or in its third."""

    def __init__(self, first, third, length=9):
        super().__init__(length=length)
        self.bad = {0: first, 2: third}

    def _observation(self):
        obs = super()._observation()
        obs[1] = self.bad.get(self.t, obs[1])
        return obs


def test_equals_the_one_it_extends():
    envs = [kind([lambda: Monitor(RandomTask())] * 2) for kind in (FiniteVecEnv, DummyVecEnv)]
    for env in envs:
        env.seed(3)
    first, other = (env.reset() for env in envs)
    np.testing.assert_array_equal(first, other)
    for _ in range(20):
        results = [env.step(np.array([0, 1])) for env in envs]
        for one, two in zip(results[0][:3], results[1][:3], strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_is_not_finite_is_named():
    with pytest.raises(ValueError, match="observation must be finite, got nan"):
        FiniteVecEnv([lambda: Spoilt(np.nan, 0.0)]).reset()
    env = FiniteVecEnv([lambda: Spoilt(0.0, -np.inf)])
    env.reset()
    env.step(np.array([0]))
    with pytest.raises(ValueError, match="observation must be finite, got -inf"):
        env.step(np.array([0]))
    env = FiniteVecEnv([lambda: Spoilt(0.0, np.nan, length=2)])
    env.reset()
    env.step(np.array([0]))
    with pytest.raises(ValueError, match="terminal_observation must be finite, got nan"):
        env.step(np.array([0]))
    env = FiniteVecEnv([lambda: ConstantTask(reward=np.inf)])
    env.reset()
    with pytest.raises(ValueError, match="reward must be finite, got inf"):
        env.step(np.array([0]))


def test_can_be_pickled_in_the_middle_of_an_episode():
    env = FiniteVecEnv([lambda: Monitor(RandomTask())])
    env.seed(0)
    env.reset()
    env.step(np.array([0]))
    again = pickle.loads(pickle.dumps(env))
    for _ in range(9):
        one, two = (each.step(np.array([1])) for each in (env, again))
        np.testing.assert_array_equal(one[0], two[0])
        assert (one[1], one[2]) == (two[1], two[2])
