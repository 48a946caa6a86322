"""A bonus for looking around: a reward for every observation that its episode has not shown yet."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class NoveltyError(ValueError):
    """Observations that no bonus can be given for; the message is one line."""


class EpisodicNovelty(VecEnvWrapper):
    """Adds a bonus to the reward of each step to an observation that its episode has not shown yet.

    Of two observations, those are the same that are equal in every number. The last observation of an episode gets no
    bonus. The bonus falls linearly to zero, so that what is learned in the end is the task alone. For training only:

        env = EpisodicNovelty(make_vec_env("MiniGrid-MemoryS13-v0", n_envs=64), bonus=0.03, steps=2_000_000)

    ``info["episode"]`` of a Monitor below holds the task's own return; ``info["episode"]["novelty"]`` is the sum of the
    episode's bonuses, whose mean ``MemoryPPO`` logs as ``rollout/novelty``. What was seen is pickled with the
    environments. To be put below what changes observations, such as ``VecFrameStack`` and ``VecNormalize``.

    Args:
        venv: the environments. Observations in real numbers, which hardly ever come twice, are refused
            once they are met.
        bonus: of one new observation, at the start.
        steps: when the bonus has fallen to zero, in steps of all environments together; ``None`` for never.
        ignored: keys of a Dict that do not count, such as an agent's own last action.

    Raises:
        ValueError: where ``bonus`` or ``steps`` is out of range, or no part of the observations counts.
        NoveltyError: in a step or a reset, where an observation is not in whole numbers.
    """

    def __init__(self, venv: VecEnv, bonus: float, steps: int | None = None, ignored: Collection[str] = ()) -> None:
        super().__init__(venv)
        if not bonus >= 0:
            raise ValueError(f"bonus must be at least 0, got {bonus}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or None for a bonus that stays, got {steps}")
        space = venv.observation_space
        names = list(space.spaces) if isinstance(space, spaces.Dict) else [""]
        self.counted = [name for name in names if name not in ignored]
        if not self.counted:
            raise ValueError(f"ignored must leave a part of the observation, got {sorted(ignored)}")
        self.first_bonus, self.steps = bonus, steps
        self.steps_done = 0  # of all environments together
        self.seen: list[set[bytes]] = [set() for _ in range(venv.num_envs)]
        self.sums = np.zeros(venv.num_envs)

    # VecEnvWrapper cannot be pickled: it keeps its class's attributes, which cannot, and asks itself for every
    # attribute that it lacks, which never ends while it has none
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, class_attributes=dict(inspect.getmembers(type(self))))

    @property
    def bonus(self) -> float:
        """Of one new observation, now."""
        return self.first_bonus * (1.0 if self.steps is None else max(0.0, 1 - self.steps_done / self.steps))

    def reset(self) -> VecEnvObs:
        """The first observations."""
        observations = self.venv.reset()
        self.seen = [{key} for key in self._keys(observations)]
        self.sums[:] = 0
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment."""
        observations, rewards, dones, infos = self.venv.step_wait()
        bonus = self.bonus
        self.steps_done += self.num_envs
        new = np.zeros(self.num_envs, dtype=bool)
        if bonus:
            for index, key in enumerate(self._keys(observations)):
                if dones[index]:  # the first observation of the next episode
                    self.seen[index] = {key}
                elif key not in self.seen[index]:
                    self.seen[index].add(key)
                    new[index] = True
        self.sums += bonus * new
        for index in np.flatnonzero(dones).tolist():
            if "episode" in infos[index]:
                infos[index]["episode"]["novelty"] = float(self.sums[index])
        self.sums[dones] = 0
        return observations, rewards + np.asarray(bonus * new, dtype=np.float32), dones, infos

    def _keys(self, observations: Any) -> list[bytes]:
        """For each environment, what tells its observation from others."""
        parts = [(name, observations[name] if name else observations) for name in self.counted]
        rows = [self._whole(name, np.asarray(part)).reshape(self.num_envs, -1) for name, part in parts]
        return [
            hashlib.blake2b(b"".join(row[index].tobytes() for row in rows), digest_size=16).digest()
            for index in range(self.num_envs)
        ]

    def _whole(self, name: str, part: NDArray[Any]) -> NDArray[Any]:
        if part.dtype.kind != "f":
            return part
        whole = part.astype(np.int64)
        if not np.array_equal(whole, part):
            where = f"observation[{name!r}]" if name else "observation"
            other = part[whole != part][0]
            raise NoveltyError(f"{where} must be in whole numbers for a novelty bonus, or be ignored, got {other}")
        return whole
