"""MiniGrid's observations in a form that Stable-Baselines3 takes, and success in ``info``."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv

from fbrl.mission import WORDS, longest_mission, tokenize

CELL_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), max(STATE_TO_IDX.values()))
"""The largest object, colour and state of a cell: (10, 5, 2)."""


class SymbolicObservation(gym.Wrapper[dict[str, Any], Any, Any, Any]):
    """MiniGrid's observation without text, and ``info["is_success"]`` on the last step of every episode.

    - "image" (V, V, 3) uint8: object, colour and state of each visible cell. The tight bound of each channel
      (``CELL_HIGH``) keeps Stable-Baselines3 from taking the symbols for a picture, which it would transpose and
      divide by 255.
    - "direction" ``Discrete(4)``: where the agent faces, 0 is right, 1 down.
    - "mission" (length,) uint8, only where the task varies its mission: tokens as in ``fbrl.mission``.

    An episode is a success when it terminates with a positive reward. What BabyAI prints when it has to draw a level
    again is swallowed.

    Raises ``ValueError`` on a mission with an unknown word.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        base = env.unwrapped
        assert isinstance(base, MiniGridEnv)
        assert isinstance(env.observation_space, spaces.Dict)
        image = env.observation_space["image"]
        assert image.shape is not None
        high = np.broadcast_to(np.array(CELL_HIGH, dtype=np.uint8), image.shape)
        entries: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(np.zeros_like(high), high, dtype=np.uint8),
            "direction": spaces.Discrete(4),
        }
        self._length = longest_mission(env.observation_space["mission"])  # type: ignore[arg-type]
        if self._length:
            entries["mission"] = spaces.Box(0, len(WORDS), (self._length,), np.uint8)
        self.observation_space = spaces.Dict(entries)
        self._prints = isinstance(base, RoomGridLevel)
        self._mission = ""
        self._tokens = np.zeros(self._length, dtype=np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode."""
        with contextlib.redirect_stdout(io.StringIO()) if self._prints else contextlib.nullcontext():
            observation, info = self.env.reset(seed=seed, options=options)
        return self._symbols(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Takes one step; ``info["is_success"]`` (bool) is set when the episode ends."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info["is_success"] = bool(terminated and float(reward) > 0)
        return self._symbols(observation), reward, terminated, truncated, info

    def _symbols(self, observation: dict[str, Any]) -> dict[str, Any]:
        mission = observation.pop("mission")  # MiniGrid builds a new dict each step, so that nobody else misses it
        if self._length:
            if mission is not self._mission:
                self._mission = mission
                self._tokens = tokenize(mission, self._length)
            observation["mission"] = self._tokens.copy()
        return observation
