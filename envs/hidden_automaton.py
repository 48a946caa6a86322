"""The hidden automaton: follow a ball under swapped cups, and say where it is when asked."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.batch import BatchTask, Outcome, TaskEnv, check_whole


class HiddenAutomaton(BatchTask):
    """A ball under one of ``states`` cups, shown in the first step; every later step swaps two cups, drawn evenly.

    Observations (states + pairs + 1,) of 0 and 1, pairs = states (states - 1) / 2: the cup with the ball, in the first
    step only; the two cups that this step swaps, as one of the pairs (0, 1), (0, 2), ..., in all later steps; and
    whether this step asks. Actions ``Discrete(states)``: where the ball is after this step's swap; without effect
    where nothing is asked. An episode has ``length`` steps and ``questions`` of them ask, drawn evenly among all but
    the first; the last step always asks. Each right answer is rewarded with 1 / questions, and an episode in which
    all answers are right is a success.

    With memory the best return and success are exactly 1. Swaps are permutations: what was shown never becomes
    irrelevant, and one step that is left out leaves more than one cup possible. No window shorter than the episode
    suffices.

    Without memory every policy's return is exactly 1 / states. The ball's first place is even and independent of swaps
    and questions, and a permutation keeps it so: given all swaps and all questions the ball is under each cup with
    probability 1 / states, and so is each answer right that does not depend on what the first step showed. Success
    needs a right last answer, so that it is at most 1 / states, and exactly that with one question. With more it is far
    less: one answer to all questions has .0039 with the default sizes.

    Raises ``ValueError`` if ``states`` < 2, ``length`` < 2, or ``questions`` is not in 1..length - 1.
    """

    def __init__(self, n_envs: int, states: int = 5, questions: int = 4, length: int = 32) -> None:
        super().__init__(n_envs)
        check_whole("states", states, 2)
        check_whole("length", length, 2)
        check_whole("questions", questions, 1, length - 1)
        self.states, self.questions, self.length = states, questions, length
        self.pairs = list(combinations(range(states), 2))
        size = states + len(self.pairs) + 1
        self.observation_space = spaces.Box(0, 1, (size,), np.float32)
        self.action_space = spaces.Discrete(states)
        # row s: cup s is shown; row states + p: pair p is shown; last row: nothing is, after the end
        self._codes = np.eye(size, dtype=np.float32)
        self._codes[-1] = 0
        self._moves = np.tile(np.arange(states), (size, 1))  # (row, cup) -> cup
        for row, (one, other) in enumerate(self.pairs, start=states):
            self._moves[row, [one, other]] = other, one
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._ball = np.zeros(n_envs, dtype=np.int64)
        self._shown = np.full((n_envs, length + 1), size - 1)  # rows of the tables
        self._asked = np.zeros((n_envs, length + 1), dtype=bool)
        self._right = np.zeros(n_envs, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the ball, the swaps and the questions."""
        self._ball[index] = self._shown[index, 0] = rng.integers(self.states)
        self._shown[index, 1:-1] = rng.integers(self.states, self.states + len(self.pairs), size=self.length - 1)
        self._asked[index] = False
        self._asked[index, 1 + rng.permutation(self.length - 2)[: self.questions - 1]] = True
        self._asked[index, -2] = True
        self._t[index] = self._right[index] = 0

    def observe(self) -> NDArray[np.float32]:
        """(N, states + pairs + 1); zeros after the last step."""
        observations: NDArray[np.float32] = self._codes[self._shown[self.rows, self._t]]
        observations[:, -1] = self._asked[self.rows, self._t]
        return observations

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """Answers where asked, and the next swap."""
        right = self._asked[self.rows, self._t] & (actions == self._ball)
        self._right += right
        self._t += 1
        self._ball = self._moves[self._shown[self.rows, self._t], self._ball]
        ended = self._t == self.length
        success = ended & (self._right == self.questions)
        return Outcome(right / self.questions, ended, np.zeros_like(ended), success)

    def cue_info(self) -> dict[str, Any]:
        """Of the first environment: where the ball is, whether that is shown, and whether it is asked."""
        t, ball = int(self._t[0]), int(self._ball[0])
        return {"cue": str(ball), "cue_in_view": t == 0, "decision": bool(self._asked[0, t])}


class HiddenAutomatonEnv(TaskEnv):
    """One ``HiddenAutomaton``."""

    task_class = HiddenAutomaton
    task: HiddenAutomaton

    def cue_info(self) -> dict[str, Any]:
        """What ``envs.cue`` adds to ``info``."""
        return self.task.cue_info()
