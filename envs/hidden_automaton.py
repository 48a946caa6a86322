"""The hidden automaton: follow one or several balls under swapped cups, and say where one is when asked."""

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

    With ``balls`` > 1 the first ``balls`` steps show one ball each, under cups that differ, and ask nothing; a question
    is for one of the balls, drawn evenly. Observations are then longer by ``balls``: which ball is shown or asked for.
    What is said here of the ball holds for each, and so do the bounds on the return and on the success.

    Without memory every policy's return is exactly 1 / states. The ball's first place is even and independent of swaps
    and questions, and a permutation keeps it so: given all swaps and all questions the ball is under each cup with
    probability 1 / states, and so is each answer right that does not depend on what the first step showed. Success
    needs a right last answer, so that it is at most 1 / states, and exactly that with one question. With more it is far
    less: one answer to all questions has .0039 with the default sizes.

    Raises ``ValueError`` if ``states`` < 2, ``balls`` is not in 1..states, ``length`` <= ``balls``, or ``questions`` is
    not in 1..length - balls.
    """

    def __init__(self, n_envs: int, states: int = 5, questions: int = 4, length: int = 32, balls: int = 1) -> None:
        super().__init__(n_envs)
        check_whole("states", states, 2)
        check_whole("balls", balls, 1, states)
        check_whole("length", length, balls + 1)
        check_whole("questions", questions, 1, length - balls)
        self.states, self.questions, self.length, self.balls = states, questions, length, balls
        self.pairs = list(combinations(range(states), 2))
        size = states + len(self.pairs) + 1
        self.observation_space = spaces.Box(0, 1, (size + (balls if balls > 1 else 0),), np.float32)
        self.action_space = spaces.Discrete(states)
        # row s: cup s is shown; row states + p: pair p is shown; last row: nothing is, after the end
        self._codes = np.eye(size, dtype=np.float32)
        self._codes[-1] = 0
        self._moves = np.tile(np.arange(states), (size, 1))  # (row, cup) -> cup
        for row, (one, other) in enumerate(self.pairs, start=states):
            self._moves[row, [one, other]] = other, one
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._ball = np.zeros((n_envs, balls), dtype=np.int64)  # where each is
        self._which = np.zeros((n_envs, length + 1), dtype=np.int64)  # the ball that is shown or asked for
        self._which[:, :balls] = np.arange(balls)
        self._shown = np.full((n_envs, length + 1), size - 1)  # rows of the tables
        self._asked = np.zeros((n_envs, length + 1), dtype=bool)
        self._right = np.zeros(n_envs, dtype=np.int64)

    def start(self, index: int, rng: np.random.Generator) -> None:
        """Draws the balls, the swaps and the questions."""
        several, swaps = self.balls > 1, self.length - self.balls
        first = rng.permutation(self.states)[: self.balls] if several else rng.integers(self.states)
        self._ball[index] = self._shown[index, : self.balls] = first
        self._shown[index, self.balls : -1] = rng.integers(self.states, self.states + len(self.pairs), size=swaps)
        self._asked[index] = False
        self._asked[index, self.balls + rng.permutation(swaps - 1)[: self.questions - 1]] = True
        self._asked[index, -2] = True
        if several:
            self._which[index, self.balls : -1] = rng.integers(self.balls, size=swaps)
        self._t[index] = self._right[index] = 0

    def observe(self) -> NDArray[np.float32]:
        """(N, states + pairs + 1), with several balls (N, states + pairs + 1 + balls); zeros after the last step."""
        observations: NDArray[np.float32] = self._codes[self._shown[self.rows, self._t]]
        asked, which = self._asked[self.rows, self._t], self._which[self.rows, self._t]
        observations[:, -1] = asked
        if self.balls == 1:
            return observations
        named = np.eye(self.balls, dtype=np.float32)[which] * (asked | (self._t < self.balls))[:, None]
        return np.concatenate([observations, named], axis=1)

    def step(self, actions: NDArray[np.int64]) -> Outcome:
        """Answers where asked, and the next swap."""
        which = self._which[self.rows, self._t]
        right = self._asked[self.rows, self._t] & (actions == self._ball[self.rows, which])
        self._right += right
        self._t += 1
        self._ball = self._moves[self._shown[self.rows, self._t][:, None], self._ball]
        ended = self._t == self.length
        success = ended & (self._right == self.questions)
        return Outcome(right / self.questions, ended, np.zeros_like(ended), success)

    def cue_info(self) -> dict[str, Any]:
        """Of the first environment: where the balls are, whether that is shown, and whether it is asked."""
        t, places = int(self._t[0]), " ".join(map(str, self._ball[0]))
        return {"cue": places, "cue_in_view": t < self.balls, "decision": bool(self._asked[0, t])}


class HiddenAutomatonEnv(TaskEnv):
    """One ``HiddenAutomaton``."""

    task_class = HiddenAutomaton
    task: HiddenAutomaton

    def cue_info(self) -> dict[str, Any]:
        """What ``envs.cue`` adds to ``info``."""
        return self.task.cue_info()
