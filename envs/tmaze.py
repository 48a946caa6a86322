"""The T-maze: remember one bit along a corridor, then turn the way it said."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

FORWARD, UP, DOWN = 0, 1, 2
CORRIDOR, JUNCTION = 2, 3
CELL_PIXELS = 24
WALL, FLOOR, AGENT, GOAL = (60, 60, 60), (230, 230, 230), (220, 50, 40), (60, 170, 75)
CUES = (40, 110, 220), (240, 160, 30)  # blue: up, orange: down


class TMaze(gym.Env[int, int]):
    """A corridor of ``corridor`` moves from the first cell to a junction with an arm up and an arm down.

    Observations ``Discrete(4)``: 0 or 1 in the first cell is the cue (0: the goal is up, 1: it is down), 2 a corridor
    cell, 3 the junction. Actions ``Discrete(3)``: 0 forward, 1 up, 2 down. Up and down before the junction and forward
    at the junction only let time pass. Up or down at the junction ends the episode, with reward 1 if that arm has
    the goal and 0 if not. The cue is drawn evenly at reset; nothing else is random.

    With memory the best success is exactly 1 (and the return 1). Without memory it is exactly 0.5: at the junction both
    cues look the same, so that a memoryless policy goes up with the same probability p after either, and succeeds with
    (p + (1 - p)) / 2 at best; what it does in the first cell can only keep it from getting there.

    An episode is truncated after ``max_steps``, by default 5 corridor + 10: a uniformly random policy needs
    3 (corridor + 0.5) steps on average, and finishes in time in more than 99 % of the episodes.
    ``info["is_success"]`` (bool) comes with every step, so that a time limit around the maze cannot hide a failure.

    Raises ``ValueError`` if ``corridor`` or ``max_steps`` is not a whole number, if ``corridor`` < 1, or if
    ``max_steps`` < corridor + 1, too few to reach an arm.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (as Gymnasium declares it)

    def __init__(self, corridor: int = 10, max_steps: int | None = None, render_mode: str | None = None) -> None:
        for name, value in (("corridor", corridor), ("max_steps", max_steps)):
            if value is not None and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, not {value}")
        if corridor < 1:
            raise ValueError(f"corridor must be at least 1, not {corridor}")
        if max_steps is not None and max_steps < corridor + 1:
            raise ValueError(f"max_steps must be at least corridor + 1 = {corridor + 1}, not {max_steps}")
        self.corridor = corridor
        self.max_steps = 5 * corridor + 10 if max_steps is None else max_steps
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(4)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(3)  # type: ignore[assignment]
        self._cue = 0
        self._cell = 0
        self._row = 1  # 0 in the upper arm, 2 in the lower
        self._step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Draws the cue and puts the agent into the first cell."""
        super().reset(seed=seed)
        self._cue = int(self.np_random.integers(2))
        self._cell = 0
        self._row = 1
        self._step_count = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One move, or none."""
        self._step_count += 1
        terminated = self._cell == self.corridor and action != FORWARD
        success = bool(terminated and action == (UP, DOWN)[self._cue])
        if action == FORWARD and self._cell < self.corridor:
            self._cell += 1
        if terminated:
            self._row = 0 if action == UP else 2
        truncated = self._step_count >= self.max_steps
        return self._observe(), float(success), bool(terminated), truncated, {"is_success": success}

    def _observe(self) -> int:
        if self._cell == 0:
            return self._cue
        return JUNCTION if self._cell == self.corridor else CORRIDOR

    def render(self) -> NDArray[np.uint8] | None:
        """(72, 24 (corridor + 1), 3) uint8 in mode "rgb_array", else None.

        The agent is red, the goal green, the first cell blue if the goal is up and orange if it is down.
        """
        if self.render_mode != "rgb_array":
            return None
        cells = np.full((3, self.corridor + 1, 3), WALL, dtype=np.uint8)
        cells[1] = FLOOR
        cells[1, 0] = CUES[self._cue]
        cells[::2, -1] = FLOOR
        cells[2 * self._cue, -1] = GOAL
        picture = cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
        top, left, margin = self._row * CELL_PIXELS, self._cell * CELL_PIXELS, CELL_PIXELS // 4
        picture[top + margin : top + CELL_PIXELS - margin, left + margin : left + CELL_PIXELS - margin] = AGENT
        return picture
