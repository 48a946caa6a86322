"""POPGym's tasks through ``make``. The tests that need POPGym are left out where it is not installed."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from envs import UnknownEnvironmentError, make
from fbrl import MemoryPPO

TASKS = [
    *("Autoencode", "RepeatPrevious", "RepeatFirst", "CountRecall", "PositionOnlyCartPole", "PositionOnlyPendulum"),
    *("VelocityOnlyCartpole", "NoisyPositionOnlyCartPole", "NoisyPositionOnlyPendulum", "MultiarmedBandit"),
    *("HigherLower", "Battleship", "Concentration", "MineSweeper"),
]
IDS = [f"popgym-{task}{level}-v0" for task in TASKS for level in ("Easy", "Medium", "Hard")]


@pytest.fixture
def popgym():
    return pytest.importorskip("popgym")


@pytest.mark.parametrize("env_id", IDS)
def test_every_task_works(popgym, env_id):
    """In Stable-Baselines3's checker, over an episode of random play, whose return is in -1..1."""
    env = make(env_id, seed=3)
    check_env(env, warn=False)
    observation, _ = env.reset()
    rewards, done = [], False
    while not done:
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert "is_success" not in info
        rewards.append(float(reward))
        done = terminated or truncated
    assert -1 - 1e-6 <= sum(rewards) <= 1 + 1e-6


def test_these_are_all_tasks(popgym):
    """But for those that need mazelib, which POPGym registers where it is installed."""
    registered = {name for name in gym.registry if name.startswith("popgym-") and "Labyrinth" not in name}
    assert registered == set(IDS)


def episode_return(env, act, seed):
    observation, _ = env.reset(seed=seed)
    seen, total, done = [observation], 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(act(seen))
        seen.append(observation)
        total += reward
        done = terminated or truncated
    return total


@pytest.mark.parametrize(
    ("env_id", "act"),
    [
        ("popgym-RepeatPreviousEasy-v0", lambda seen: seen[-4:][0]),
        ("popgym-RepeatPreviousMedium-v0", lambda seen: seen[-32:][0]),
        ("popgym-RepeatFirstHard-v0", lambda seen: seen[0]),
    ],
)
def test_remembering_earns_one(popgym, env_id, act):
    env = make(env_id)
    assert [episode_return(env, act, seed) for seed in range(3)] == pytest.approx([1, 1, 1])
    assert episode_return(env, lambda seen: seen[-1], seed=0) < 0.5


def test_a_tuple_is_flattened(popgym):
    space = make("popgym-AutoencodeEasy-v0").observation_space
    assert isinstance(space, spaces.Box)
    assert space.shape == (2 + 4,)  # one of two phases and one of four suits
    observation, _ = make("popgym-AutoencodeEasy-v0").reset(seed=0)
    assert observation.sum() == 2


def test_equal_seeds_give_equal_episodes(popgym):
    first, second = (make("popgym-ConcentrationEasy-v0", seed=5) for _ in range(2))
    np.testing.assert_equal(first.reset()[0], second.reset()[0])
    for _ in range(20):
        action = first.action_space.sample()
        np.testing.assert_equal(first.step(action)[:2], second.step(action)[:2])


@pytest.mark.parametrize("task", ["RepeatPrevious", "Autoencode", "Battleship", "PositionOnlyPendulum"])
def test_training_runs(popgym, task):
    """Two rollouts of agents with Discrete, flattened and MultiDiscrete observations or actions, and with Boxes."""
    env = make_vec_env(lambda: make(f"popgym-{task}Easy-v0", previous_reward=True), n_envs=3, seed=0)
    core = {"d_model": 16, "n_layers": 2, "n_heads": 2, "window": 5}
    model = MemoryPPO(
        "MultiInputPolicy", env, n_steps=14, seq_len=7, batch_size=21, policy_kwargs={"core_kwargs": core}, seed=0
    )
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(2 * 3 * 14)
    assert model.num_timesteps == 2 * 3 * 14
    after = list(model.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert sum(not parameter.equal(old) for parameter, old in zip(after, before, strict=True)) > len(before) / 2


def test_an_unknown_id_names_the_closest(popgym):
    with pytest.raises(UnknownEnvironmentError, match="popgym-RepeatPreviousEasy-v0"):
        make("popgym-RepeatPreviosEasy-v0")


def test_without_popgym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"^POPGym is not installed: pip install fbrl\[popgym\]$"):
        make("popgym-RepeatPreviousEasy-v0")
