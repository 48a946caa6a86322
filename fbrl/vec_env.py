"""Environments that are stepped together."""

from __future__ import annotations

import time

from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from fbrl.finite import check_finite


class FiniteVecEnv(DummyVecEnv):
    """Stable-Baselines3's ``DummyVecEnv`` that raises ValueError where an observation or a reward is not finite.

    For agents other than ``MemoryPPO``, which looks itself. ``VecCheckNan`` is no choice, nor is any other
    ``VecEnvWrapper``: they cannot be pickled, and a run could not be resumed in the middle of its episodes.
    Counts the seconds that steps take in ``seconds_stepping``.
    """

    seconds_stepping = 0.0

    def reset(self) -> VecEnvObs:
        """The first observations."""
        obs = super().reset()
        check_finite(obs, "observation")  # type: ignore[arg-type]
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment."""
        start = time.perf_counter()
        obs, rewards, dones, infos = super().step_wait()
        self.seconds_stepping += time.perf_counter() - start
        check_finite(obs, "observation")  # type: ignore[arg-type]
        check_finite(rewards, "reward")
        for index in dones.nonzero()[0]:  # PPO takes its value where the episode was cut short
            check_finite(infos[index]["terminal_observation"], "terminal_observation")
        return obs, rewards, dones, infos


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
