"""A seed given when the environment is made, used at its first reset."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class SeededFirstReset(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds the action space at once and the environment at its first reset, unless that reset brings its own seed."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self.action_space.seed(seed)
        self._pending: int | None = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets with ``seed``; without one, the first reset uses the seed the environment was made with."""
        if seed is None:
            seed = self._pending
        self._pending = None
        return self.env.reset(seed=seed, options=options)
