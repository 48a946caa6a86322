"""Tasks that are written once for N environments in NumPy, and played one by one or all together."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class Outcome(NamedTuple):
    """What one step of N environments brought."""

    rewards: NDArray[np.float64]  # (N,)
    terminated: NDArray[np.bool_]  # (N,)
    truncated: NDArray[np.bool_]  # (N,)
    success: NDArray[np.bool_]  # (N,) true where an episode ends with this step and succeeded


class BatchTask(ABC):
    """A task in N environments at once; its state is in arrays (N, ...).

    All that is random in an episode is drawn at its start, from a generator of the environment's own: an episode does
    not depend on how many environments there are. ``TaskEnv`` and ``envs.batch_vec_env.BatchVecEnv`` play it.

    Args:
        n_envs: N.
    """

    observation_space: spaces.Space[Any]  # of one environment; of arrays, of numbers or Discrete
    action_space: spaces.Discrete  # of one environment

    def __init__(self, n_envs: int) -> None:
        self.n_envs = n_envs
        self.rows = np.arange(n_envs)

    @abstractmethod
    def start(self, index: int, rng: np.random.Generator) -> None:
        """Starts an episode in environment ``index``, and draws from ``rng`` how it goes."""

    @abstractmethod
    def observe(self) -> NDArray[Any]:
        """What the environments show now, (N, ...), in an array of its own.

        After the last step of an episode too: the observation that no action follows.
        """

    @abstractmethod
    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """One step of every environment; actions (N,)."""


class TaskEnv(gym.Env[Any, Any]):
    """A ``BatchTask`` as a plain Gymnasium environment: a batch of one.

    ``info["is_success"]`` (bool) comes with every step, so that a time limit around the task cannot hide a failure.
    ``kwargs`` are the task's. A subclass says which task: ``task_class``.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (as Gymnasium declares it)
    task_class: ClassVar[type[BatchTask]]

    def __init__(self, **kwargs: Any) -> None:
        self._kwargs = kwargs
        self.task = self.batch(1)
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space

    def batch(self, n_envs: int) -> BatchTask:
        """The same task in ``n_envs`` environments."""
        return self.task_class(n_envs, **self._kwargs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        self.task.start(0, self.np_random)
        return self.task.observe()[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; raises ValueError where there is no such action."""
        actions = np.asarray(action, dtype=np.int64).reshape(1)
        check_actions(actions, self.task.action_space)
        rewards, terminated, truncated, success = self.task.step(actions)
        info = {"is_success": bool(success[0])}
        return self.task.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info


def check_actions(actions: NDArray[np.int64], space: spaces.Discrete) -> None:
    """Raises ValueError where an action is not in ``space``, which starts at 0."""
    if actions.min() < 0 or actions.max() >= space.n:
        raise ValueError(f"actions must be in {space}, got {actions.tolist()}")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError where the argument is not a whole number from ``least`` to ``most``."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, got {value}")
