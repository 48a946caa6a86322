"""The water maze on a grid: find a hidden place, and come back to it from elsewhere the shortest way."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole
from envs.grid_walk import next_cells


class WaterMaze(BatchTask):
    """``size`` x ``size`` cells, one of which is the goal; nothing shows it before the agent stands on it.

    The goal and the first cell are drawn evenly from all pairs of two cells. On the goal, the agent is told that it has
    found it; the step after that puts it, whatever it does, into a cell drawn evenly from all others. From there it has
    to come back within ``slack`` steps of the shortest way: reward 1 and success if it does, the end if not.

    Observations (2 size + 1,) of 0 and 1: the agent's row, its column, and whether it has found the goal. Actions
    ``Discrete(4)``: up, down, left, right; a wall stops the agent. The search is truncated after ``search`` steps, by
    default as many as going to the nearest corner and sweeping all rows from there can take.

    With memory the best return and success are exactly 1: sweep, remember where the goal was, and go there.

    Without memory and slack, they are exactly W / (n (n - 1)) on an even ``size``, n = size^2 cells. W is the greatest
    sum of the lengths of n ways, one from each cell, each counted as far as it is a shortest way, where all ways that
    enter a cell leave it in the same direction. W is 8, 74 and 256 with 2, 4 and 6 cells a side (by integer
    programming), so that the best is 2/3, 0.3083 and, by default, 0.2032. Proof: on an even size there is a round
    through all cells, which always finds the goal in time. To come back from s to g in time is to go a shortest way,
    which enters no cell twice: its probability is linear in what is drawn in each cell, and so is the sum over all s
    and g, which is greatest where nothing is drawn. Then the goals that are reached from s in time are those on its way
    as far as that is a shortest one.

    On any size and with slack they are at most sum_s (D(s) + slack) / (n (n - 1)), D(s) the distance from s to the
    cell farthest from it; 0.1964 with 7 x 7 cells and no slack. Proof: after the goal is found, the way X_1, X_2,
    ... from a cell s does not depend on the goal g, which is even among the n - 1 others. g counts only if it is
    reached by the time d(s, g) + slack <= D(s) + slack, and at each time the agent is in one cell:
    sum_g P(reached in time) <= sum_g sum_(t <= D(s) + slack) P(X_t = g) <= D(s) + slack.

    Raises ``ValueError`` if ``size`` < 2, ``slack`` < 0 or ``search`` < 1.
    """

    def __init__(self, n_envs: int, size: int = 6, slack: int = 0, search: int | None = None) -> None:
        super().__init__(n_envs)
        check_whole("size", size, 2)
        check_whole("slack", slack, 0)
        self.size, self.slack, self.n_cells = size, slack, size * size
        self.search = self.n_cells - 1 + 2 * ((size - 1) // 2) if search is None else search
        check_whole("search", self.search, 1)
        self.observation_space = spaces.Box(0, 1, (2 * size + 1,), np.float32)
        self.action_space = spaces.Discrete(4)
        self.next_cell = next_cells(size)
        rows, columns = np.divmod(np.arange(self.n_cells), size)
        self.distance = abs(rows - rows[:, None]) + abs(columns - columns[:, None])
        self._codes = np.zeros((self.n_cells, 2 * size + 1), dtype=np.float32)
        self._codes[np.arange(self.n_cells), rows] = 1
        self._codes[np.arange(self.n_cells), size + columns] = 1
        self.goal, self.cell, self._elsewhere = (np.zeros(n_envs, dtype=np.int64) for _ in range(3))
        self.found = np.zeros(n_envs, dtype=bool)
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._left = np.zeros(n_envs, dtype=np.int64)  # steps left to come back

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the goal, the first cell, and the one that finding the goal leads to."""
        goal, *others = rng.integers(self.n_cells), rng.integers(self.n_cells - 1), rng.integers(self.n_cells - 1)
        self.goal[index] = goal
        self.cell[index], self._elsewhere[index] = (other + (other >= goal) for other in others)
        self.found[index] = False
        self._t[index] = 0

    def observe(self) -> NDArray[np.float32]:
        """(N, 2 size + 1)."""
        observations: NDArray[np.float32] = self._codes[self.cell]
        observations[:, -1] = self.found
        return observations

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """One move, or being put elsewhere."""
        self._t += 1
        put = self.found & (self.cell == self.goal)
        coming_back = self.found & ~put
        self.cell = np.where(put, self._elsewhere, self.next_cell[self.cell, actions])
        self._left = np.where(put, self.distance[self.cell, self.goal] + self.slack, self._left - 1)
        there = self.cell == self.goal
        self.found |= there
        success = coming_back & there
        terminated = coming_back & (there | (self._left == 0))
        truncated = ~self.found & (self._t >= self.search)
        return Outcome(success.astype(np.float64), terminated, truncated, success)


class WaterMazeEnv(TaskEnv):
    """One ``WaterMaze``."""

    task_class = WaterMaze
