"""BatchVecEnv: the episodes of as many single environments, and everything that Stable-Baselines3 asks of a VecEnv."""

import pickle
import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import make
from envs.batch_vec_env import BatchVecEnv
from fbrl.vec_env import StepLimit

TASKS = {
    "fbrl/HiddenAutomaton-v0": {"states": 3, "questions": 2, "length": 7},
    "fbrl/GridWalk-v0": {"size": 2, "length": 2},
    "fbrl/Counting-v0": {"most": 2, "shortest": 3, "longest": 11},
    "fbrl/TMaze-v0": {"corridor": 2, "max_steps": 5},
    "fbrl/ActiveTMaze-v0": {"corridor": 1, "max_steps": 7},
    "fbrl/EndlessTMaze-v0": {"corridors": 2, "shortest": 1, "longest": 3, "max_steps": 9},
    "fbrl/WaterMaze-v0": {"size": 2, "search": 5},
}


def make_batch(env_id, n_envs=5, seed=7, limit=None):
    return BatchVecEnv(make(env_id, **TASKS[env_id]).batch(n_envs), seed, limit)


def make_singles(env_id, n_envs=5, seed=7, limit=99):
    def single(index):
        return lambda: Monitor(StepLimit(make(env_id, seed=seed + index, **TASKS[env_id]), limit))

    return DummyVecEnv([single(index) for index in range(n_envs)])


def compared(info, done):
    """An info without the time; single environments report success, or none yet, with every step."""
    info = info | ({"episode": info["episode"] | {"t": 0}} if done else {})
    return {key: value for key, value in info.items() if done or key != "is_success"}


def record(env, steps):
    """All that random play sees."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(steps):
        observations, rewards, dones, infos = env.step(rng.integers(env.action_space.n, size=env.num_envs))
        seen.append((observations, rewards, dones, [compared(*pair) for pair in zip(infos, dones, strict=True)]))
    return seen


@pytest.mark.parametrize("env_id", TASKS)
def test_a_limit_cuts_as_it_cuts_single_environments(env_id):
    """A limit that some episodes reach and others do not."""
    limit = 2 if env_id == "fbrl/GridWalk-v0" else 4
    batch, singles = make_batch(env_id, limit=limit), make_singles(env_id, limit=limit)
    np.testing.assert_equal(batch.reset(), singles.reset())
    got, expected = record(batch, 60), record(singles, 60)
    np.testing.assert_equal(got, expected)
    cut = [info.get("cut", False) for *_, infos in got for info in infos]
    assert any(cut) != (env_id == "fbrl/GridWalk-v0"), "of which every episode has two steps"


@pytest.mark.parametrize("env_id", TASKS)
def test_all_goes_as_in_single_environments(env_id):
    """Bit for bit, from one seed and after another, and through a reset in the middle of episodes."""
    batch, singles = make_batch(env_id), make_singles(env_id)
    assert (batch.observation_space, batch.action_space) == (singles.observation_space, singles.action_space)
    np.testing.assert_equal(batch.reset(), singles.reset())
    got, expected = record(batch, 120), record(singles, 120)
    np.testing.assert_equal(got, expected)
    for part, single in zip(got[-1][:3], expected[-1][:3], strict=True):
        assert part.dtype == single.dtype
    assert sum(dones.sum() for _, _, dones, _ in got) >= 40
    assert {info["is_success"] for *_, infos in got for info in infos if "episode" in info} == {True, False}
    np.testing.assert_equal(batch.reset(), singles.reset())
    for env in (batch, singles):
        env.seed(31)
    np.testing.assert_equal(batch.reset(), singles.reset())
    np.testing.assert_equal(record(batch, 13), record(singles, 13))


@pytest.mark.parametrize("env_id", TASKS)
def test_gymnasium_and_stable_baselines3_find_no_fault(env_id):
    env = gym.make(env_id, **TASKS[env_id])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(env.unwrapped)
    sb3_check_env(env)


@pytest.mark.parametrize("env_id", TASKS)
def test_what_was_handed_out_stays_as_it_was(env_id):
    batch = make_batch(env_id)
    seen = [batch.reset()]
    copies = [seen[0].copy()]
    for _ in range(30):
        observations, _, _, infos = batch.step(np.zeros(5, dtype=int))
        seen += [observations, *(info["terminal_observation"] for info in infos if "episode" in info)]
        copies += [part.copy() for part in seen[len(copies) :]]
    assert len(seen) > 40
    np.testing.assert_equal(seen, copies)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("env_id", TASKS)
def test_a_pickled_one_goes_on_in_the_middle_of_its_episodes(env_id, pickler):
    batch = make_batch(env_id)
    batch.reset()
    record(batch, 17)
    again = pickler.loads(pickler.dumps(batch))
    np.testing.assert_equal(record(again, 50), record(batch, 50))


class Agent:
    """Always takes the same action."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation), 1), state


def test_evaluate_policy_counts_episodes():
    batch = make_batch("fbrl/GridWalk-v0", n_envs=3)
    assert batch.env_is_wrapped(Monitor) == [True, True, True]
    assert batch.env_is_wrapped(gym.wrappers.TimeLimit, indices=1) == [False]
    returns, lengths = evaluate_policy(Agent(), batch, n_eval_episodes=7, return_episode_rewards=True)
    assert lengths == [2] * 7
    assert len(set(returns)) > 1


def test_the_time_in_steps_is_counted():
    batch = make_batch("fbrl/Counting-v0")
    batch.reset()
    assert batch.seconds_stepping == 0.0
    batch.step(np.zeros(5, dtype=int))
    once = batch.seconds_stepping
    batch.step(np.zeros(5, dtype=int))
    assert 0.0 < once < batch.seconds_stepping < 10.0


def test_what_the_environments_lack():
    batch = make_batch("fbrl/Counting-v0")
    assert batch.get_attr("render_mode", indices=[0, 2]) == [None, None]
    assert not batch.has_attr("spec")
    for call in (lambda: batch.set_attr("a", 1), lambda: batch.env_method("a"), lambda: batch.get_attr("a")):
        with pytest.raises(AttributeError, match="the environments of Counting have no a of their own"):
            call()
    batch.close()


@pytest.mark.parametrize("action", [3, -1])
def test_an_action_that_does_not_exist_is_refused(action):
    batch, single = make_batch("fbrl/Counting-v0"), make("fbrl/Counting-v0", **TASKS["fbrl/Counting-v0"])
    batch.reset()
    single.reset()
    with pytest.raises(ValueError, match=rf"^actions must be in Discrete\(3\), got \[0, {action}, 1, 0, 0\]$"):
        batch.step(np.array([0, action, 1, 0, 0]))
    with pytest.raises(ValueError, match=rf"^actions must be in Discrete\(3\), got \[{action}\]$"):
        single.step(action)


@pytest.mark.parametrize("actions", [np.zeros(()), np.zeros(4), np.zeros((5, 1))])
def test_another_number_of_actions_is_refused(actions):
    batch = make_batch("fbrl/Counting-v0")
    batch.reset()
    with pytest.raises(ValueError, match=r"^actions must have the shape \(5,\), got \("):
        batch.step(actions)


def test_options_are_for_one_reset():
    batch = make_batch("fbrl/Counting-v0")
    batch.set_options({"a": 1})
    batch.reset()
    assert batch._options == [{}] * 5
