"""T-mazes in a row: remember each cue until its junction, and then no longer."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole
from envs.tmaze import CORRIDOR, DOWN, FORWARD, JUNCTION, UP


class EndlessTMaze(BatchTask):
    """Corridors one after the other, each with a cue of its own in its first cell and a junction at its end.

    Observations ``Discrete(4)``: 0 or 1 in the first cell of a corridor is its cue (0: up is right, 1: down is right),
    2 a corridor cell, 3 the junction. Actions ``Discrete(3)``: 0 forward, 1 up, 2 down. Up and down before the junction
    and forward at the junction only let time pass. Up or down at the junction leads into the first cell of the next
    corridor, whether it was right or wrong, with a reward of 1 / ``corridors`` if it was right; after the last one the
    episode ends. It succeeds if all turns were right. A corridor has ``shortest`` to ``longest`` moves from its first
    cell to its junction; its length and its cue are drawn evenly, and nothing else is random.

    With memory the best success is exactly 1 (and the return 1). Without memory the best return is exactly 0.5 and the
    best success 0.5 to the power of ``corridors``: what a memoryless policy does at a junction does not depend on the
    corridor's cue, which is 0 or 1 evenly and independent of all the others.

    An episode is truncated after ``max_steps``, by default 5 corridors (longest + 1).

    Raises ``ValueError`` if an argument is not a whole number, if ``corridors`` or ``shortest`` is less than 1,
    ``longest`` < ``shortest``, or ``max_steps`` less than the longest maze takes.
    """

    def __init__(
        self, n_envs: int, corridors: int = 5, shortest: int = 2, longest: int = 6, max_steps: int | None = None
    ) -> None:
        super().__init__(n_envs)
        check_whole("corridors", corridors, 1)
        check_whole("shortest", shortest, 1)
        check_whole("longest", longest, shortest)
        self.max_steps = 5 * corridors * (longest + 1) if max_steps is None else max_steps
        check_whole("max_steps", self.max_steps, corridors * (longest + 1))
        self.corridors, self.shortest, self.longest = corridors, shortest, longest
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Discrete(3)
        self.cues = np.zeros((n_envs, corridors), dtype=np.int64)
        self.lengths = np.ones((n_envs, corridors), dtype=np.int64)
        self.corridor = np.zeros(n_envs, dtype=np.int64)  # the number of the one that the agent is in
        self.cell = np.zeros(n_envs, dtype=np.int64)  # in its corridor
        self.right = np.zeros(n_envs, dtype=np.int64)  # turns
        self._t = np.zeros(n_envs, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws cues and lengths, and puts the agent into the first cell."""
        self.cues[index] = rng.integers(2, size=self.corridors)
        self.lengths[index] = rng.integers(self.shortest, self.longest + 1, size=self.corridors)
        self.corridor[index] = self.cell[index] = self.right[index] = self._t[index] = 0

    def observe(self) -> NDArray[np.int64]:
        """(N,)."""
        at_junction = self.cell == self.lengths[self.rows, self.corridor]
        shown = np.where(at_junction, JUNCTION, CORRIDOR)
        return np.where(self.cell == 0, self.cues[self.rows, self.corridor], shown)

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """One move, or none."""
        self._t += 1
        at_junction = self.cell == self.lengths[self.rows, self.corridor]
        turns = at_junction & ((actions == UP) | (actions == DOWN))
        is_right = turns & ((actions == DOWN) == self.cues[self.rows, self.corridor])
        self.cell += (actions == FORWARD) & ~at_junction
        self.right += is_right
        terminated = turns & (self.corridor == self.corridors - 1)
        leads_on = turns & ~terminated
        self.corridor += leads_on
        self.cell[leads_on] = 0
        success = terminated & (self.right == self.corridors)
        return Outcome(is_right / self.corridors, terminated, self._t >= self.max_steps, success)


class EndlessTMazeEnv(TaskEnv):
    """One ``EndlessTMaze``."""

    task_class = EndlessTMaze
