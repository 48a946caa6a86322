"""The random walk on a grid: say where you are from your moves alone (Fan et al. 2020, arXiv 2002.09402)."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (row, column): up, down, left, right
START, NOTHING = len(MOVES), len(MOVES) + 1


class GridWalk(BatchTask):
    """A walk on ``size`` x ``size`` cells that starts in the middle, ((size - 1) // 2 in both directions).

    Every step moves in one of four directions, drawn evenly; a wall stops it. Observations (5,) of 0 and 1: the last
    move, up, down, left or right, whether or not a wall stopped it; or that nothing moved yet. Actions
    ``Discrete(size^2)``: the cell, row by row. An episode has ``length`` steps, each of which asks. Each right
    answer is rewarded with 1 / length, and an episode in which all answers are right is a success.

    With memory the best return and success are exactly 1: the moves decide the cell.

    Without memory an answer is a function of the last move. The return is a sum over steps, so that its best is,
    exactly, the sum over the five observations of the largest probability of one cell:
    1/length sum_o max_c sum_t P(cell_t = c, o_t = o). With 5 x 5 cells and 32 steps it is 0.1147. Success is at most
    (5/8)^((length - 1) // 2) with size >= 3, 0.0009 with 32 steps: whatever the cell is and whatever is answered in the
    next two steps (even by a clock), at most 10 of the 16 ways to go on have two right answers. In the first of the
    two steps all four can be right. In the second one answer a move has to do for all cells where the walk may be, and
    two cells lead to one only at a wall: from a corner, two of the four moves stay, so that a move into that wall has
    3 of 4 right, and another move 2.

    Raises ``ValueError`` if ``size`` < 2 or ``length`` < 1.
    """

    def __init__(self, n_envs: int, size: int = 5, length: int = 32) -> None:
        super().__init__(n_envs)
        check_whole("size", size, 2)
        check_whole("length", length, 1)
        self.size, self.length = size, length
        self.observation_space = spaces.Box(0, 1, (START + 1,), np.float32)
        self.action_space = spaces.Discrete(size * size)
        self.middle = (size - 1) // 2 * (size + 1)
        self.next_cell = next_cells(size)
        self._codes = np.eye(NOTHING + 1, START + 1, dtype=np.float32)
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._cell = np.full(n_envs, self.middle)
        self._moves = np.full((n_envs, length + 1), NOTHING)
        self._right = np.zeros(n_envs, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the moves."""
        self._moves[index, 0] = START
        self._moves[index, 1:-1] = rng.integers(len(MOVES), size=self.length - 1)
        self._cell[index] = self.middle
        self._t[index] = self._right[index] = 0

    def observe(self) -> NDArray[np.float32]:
        """(N, 5); zeros after the last step."""
        observations: NDArray[np.float32] = self._codes[self._moves[self.rows, self._t]]
        return observations

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """The answer, and the next move."""
        right = actions == self._cell
        self._right += right
        self._t += 1
        self._cell = self.next_cell[self._cell, self._moves[self.rows, self._t]]
        ended = self._t == self.length
        return Outcome(right / self.length, ended, np.zeros_like(ended), ended & (self._right == self.length))


def next_cells(size: int) -> NDArray[np.int64]:
    """(size^2, 6): the cell after a move from a cell; START and NOTHING stay."""
    rows, columns = np.divmod(np.arange(size * size), size)
    steps = np.array([*MOVES, (0, 0), (0, 0)])
    rows = np.clip(rows[:, None] + steps[:, 0], 0, size - 1)
    return np.asarray(rows * size + np.clip(columns[:, None] + steps[:, 1], 0, size - 1), dtype=np.int64)


class GridWalkEnv(TaskEnv):
    """One ``GridWalk``."""

    task_class = GridWalk
