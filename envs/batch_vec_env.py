"""A ``BatchTask`` as environments for Stable-Baselines3, all stepped at once."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.batch import BatchTask, check_actions


class BatchVecEnv(VecEnv):
    """The N environments of a task, with the episodes that N environments in a ``DummyVecEnv`` would have.

    Environment i draws from a generator of its own, which ``seed`` + i seeds. An episode that ends starts anew in the
    same step; its last observation is ``info["terminal_observation"]``. As under a ``Monitor``, the last step has
    ``info["episode"]`` with return r, length l and t, the seconds since the environments were made; and
    ``info["is_success"]``. ``seconds_stepping`` is the time spent in steps, in seconds.

    Args:
        task: the task in N environments.
        seed: of environment 0.
        limit: steps after which an episode is cut, if it does not end before; ``info["cut"]`` is then true, and it is
            no success.
    """

    limit: int | None = None

    def __init__(self, task: BatchTask, seed: int, limit: int | None = None) -> None:
        super().__init__(task.n_envs, task.observation_space, task.action_space)
        self.task, self.limit = task, limit
        self.rngs: list[np.random.Generator] = []  # one each, from the first reset on
        self._actions = np.zeros(task.n_envs, dtype=np.int64)
        self._lengths = np.zeros(task.n_envs, dtype=np.int64)
        self._returns = np.zeros(task.n_envs)
        self._made_at = time.time()
        self.seconds_stepping = 0.0
        self.seed(seed)

    def reset(self) -> NDArray[Any]:
        """Starts an episode in every environment; after ``seed``, with the first one of the new seeds."""
        if self._seeds[0] is not None:
            self.rngs = [np_random(seed)[0] for seed in self._seeds]
        self._reset_seeds()
        self._reset_options()
        return self._start(range(self.num_envs))

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes note of the actions (N,); raises ValueError where they are not N, or there is no such action."""
        self._actions = np.asarray(actions, dtype=np.int64)
        if self._actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have the shape ({self.num_envs},), got {self._actions.shape}")
        check_actions(self._actions, self.task.action_space)

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment."""
        began = time.perf_counter()
        rewards, terminated, truncated, success = self.task.step(self._actions)
        observations = self.task.observe()
        self._lengths += 1
        self._returns += rewards
        cut = np.zeros_like(terminated)
        if self.limit is not None:
            cut = (self._lengths >= self.limit) & ~(terminated | truncated)
        truncated, success = truncated | cut, success & ~cut
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones).tolist()
        for index in ended:
            infos[index] = {
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
                "terminal_observation": observations[index],
                "is_success": bool(success[index]),
                "episode": self._episode(index),
                **({"cut": True} if cut[index] else {}),
            }
        if ended:
            observations = self._start(ended)  # in an array of its own
        self.seconds_stepping += time.perf_counter() - began
        return observations, rewards.astype(np.float32), dones, infos

    def _episode(self, index: int) -> dict[str, float]:
        seconds = round(time.time() - self._made_at, 6)
        return {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index]), "t": seconds}

    def _start(self, indices: list[int] | range) -> NDArray[Any]:
        for index in indices:
            self.task.start(index, self.rngs[index])
        self._lengths[indices] = 0
        self._returns[indices] = 0
        return self.task.observe()

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """None for ``render_mode``; the environments have no other attribute that can be read one by one."""
        if attr_name != "render_mode":
            self._lacks(attr_name)
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raises AttributeError: the environments have no attributes to set."""
        self._lacks(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Raises AttributeError: the environments have no methods."""
        self._lacks(method_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Env[Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor``, whose episode statistics are here; False for all else."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _lacks(self, name: str) -> NoReturn:
        raise AttributeError(f"the environments of {type(self.task).__name__} have no {name} of their own")
