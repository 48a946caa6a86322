"""Many things to remember that change on the way: pairs of key and value that are bound anew, balls under swapped cups.

Both first show what there is, one thing a step and nothing asked. Every later step asks for one thing as it stands, and
then changes something, so that nothing in a step tells its answer; the last one only asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.supervised.programs import NO_ANSWER

Arrays = NDArray[np.int64]
SET, COPY, SWAP, NOTHING = range(4)  # what a step does
Changes = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Pairs:
    """Key and value pairs, asked for the value of any key.

    A step reads what it does, a key, its new value or another key, and the key that it asks for.

    With memory the best accuracy is 1. Without it is 1 / values: whatever is asked was drawn evenly, once, in a step
    before, and no later step depends on what was drawn.

    Args:
        keys: each is shown with a value first, in an order that is drawn.
        values: each as probable as the next, also those that are bound later.
        changes: how many keys are bound anew.
        kind: ``absolute``: a key, drawn evenly, gets a value. ``relative``: it gets a value, or what another key has,
            or the two keys swap, each as probable as the next: what a key has may depend on what others had.
    """

    keys: int = 4
    values: int = 8
    changes: int = 16
    kind: Changes = "absolute"

    n_places = 4

    def __post_init__(self) -> None:
        _check(self, keys=2, values=2, changes=1)
        if self.kind not in get_args(Changes):
            raise ValueError(f"kind must be one of {', '.join(get_args(Changes))}, got {self.kind!r}")

    @property
    def steps(self) -> int:
        """T, of a sequence."""
        return self.keys + self.changes + 1

    @property
    def n_tokens(self) -> int:
        """Values and keys share the third place; in the fourth, 0 is that nothing is asked."""
        return max(self.values + self.keys, 4)

    @property
    def n_answers(self) -> int:
        """The number of values."""
        return self.values

    def sample(self, rng: Random, batch: int) -> tuple[Arrays, Arrays]:
        """Tokens (B, T, 4) and the value that is asked for (B, T), T = keys + changes + 1."""
        draw = np.random.default_rng(rng.getrandbits(64))
        tokens = np.zeros((batch, self.steps, 4), dtype=np.int64)
        shown, changed = tokens[:, : self.keys], tokens[:, self.keys :]
        every = np.broadcast_to(np.arange(self.keys), (batch, self.keys))
        shown[..., 1] = draw.permuted(every, axis=1)
        shown[..., 2] = draw.integers(self.values, size=shown.shape[:2])
        one, other = _two(draw, self.keys, changed.shape[:2])
        changed[..., 0] = draw.integers(3, size=one.shape) if self.kind == "relative" else SET
        changed[..., 1] = one
        value = draw.integers(self.values, size=one.shape)
        changed[..., 2] = np.where(changed[..., 0] == SET, value, self.values + other)
        changed[..., 3] = 1 + draw.integers(self.keys, size=one.shape)
        changed[:, -1, :3] = NOTHING, 0, 0
        return tokens, self.answers(tokens)

    def answers(self, tokens: Arrays, known: tuple[int, ...] = (SET, COPY, SWAP)) -> Arrays:
        """What tokens (B, T, 4) ask for, (B, T), to one who follows what is ``known`` only."""
        rows = np.arange(len(tokens))
        held = np.zeros((len(tokens), self.keys), dtype=np.int64)
        answers = np.full(tokens.shape[:2], NO_ANSWER)
        for t in range(tokens.shape[1]):
            does, key, third, asked = tokens[:, t].T
            answers[:, t] = np.where(asked > 0, held[rows, asked - 1], NO_ANSWER)
            before, other = held.copy(), (third - self.values).clip(min=0)
            moved, swaps = np.isin(does, known) & (does != NOTHING), (does == SWAP) & (SWAP in known)
            held[rows, key] = np.where(moved, np.where(does == SET, third, before[rows, other]), before[rows, key])
            held[rows, other] = np.where(swaps, before[rows, key], held[rows, other])
        return answers

    def rules(self, rng: Random, batch: int) -> dict[str, float]:
        """The accuracy of a rule that knows of no copies and swaps; of absolute changes, of one that knows of none."""
        tokens, answers = self.sample(rng, batch)
        if self.kind == "absolute":
            tokens[:, self.keys :, 0] = NOTHING
        return {"what was shown or set last": _share(self.answers(tokens, known=(SET,)), answers)}


@dataclass(frozen=True)
class Cups:
    """Several different balls under cups that are swapped, two at a time; asked where any of them is.

    A step reads what it does, a ball or a cup, another cup, and the ball that it asks for.

    With memory the best accuracy is 1. Without it is 1 / cups: a ball's first place is drawn evenly and independent of
    the swaps, and a permutation keeps it so.

    Args:
        cups: how many there are.
        balls: how many of them have one, each under a cup of its own.
        changes: how many swaps there are.
    """

    cups: int = 8
    balls: int = 4
    changes: int = 16

    n_places = 4

    def __post_init__(self) -> None:
        _check(self, cups=2, balls=1, changes=1)
        if self.balls > self.cups:
            raise ValueError(f"balls must be at most cups, got balls={self.balls} and cups={self.cups}")

    @property
    def steps(self) -> int:
        """T, of a sequence."""
        return self.balls + self.changes + 1

    @property
    def n_tokens(self) -> int:
        """Cups and balls share the second place; in the fourth, 0 is that nothing is asked."""
        return max(self.cups + self.balls, 4)

    @property
    def n_answers(self) -> int:
        """The number of cups."""
        return self.cups

    def sample(self, rng: Random, batch: int) -> tuple[Arrays, Arrays]:
        """Tokens (B, T, 4) and the cup that is asked for (B, T), T = balls + changes + 1."""
        draw = np.random.default_rng(rng.getrandbits(64))
        tokens = np.zeros((batch, self.steps, 4), dtype=np.int64)
        shown, changed = tokens[:, : self.balls], tokens[:, self.balls :]
        for place, number in ((1, self.balls), (2, self.cups)):
            every = np.broadcast_to(np.arange(number), (batch, number))
            shown[..., place] = draw.permuted(every, axis=1)[:, : self.balls]
        shown[..., 1] += self.cups
        one, other = _two(draw, self.cups, changed.shape[:2])
        changed[..., 0] = SWAP
        changed[..., 1], changed[..., 2] = one, other
        changed[..., 3] = 1 + draw.integers(self.balls, size=one.shape)
        changed[:, -1, :3] = NOTHING, 0, 0
        return tokens, self.answers(tokens)

    def answers(self, tokens: Arrays, known: tuple[int, ...] = (SET, SWAP)) -> Arrays:
        """What tokens (B, T, 4) ask for, (B, T), to one who follows what is ``known`` only."""
        rows = np.arange(len(tokens))
        where = np.zeros((len(tokens), self.balls), dtype=np.int64)
        answers = np.full(tokens.shape[:2], NO_ANSWER)
        for t in range(tokens.shape[1]):
            does, second, cup, asked = tokens[:, t].T
            answers[:, t] = np.where(asked > 0, where[rows, asked - 1], NO_ANSWER)
            sets, swaps = does == SET, (does == SWAP) & (SWAP in known)
            where[rows[sets], second[sets] - self.cups] = cup[sets]
            one, other = second[:, None], cup[:, None]
            moved = np.where(where == one, other, np.where(where == other, one, where))
            where = np.where(swaps[:, None], moved, where)
        return answers

    def rules(self, rng: Random, batch: int) -> dict[str, float]:
        """The accuracy of a rule that knows of no swaps."""
        tokens, answers = self.sample(rng, batch)
        return {"where it was at first": _share(self.answers(tokens, known=(SET,)), answers)}


def size_of(task: Pairs | Cups) -> int:
    """How many things there are to remember."""
    return task.keys if isinstance(task, Pairs) else task.balls


def _check(task: object, **least: int) -> None:
    for name, number in least.items():
        if getattr(task, name) < number:
            raise ValueError(f"{name} must be at least {number}, got {getattr(task, name)}")


def _two(draw: np.random.Generator, number: int, shape: tuple[int, ...]) -> tuple[Arrays, Arrays]:
    """Two different ones of ``number``, drawn evenly, of that shape."""
    one = draw.integers(number, size=shape)
    return one, (one + draw.integers(1, number, size=shape)) % number


def _share(given: Arrays, answers: Arrays) -> float:
    due = answers != NO_ANSWER
    return float((given == answers)[due].mean())
