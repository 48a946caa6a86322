"""SeededFirstReset: a seed that waits for the first reset."""

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import make

ENV_ID = "MiniGrid-DoorKey-6x6-v0"


def images(env, first_seed, n=4):
    observations = [env.reset(seed=first_seed)[0], *(env.reset()[0] for _ in range(n - 1))]
    return np.stack([observation["image"] for observation in observations])


def test_the_first_reset_without_a_seed_uses_it():
    expected = images(make(ENV_ID), 7)
    np.testing.assert_array_equal(images(make(ENV_ID, seed=7), None), expected)
    assert len({image.tobytes() for image in expected}) > 1


def test_a_reset_with_a_seed_replaces_it():
    np.testing.assert_array_equal(images(make(ENV_ID, seed=7), 8), images(make(ENV_ID), 8))


def test_the_seed_of_a_vectorised_environment_replaces_it():
    vec_env = DummyVecEnv([lambda: make(ENV_ID, seed=7)])
    vec_env.seed(8)
    np.testing.assert_array_equal(vec_env.reset()["image"], images(make(ENV_ID), 8, n=1))


def test_actions_are_seeded():
    first, second = make(ENV_ID, seed=7), make(ENV_ID, seed=7)
    assert [first.action_space.sample() for _ in range(20)] == [second.action_space.sample() for _ in range(20)]
