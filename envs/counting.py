"""Counting: how many marks were there among the blanks?"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole

MARK, QUESTION = 0, 1


class Counting(BatchTask):
    """A row of marks and blanks, and the question how many marks there were.

    Observations (2,) of 0 and 1: a mark, the question; a blank is neither. Actions ``Discrete(most + 1)``: the number;
    without effect before the question, which is the last step. The number of marks is even on 0..``most``; that of
    marks and blanks together is even on ``shortest``..``longest`` and independent of it, so that neither the time
    nor the share of marks gives the number; the places are drawn evenly. A right answer is rewarded with 1 and is
    success.

    With memory the best return and success are exactly 1. Without memory they are exactly 1 / (most + 1), with any
    policy: the question looks the same after any number of marks.

    Raises ``ValueError`` if ``most`` < 1, ``shortest`` < most, or ``longest`` < shortest.
    """

    def __init__(self, n_envs: int, most: int = 9, shortest: int = 20, longest: int = 40) -> None:
        super().__init__(n_envs)
        check_whole("most", most, 1)
        check_whole("shortest", shortest, most)
        check_whole("longest", longest, shortest)
        self.most, self.shortest, self.longest = most, shortest, longest
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(most + 1)
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._count = np.zeros(n_envs, dtype=np.int64)
        self._question = np.zeros(n_envs, dtype=np.int64)  # the step that asks
        self._shown = np.zeros((n_envs, longest + 2, 2), dtype=np.float32)  # the observations; zeros after the end

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the number of marks, that of steps, and the places."""
        count, question = rng.integers(self.most + 1), rng.integers(self.shortest, self.longest + 1)
        self._shown[index] = 0
        self._shown[index, rng.permutation(question)[:count], MARK] = 1
        self._shown[index, question, QUESTION] = 1
        self._count[index], self._question[index], self._t[index] = count, question, 0

    def observe(self) -> NDArray[np.float32]:
        """(N, 2); zeros after the last step."""
        observations: NDArray[np.float32] = self._shown[self.rows, self._t]
        return observations

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """The answer where asked, and the next mark or blank."""
        ended = self._t == self._question
        right = ended & (actions == self._count)
        self._t += 1
        return Outcome(right.astype(np.float64), ended, np.zeros_like(ended), right)


class CountingEnv(TaskEnv):
    """One ``Counting``."""

    task_class = Counting
