"""Environments that say where they are not finite."""

import pickle

import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from fbrl.finite import NotFiniteError
from fbrl.vec_env import FiniteVecEnv, LastEpisodes, NamedEnv, StepLimit, TaskError
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


def test_what_is_not_finite_says_where(monkeypatch):
    """Kind: a number of which nobody can say where it came from."""
    env = FiniteVecEnv([ConstantTask, lambda: Spoilt(0.0, np.nan), ConstantTask])
    env.reset()
    env.step(np.zeros(3, int))
    where = r"^environment 1 \(Spoilt\), step 2 of its episode: "
    with pytest.raises(NotFiniteError, match=where + "observation must be finite, got nan$"):
        env.step(np.zeros(3, int))
    env = FiniteVecEnv([ConstantTask, lambda: ConstantTask(reward=np.inf)])
    env.reset()
    with pytest.raises(NotFiniteError, match=r"^environment 1 \(ConstantTask\), step 1 .* reward must be finite"):
        env.step(np.zeros(2, int))
    env = FiniteVecEnv([ConstantTask, lambda: Spoilt(0.0, np.nan, length=2)])
    env.reset()
    env.step(np.zeros(2, int))
    with pytest.raises(NotFiniteError, match=where + "terminal_observation"):
        env.step(np.zeros(2, int))


class Broken(ConstantTask):
    """Raises in its third step, or in its second reset."""

    def __init__(self, error, in_reset=False):
        super().__init__(length=3)
        self.error, self.in_reset, self.resets = error, in_reset, 0

    def reset(self, **kwargs):
        self.resets += 1
        if self.in_reset and self.resets == 2:
            raise self.error
        return super().reset(**kwargs)

    def step(self, action):
        if not self.in_reset and self.t == 2:
            raise self.error
        return super().step(action)


@pytest.mark.parametrize("error", [ValueError("a\nb"), KeyError("a b"), StopIteration("a b"), SystemExit("a b")])
@pytest.mark.parametrize("in_reset", [False, True])
def test_an_error_of_an_environment_says_where(error, in_reset):
    """Kind: an error of the user's task, whatever it is, that says neither which environment nor which step."""
    env = FiniteVecEnv([ConstantTask, lambda: Broken(error, in_reset)])
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, int))
    name = rf"^environment 1 \(Broken\), step 3 of its episode: {type(error).__name__}: '?a b'?$"
    with pytest.raises(TaskError, match=name) as raised:
        env.step(np.zeros(2, int))
    assert raised.value.__cause__ is error


class Drawn(Broken):
    def render(self):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a\nb"), StopIteration("a b"), SystemExit("a b"), OSError("a b")])
def test_a_single_environment_says_where_too(error):
    """Those that are played to be looked at."""
    env = NamedEnv(Drawn(error, in_reset=False))
    env.reset()
    env.step(0)
    env.step(0)
    name = rf"^the environment \(Drawn\), step {{}} of its episode: {type(error).__name__}: a b$"
    with pytest.raises(TaskError, match=name.format(2)):
        env.render()
    with pytest.raises(TaskError, match=name.format(3)) as raised:
        env.step(0)
    assert raised.value.__cause__ is error
    env = NamedEnv(Drawn(error, in_reset=True))
    env.reset()
    with pytest.raises(TaskError, match=name.format(0)):
        env.reset()


@pytest.mark.parametrize(("name", "bad"), [("observation", np.nan), ("observation", 1e20), ("reward", np.inf)])
def test_a_single_environment_is_looked_at_too(name, bad):
    class Bad(ConstantTask):
        def step(self, action):
            obs, reward, *others = super().step(action)
            return (obs * 0 + bad, reward, *others) if name == "observation" else (obs, bad, *others)

    env = NamedEnv(Bad())
    env.reset()
    with pytest.raises(NotFiniteError, match=rf"^the environment \(Bad\), step 1 of its episode: {name} must be"):
        env.step(0)


def test_a_limit_cuts_episodes():
    env = FiniteVecEnv([lambda: StepLimit(ConstantTask(length=5), 3), lambda: StepLimit(ConstantTask(length=2), 3)])
    env.reset()
    infos = [env.step(np.zeros(2, int))[3] for _ in range(3)]
    assert [step[0].get("cut") for step in infos] == [None, None, True]
    assert infos[2][0]["TimeLimit.truncated"]
    assert not any("cut" in step[1] for step in infos)
    assert "is_success" not in infos[2][0], "the task does not report it"


def test_a_monitor_that_does_not_grow():
    """Kind: memory that grows with the length of a training."""
    env = LastEpisodes(ConstantTask(length=2))
    for episode in range(150):
        env.reset()
        env.step(0)
        *_, info = env.step(0)
        assert info["episode"]["l"] == 2
        assert len(env.get_episode_rewards()) == len(env.get_episode_times()) == min(episode + 1, 100)
    assert env.get_total_steps() == 300
