"""MiniGrid's tasks in EnvPool's C++ engine, as environments for Stable-Baselines3."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.registry import SYMBOLIC, make
from envs.view import FULL, crop_view
from fbrl.mission import tokenize

VIEW_SIZES = (3, 5, 7)
SEEDS = 2**31
"""EnvPool takes seeds from 0 to one below; larger ones start over."""


class EnvPoolVecEnv(VecEnv):
    """``n_envs`` environments of a MiniGrid task, stepped in C++: spaces, observations, rewards and ends of ``make``.

    Levels are drawn by EnvPool: environment i draws the same ones whenever it gets the same seed, ``seed`` + i, but not
    those that minigrid draws with it. An episode that ends starts anew in the same step; its last observation is
    ``info["terminal_observation"]``. As under a ``Monitor``, the last step has ``info["episode"]`` with return r,
    length l and t, the seconds since the environments were made; and ``info["is_success"]`` as
    ``SymbolicObservation`` sets it. ``seconds_stepping`` is the time spent in steps, in seconds.

    EnvPool has no render, and its environments cannot be pickled.

    Args:
        env_id: a task of MiniGrid's that EnvPool has, or one that is registered with the same arguments but for
            the view.
        n_envs: environments.
        seed: of environment 0.
        previous_action: add the previous action to the observation, as ``PreviousStep`` does.
        previous_reward: add the previous reward to the observation.
        kwargs: ``agent_view_size``, 3, 5 or 7; nothing else. EnvPool's own view is always of 7x7 cells, because its
            memory is corrupted by any other; a smaller one is cut out of it.

    Raises:
        ModuleNotFoundError: where EnvPool is not installed.
        ValueError: where EnvPool lacks the task or an argument; the message names it, and what is allowed.
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seed: int,
        *,
        previous_action: bool = False,
        previous_reward: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in kwargs.keys() - {"agent_view_size"}:
            raise ValueError(f"kwargs must hold agent_view_size only for EnvPool, got {name}")
        _check_view_size(kwargs.get("agent_view_size", FULL))
        model = make(env_id, previous_action=previous_action, previous_reward=previous_reward, **kwargs)
        base, space = model.unwrapped, model.observation_space
        self._task = _envpool_task(env_id, base)
        assert isinstance(base, MiniGridEnv)
        assert isinstance(space, gym.spaces.Dict)
        _check_view_size(base.agent_view_size)  # of the registration
        self._view_size, self._see_through_walls = base.agent_view_size, base.see_through_walls
        self._max_steps = base.max_steps
        model.close()
        super().__init__(n_envs, space, model.action_space)
        self._pool: Any = None
        self._actions = np.zeros(n_envs, dtype=np.int64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._returns = np.zeros(n_envs)
        length = space["mission"].shape if "mission" in space.spaces else None
        self._missions = np.zeros((n_envs, *(length or (0,))), dtype=np.uint8)
        self._made_at = time.time()
        self.seconds_stepping = 0.0
        self.seed(seed)

    def reset(self) -> dict[str, NDArray[Any]]:
        """Starts an episode in every environment; after ``seed``, with the first level of the new seeds."""
        if self._seeds[0] is not None:
            self._pool = _load_envpool().make_gymnasium(
                self._task,
                num_envs=self.num_envs,
                seed=[seed % SEEDS for seed in self._seeds if seed is not None],
                max_episode_steps=self._max_steps + 1,  # out of reach, see step_wait
            )
            self._reset_seeds()
        self._reset_options()
        return self._start(np.arange(self.num_envs))

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes note of the actions; raises ValueError on one that EnvPool lacks, which would end the process."""
        self._actions = np.asarray(actions, dtype=np.int64)
        if self._actions.min() < 0 or self._actions.max() >= self.action_space.n:  # type: ignore[attr-defined]
            raise ValueError(f"actions must be in {self.action_space}, got {self._actions.tolist()}")

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment.

        EnvPool says of an episode that ends with its last step allowed only that it was cut short. Its own limit is
        therefore one step later, never reached, and the end at ``max_steps`` is made here. A positive reward is always
        minigrid's 1 - 0.9 steps / max_steps, which EnvPool computes with that other limit.
        """
        began = time.perf_counter()
        raw, rewards, terminated, _, _ = self._pool.step(self._actions)
        self._lengths += 1
        rewards = np.where(rewards > 0, 1 - 0.9 * (self._lengths / self._max_steps), rewards)
        self._returns += rewards
        observations = self._observe(raw, slice(None), 1 + self._actions, rewards)
        dones = terminated | (self._lengths >= self._max_steps)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        for index in ended.tolist():
            infos[index] = {
                "TimeLimit.truncated": not terminated[index],
                "terminal_observation": {key: part[index].copy() for key, part in observations.items()},
                "is_success": bool(terminated[index] and rewards[index] > 0),
                "episode": self._episode(index),
            }
        if ended.size:
            for key, part in self._start(ended).items():
                observations[key][ended] = part
        self.seconds_stepping += time.perf_counter() - began
        return observations, rewards.astype(np.float32), dones, infos

    def _episode(self, index: int) -> dict[str, float]:
        seconds = round(time.time() - self._made_at, 6)
        return {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index]), "t": seconds}

    def _start(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """New episodes in these environments now, which EnvPool itself would start with the next step only."""
        raw, _ = self._pool.reset(indices)
        self._lengths[indices] = 0
        self._returns[indices] = 0
        length = self._missions.shape[1]
        if length:
            texts = (bytes(text).rstrip(b"\0").decode() for text in raw["mission"])
            self._missions[indices] = [tokenize(text, length) for text in texts]
        nothing = np.zeros(len(indices), dtype=np.int64)
        return self._observe(raw, indices, nothing, nothing)

    def _observe(self, raw: Any, indices: Any, codes: NDArray[Any], rewards: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """EnvPool's observation of these environments as ``make`` gives it; ``codes``: 1 + previous action, or 0."""
        parts = {
            "image": crop_view(raw["image"], self._view_size, self._see_through_walls),
            "direction": raw["direction"].astype(np.int64),
            "mission": self._missions[indices].copy(),
            "previous_action": codes,
            "previous_reward": rewards[:, None].astype(np.float32),
        }
        assert isinstance(self.observation_space, gym.spaces.Dict)
        return {key: parts[key] for key in self.observation_space}

    def close(self) -> None:
        """Ends EnvPool's threads; a second call does nothing."""
        self._pool = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """None for ``render_mode``; EnvPool's environments have no other attribute that can be read one by one."""
        if attr_name != "render_mode":
            _lacks(attr_name)
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raises AttributeError: EnvPool's environments have no attributes to set."""
        _lacks(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Raises AttributeError: EnvPool's environments have no methods."""
        _lacks(method_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Env[Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor``, whose episode statistics are here; False for all else."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _lacks(name: str) -> NoReturn:
    raise AttributeError(f"EnvPool's environments have no {name}")


def _load_envpool() -> Any:
    try:
        import envpool
    except ModuleNotFoundError as error:
        if error.name != "envpool":
            raise
        raise ModuleNotFoundError("EnvPool is not installed: pip install fbrl[envpool]", name="envpool") from None
    return envpool


def _check_view_size(size: Any) -> None:
    if size not in VIEW_SIZES:
        raise ValueError(f"agent_view_size must be 3, 5 or 7 for EnvPool, got {size}")


def _envpool_task(env_id: str, base: gym.Env[Any, Any]) -> str:
    """EnvPool's id of the task: that of MiniGrid's registration which differs from the task's in the view at most.

    BabyAI's tasks are left out: EnvPool does not say whether one of their episodes failed or ran out of time.
    """
    assert base.spec is not None
    task = _but_for_the_view(gym.registry[base.spec.id])  # base.spec itself does not say that a time limit is around it
    has: list[str] = [name for name in _load_envpool().list_all_envs() if name.startswith("MiniGrid-")]
    for name in has:
        if name in gym.registry and _but_for_the_view(gym.registry[name]) == task:
            return name
    raise ValueError(f"env_id must be a MiniGrid task that EnvPool has (BabyAI's are not supported), got {env_id}")


def _but_for_the_view(spec: EnvSpec) -> tuple[Any, ...]:
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "agent_view_size"}
    wrappers = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper != SYMBOLIC)
    return spec.entry_point, kwargs, spec.max_episode_steps, wrappers
