"""Environments that are stepped together."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from fbrl.finite import NotFiniteError, check_finite


class TaskError(Exception):
    """An error that an environment raised, which is its cause; the message says in one line which, in which step.

    No RuntimeError: contextlib takes one whose cause is a StopIteration for its own, and raises that in its place.
    """


class FiniteVecEnv(DummyVecEnv):
    """Stable-Baselines3's ``DummyVecEnv`` that says which environment fails, and in which step of its episode.

    Looks at observations and rewards, for agents other than ``MemoryPPO``, which looks itself. ``VecCheckNan`` is no
    choice, nor is any other ``VecEnvWrapper``: they cannot be pickled as they are.
    Counts the seconds that steps take in ``seconds_stepping``.

    Raises:
        NotFiniteError: in a step or a reset, where an observation or a reward is not finite.
        TaskError: where an environment raises anything else.
    """

    seconds_stepping = 0.0
    _steps: Any = 0  # (N,) of the episodes under way

    def reset(self) -> VecEnvObs:
        """The first observations."""
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        with _naming(self._failed):
            obs = super().reset()
        self._check(obs, "observation")
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment."""
        start = time.perf_counter()
        self._steps = self._steps + np.ones(self.num_envs, dtype=np.int64)
        with _naming(self._failed):
            obs, rewards, dones, infos = super().step_wait()
        self.seconds_stepping += time.perf_counter() - start
        self._check(obs, "observation")
        self._check(rewards, "reward")
        for index in dones.nonzero()[0]:  # PPO takes its value where the episode was cut short
            self._check(infos[index]["terminal_observation"], "terminal_observation", int(index))
        self._steps[dones] = 0
        return obs, rewards, dones, infos

    def _check(self, values: Any, name: str, index: int | None = None) -> None:
        """Raises NotFiniteError; ``values`` are of all environments, or of one."""
        try:
            check_finite(values, name)
        except NotFiniteError as error:
            parts = values.values() if isinstance(values, dict) else [values]
            rows = [np.isfinite(part).reshape(self.num_envs, -1).all(axis=1) for part in parts if index is None]
            which = int(np.argmin(np.all(rows, axis=0))) if index is None else index
            raise NotFiniteError(f"{self.name(which)}: {error}") from None

    def _failed(self, error: BaseException) -> str:
        index = _index(error.__traceback__)
        return "an environment" if index is None else self.name(index)

    def name(self, index: int) -> str:
        """An environment in words: its number, its task, and the step that it is at."""
        step = int(np.broadcast_to(self._steps, self.num_envs)[index])
        return f"environment {index} {_at(self.envs[index], step)}"


class NamedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A single environment that says what ``FiniteVecEnv`` says, and raises what that raises; of its pictures too."""

    steps = 0  # of the episode under way

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self.steps = 0
        with _naming(self._failed):
            observation, info = self.env.reset(**kwargs)
        self._check(observation, "observation")
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step."""
        self.steps += 1
        with _naming(self._failed):
            result = self.env.step(action)
            reward = np.asarray(float(result[1]))
        self._check(result[0], "observation")
        self._check(reward, "reward")
        return result

    def render(self) -> Any:
        """A picture."""
        with _naming(self._failed):
            return self.env.render()

    def _check(self, values: Any, name: str) -> None:
        try:
            check_finite(values, name)
        except NotFiniteError as error:
            raise NotFiniteError(f"{self._failed(error)}: {error}") from None

    def _failed(self, error: BaseException) -> str:
        return f"the environment {_at(self.env, self.steps)}"


def _at(env: gym.Env[Any, Any], step: int) -> str:
    task = env.unwrapped
    name = task.spec.id if task.spec is not None else type(task).__name__
    return f"({name}), step {step} of its episode"


@contextlib.contextmanager
def _naming(name: Callable[[BaseException], str]) -> Iterator[None]:
    """Says which environment raised what its code raises."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise TaskError(f"{name(error)}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _index(trace: TracebackType | None) -> int | None:
    """Which environment ``DummyVecEnv`` was at when it was left by an error."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code in (DummyVecEnv.step_wait.__code__, DummyVecEnv.reset.__code__):
            return frame.f_locals.get("env_idx")
    return None


class LastEpisodes(Monitor):
    """Stable-Baselines3's ``Monitor``, which holds every episode for ever; this one the last ``KEPT``.

    Of short episodes that is tens of MB an hour, in the process and in each of its checkpoints.
    """

    KEPT: ClassVar[int] = 100

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step."""
        result = super().step(action)
        if self.needs_reset:
            for kept in (self.episode_returns, self.episode_lengths, self.episode_times):
                del kept[: -self.KEPT]
        return result


class StepLimit(gym.Wrapper[Any, Any, Any, Any]):
    """Cuts an episode after ``limit`` steps, if it does not end before: ``info["cut"]`` is true, success is not.

    Success is reported of what is cut where the task is known to report it: it has done so before, or something around
    it has the attribute ``reports_success``, as ``fbrl.symbolic.Success`` has.
    """

    def __init__(self, env: gym.Env[Any, Any], limit: int) -> None:
        super().__init__(env)
        self.limit, self.steps = limit, 0
        self.reports = env.has_wrapper_attr("reports_success") and bool(env.get_wrapper_attr("reports_success"))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self.steps = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.reports = self.reports or "is_success" in info
        if self.steps >= self.limit and not (terminated or truncated):
            failed = {"is_success": False} if self.reports else {}
            return observation, reward, False, True, {**info, **failed, "cut": True}
        return observation, reward, terminated, truncated, info


def stack_frames(env: VecEnv, n_stack: int | None) -> VecEnv:
    """``env`` with the last ``n_stack`` observations of the episode in one, zeros before its start; None: as it is.

    Raises:
        ValueError: where the observations are no Box, nor a Dict of them.
    """
    if n_stack is None:
        return env
    space = env.observation_space
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        if not isinstance(part, spaces.Box) or not part.shape:
            where = f" in {key!r}" if key else ""
            raise ValueError(f"env.frame_stack needs observations in a Box, or a Dict of them, got {part}{where}")
    return VecFrameStack(env, n_stack)
