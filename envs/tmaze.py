"""The T-maze: remember one bit along a corridor, then turn the way it said. Actively: look for the bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole

FORWARD, UP, DOWN, BACK = 0, 1, 2, 3
CORRIDOR, JUNCTION = 2, 3
CELL_PIXELS = 24
WALL, FLOOR, AGENT, GOAL = (60, 60, 60), (230, 230, 230), (220, 50, 40), (60, 170, 75)
CUES = (40, 110, 220), (240, 160, 30)  # blue: up, orange: down


class TMaze(BatchTask):
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

    Raises ``ValueError`` if ``corridor`` or ``max_steps`` is not a whole number, if ``corridor`` < 1, or if
    ``max_steps`` < corridor + 1, too few to reach an arm.
    """

    n_actions = 3
    first = 0  # the cell where the agent starts; the cue is in cell 0
    fewest_more = 1  # steps that success takes, beyond the corridor's

    def __init__(self, n_envs: int, corridor: int = 10, max_steps: int | None = None) -> None:
        super().__init__(n_envs)
        check_whole("corridor", corridor, 1)
        self.max_steps = 5 * corridor + 10 if max_steps is None else max_steps
        check_whole("max_steps", self.max_steps, corridor + self.fewest_more)
        self.junction = self.first + corridor
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Discrete(self.n_actions)
        self.cue = np.zeros(n_envs, dtype=np.int64)
        self.cell = np.zeros(n_envs, dtype=np.int64)
        self.row = np.ones(n_envs, dtype=np.int64)  # 0 in the upper arm, 2 in the lower
        self._t = np.zeros(n_envs, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the cue and puts the agent into the first cell."""
        self.cue[index] = rng.integers(2)
        self.cell[index] = self.first
        self.row[index] = 1
        self._t[index] = 0

    def observe(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.where(self.cell == 0, self.cue, np.where(self.cell == self.junction, JUNCTION, CORRIDOR))

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """One move, or none."""
        self._t += 1
        up, down = actions == UP, actions == DOWN
        terminated = (self.cell == self.junction) & (up | down)
        success = terminated & (down == self.cue)
        self.row[terminated] = np.where(up, 0, 2)[terminated]
        self.cell += (actions == FORWARD) & (self.cell < self.junction)
        self.cell -= (actions == BACK) & (self.cell > 0)
        return Outcome(success.astype(np.float64), terminated, self._t >= self.max_steps, success)


class ActiveTMaze(TMaze):
    """A T-maze whose agent starts one cell away from the cue, and has to step back to see it.

    As ``TMaze``, but for the start and a fourth action, 3: back, which only lets time pass in the first cell. The start
    looks like the corridor, and the junction is ``corridor`` moves away from it.

    With memory the best success is exactly 1 (and the return 1): back, then the corridor, then the turn, corridor + 3
    steps. Without memory it is exactly 0.5, as in ``TMaze``: what is done at the junction cannot depend on the cue.

    An episode is truncated after ``max_steps``, by default 5 corridor + 10. A uniformly random policy walks to and
    fro, and finishes in time in 7 % of the episodes with a corridor of 10, hardly ever with a long one.

    Raises ``ValueError`` as ``TMaze``, and if ``max_steps`` < corridor + 3.
    """

    n_actions = 4
    first = 1
    fewest_more = 3


class TMazeEnv(TaskEnv):
    """One ``TMaze``, with a picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (as Gymnasium declares it)
    task_class = TMaze
    task: TMaze

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.render_mode = render_mode

    def cue_info(self) -> dict[str, Any]:
        """What ``envs.cue`` adds to ``info``."""
        cell = int(self.task.cell[0])
        cue = ("up", "down")[int(self.task.cue[0])]
        return {"cue": cue, "cue_in_view": cell == 0, "decision": cell == self.task.junction}

    def render(self) -> NDArray[np.uint8] | None:
        """(72, 24 cells, 3) uint8 in mode "rgb_array", else None; cells from the cue to the junction.

        The agent is red, the goal green, the first cell blue if the goal is up and orange if it is down.
        """
        if self.render_mode != "rgb_array":
            return None
        cue, cell, row = (int(part[0]) for part in (self.task.cue, self.task.cell, self.task.row))
        cells = np.full((3, self.task.junction + 1, 3), WALL, dtype=np.uint8)
        cells[1] = FLOOR
        cells[1, 0] = CUES[cue]
        cells[::2, -1] = FLOOR
        cells[2 * cue, -1] = GOAL
        picture = cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
        top, left, margin = row * CELL_PIXELS, cell * CELL_PIXELS, CELL_PIXELS // 4
        picture[top + margin : top + CELL_PIXELS - margin, left + margin : left + CELL_PIXELS - margin] = AGENT
        return picture


class ActiveTMazeEnv(TMazeEnv):
    """One ``ActiveTMaze``, with a picture."""

    task_class = ActiveTMaze
