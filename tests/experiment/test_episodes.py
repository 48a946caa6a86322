"""Environments are carried on only where the pickle holds all of them."""

import importlib
import sys
from dataclasses import dataclass
from enum import Enum

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import envs
from experiment.episodes import Packed, _is_compiled, pack, unpack
from fbrl.vec_env import FiniteVecEnv
from tests.tasks import ConstantTask, RandomTask


def started(*makes, wrap=lambda env: env, steps=5):
    """Environments in the middle of their episodes."""
    env = wrap(FiniteVecEnv([lambda make=make: Monitor(make()) for make in makes]))
    env.seed(3)
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(env.num_envs, int))
    return env


def trace(env, steps=23):
    """What the next steps bring, as one array."""
    found = []
    for _ in range(steps):
        obs, rewards, dones, _ = env.step(np.ones(env.num_envs, int))
        parts = obs.values() if isinstance(obs, dict) else [obs]
        found += [np.ravel(part).astype(float) for part in (*parts, rewards, dones)]
    return np.concatenate(found)


def as_it_is(env):
    return env


def stacked(env):
    return VecFrameStack(env, 3)


@pytest.mark.parametrize(
    ("make", "wrap"),
    [
        (RandomTask, as_it_is),
        (RandomTask, stacked),
        (RandomTask, VecNormalize),
        (RandomTask, lambda env: VecNormalize(stacked(env))),
        (lambda: gym.make("CartPole-v1"), as_it_is),
        (lambda: gym.make("FrozenLake-v1"), as_it_is),
        (lambda: envs.make("fbrl/TMaze-v0"), as_it_is),
        (lambda: envs.make("MiniGrid-MemoryS7-v0"), as_it_is),
    ],
)
def test_what_is_whole_goes_on_where_it_was(make, wrap):
    env = started(make, make, wrap=wrap)
    packed = pack(env)
    assert packed.why is None
    again, why = unpack(packed)
    assert why is None
    np.testing.assert_array_equal(trace(again), trace(env))


class Simulated(RandomTask, EzPickle):
    """Keeps only how it was made."""

    def __init__(self):
        RandomTask.__init__(self)
        EzPickle.__init__(self)


class Simulator:
    def __init__(self):
        self.time = 0

    def __reduce__(self):
        return Simulator, ()


class HoldsSimulator(ConstantTask):
    def __init__(self):
        super().__init__()
        self.simulator = Simulator()


class Forgetful(RandomTask):
    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "left"}


class EzWrapper(gym.Wrapper, EzPickle):
    def __init__(self, env):
        gym.Wrapper.__init__(self, env)
        EzPickle.__init__(self, env)


class OpenFile(ConstantTask):
    def __init__(self):
        super().__init__()
        self.file = open(__file__)  # noqa: SIM115

    def close(self):
        self.file.close()


class Generating(ConstantTask):
    def __init__(self):
        super().__init__()
        self.numbers = (n for n in range(9))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Simulated, "Simulated pickles only what it was made with"),
        (HoldsSimulator, "Simulator pickles itself in a way of its own"),
        (Forgetful, "Forgetful pickles itself in a way of its own"),
        (lambda: EzWrapper(RandomTask()), "EzWrapper pickles only what it was made with"),
        (OpenFile, "they hold an open file"),
        (Generating, "they cannot be pickled"),
    ],
)
def test_what_its_pickle_does_not_hold_whole_is_not_carried_on(make, why):
    """Kind: state that is not in the pickle, wherever in the environment it is."""
    env = started(ConstantTask, make)
    packed = pack(env)
    env.close()
    assert packed.data is None
    assert why in packed.why
    assert unpack(packed) == (None, packed.why)


class Colour(Enum):
    RED = 1


@dataclass(frozen=True, slots=True)
class Cell:
    colour: Colour


class Grid(ConstantTask):
    def __init__(self):
        super().__init__()
        self.cells = [Cell(Colour.RED)]


def test_data_classes_and_enums_are_data():
    assert pack(started(Grid)).why is None


TASK = """
import gymnasium as gym
import numpy as np
{imports}

WORLDS, NAMES, RNG = {{}}, {{"b", "a"}}, np.random.default_rng(1)

class Task(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    made = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        {step}
        self.t += 1
        return np.full(2, self.t / 99, np.float32), 0.0, False, False, {{}}
"""


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Imports the task, written so, as a new process would; None means that there is none."""

    def fresh(step="pass", imports=""):
        monkeypatch.delitem(sys.modules, "task", raising=False)
        (tmp_path / "task.py").unlink(missing_ok=True)
        importlib.invalidate_caches()
        if step is not None:
            (tmp_path / "task.py").write_text(TASK.format(step=step, imports=imports))
            return importlib.import_module("task").Task
        return None

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else a file of the same second is taken for the same
    yield fresh
    sys.modules.pop("task", None)


@pytest.mark.parametrize(
    ("saved", "loaded", "expected"),
    [
        ("pass", "pass", None),
        *(
            (step, step, "task keeps data outside the environments, which is not what it was")
            for step in ("WORLDS[id(self)] = self.t", "Task.made.append(self.t)", "RNG.random()")
        ),
        ("pass", "self.t += 1", "the code of task has changed since"),
        ("pass", None, "they cannot be made from what was saved (ModuleNotFoundError: No module named 'task')"),
    ],
    ids=["whole", "in the module", "on the class", "drawn from the module", "changed", "gone"],
)
def test_state_outside_and_code_that_changed(imported, saved, loaded, expected):
    """Kind: what an environment depends on beside its pickle."""
    packed = pack(started(imported(saved)))
    assert packed.why is None
    imported(loaded)
    env, why = unpack(packed)
    assert why == expected
    assert (env is None) == (why is not None)
    if env is not None:
        assert env.envs[0].unwrapped.t == 5


def test_a_simulator_in_another_language(imported):
    """Kind: a handle, a mere number, into a library that keeps the state; contourpy stands for a simulator."""
    pytest.importorskip("contourpy")
    for imports in ("import contourpy", "from contourpy import max_threads"):
        packed = pack(started(imported(imports=imports)))
        assert packed.why == "Task uses contourpy, which may keep state that no pickle holds"
    assert pack(started(imported(imports="import torch"))).why is None


def test_the_packages_that_are_compiled():
    assert _is_compiled("numpy")
    assert not _is_compiled("gymnasium")
    assert not _is_compiled("nowhere")


def test_environments_of_an_earlier_version_are_looked_at_when_they_are_read():
    """What was not looked at when it was saved: an EzPickle task of a checkpoint of version 0.1.0."""
    env, why = unpack(Packed(cloudpickle.dumps(started(Simulated))))
    assert env is None
    assert why == "Simulated pickles only what it was made with"
    assert unpack(Packed(cloudpickle.dumps(started(RandomTask))))[1] is None
