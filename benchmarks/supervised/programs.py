"""Programs to be run in one's head: a re-creation of the algorithmic task of Fan et al. 2020 (arXiv 2002.09402).

    x = 5 ;            once for each variable, a number from 1 to 10
    x ++ ;  x -- ;     where the value stays within 1 .. 10
    if x < 7 : y ++ ;  or >, and a variable in the place of the number; inside stands one of the three above
    print x ;          the question: which number is shown

A program is drawn statement by statement: a kind, each as probable as the next, and its parts; what cannot be (a
variable that has no value yet, a value out of range) is drawn again. The answer is due at the last token of ``print``.
What is inside an ``if`` that does not hold was possible all the same.

Taken from the authors' own data (facebookresearch/transformer-sequential, data/gen_data_algo_seq.py, read for what it
makes and written anew here): the statements, the numbers, the names, 100 statements a program, 3 or 5 variables. What
differs: programs are drawn afresh for every batch, where theirs are 10,000 that are read again and again; each is read
from an empty memory, where theirs follow one another in one stream; and a whole statement can be read in one step, so
that a program of 48 statements takes 48 steps and not two hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

NAMES = ("x", "y", "z", "p", "r")
LOWEST, HIGHEST = 1, 10
TOKENS = ("END", ";", "=", "++", "--", "if", "<", ">", ":", "print", *NAMES, *map(str, range(LOWEST, HIGHEST + 1)))
CHANGES = ("=", "++", "--")
KINDS = (*CHANGES, "if", "print")
INDEX = {token: index for index, token in enumerate(TOKENS)}
LONGEST = 9  # tokens of a statement: if x < y : z = 1 ;
NO_ANSWER = -100  # what torch's cross-entropy ignores

Statement = list[str]
Values = dict[str, int]


def draw_statement(rng: Random, names: tuple[str, ...], values: Values, kinds: tuple[str, ...] = KINDS) -> Statement:
    """A statement that can follow where the variables have these values."""
    while True:
        kind = rng.choice(kinds)
        if kind != "if":
            statement = _simple(rng, kind, names, values)
        elif statement := _condition(rng, values):
            statement += draw_statement(rng, names, values, CHANGES)
        if statement:
            return statement


def _condition(rng: Random, values: Values) -> Statement | None:
    """``if x < 7 :``, or None where it cannot be."""
    others = rng.random() < 0.5
    if len(values) < 1 + others:
        return None
    name, *other = rng.sample(sorted(values), 1 + others)
    return ["if", name, rng.choice("<>"), other[0] if other else str(rng.randint(LOWEST, HIGHEST)), ":"]


def _simple(rng: Random, kind: str, names: tuple[str, ...], values: Values) -> Statement | None:
    """A statement without a condition, or None where it cannot be."""
    possible = [name for name in names if (name in values) == (kind != "=")]
    if not possible:
        return None
    name = rng.choice(possible)
    if kind == "=":
        return [name, "=", str(rng.randint(LOWEST, HIGHEST)), ";"]
    if kind == "print":
        return ["print", name, ";"]
    return None if values[name] == {"++": HIGHEST, "--": LOWEST}[kind] else [name, kind, ";"]


def execute(statement: Statement, values: Values) -> int | None:
    """Runs one statement: changes ``values``; gives the number that is shown, if one is."""
    if statement[0] == "if":
        _, name, sign, other, _, *inside = statement
        compared = values[other] if other in values else int(other)
        holds = values[name] < compared if sign == "<" else values[name] > compared
        return execute(inside, values) if holds else None
    if statement[0] == "print":
        return values[statement[1]]
    name, kind = statement[:2]
    values[name] = int(statement[2]) if kind == "=" else values[name] + (1 if kind == "++" else -1)
    return None


def without_conditions(program: list[Statement]) -> list[int | None]:
    """What each statement would show were nothing inside an ``if`` ever run: counting, and no running, finds this."""
    values: Values = {}
    shown = []
    for statement in program:
        try:
            shown.append(execute(statement, values) if statement[0] != "if" else None)
        except KeyError:  # of a variable that only an ``if`` gave its value
            shown.append(None)
    return shown


@dataclass(frozen=True)
class Programs:
    """The task.

    Args:
        variables: how many, 1 to 5.
        statements: of a program.
        whole: a step reads a statement; otherwise a token.
    """

    variables: int = 3
    statements: int = 24
    whole: bool = True

    n_tokens = len(TOKENS)
    n_answers = HIGHEST - LOWEST + 1

    def __post_init__(self) -> None:
        if not 1 <= self.variables <= len(NAMES):
            raise ValueError(f"variables must be from 1 to {len(NAMES)}, got {self.variables}")
        if self.statements < 1:
            raise ValueError(f"statements must be at least 1, got {self.statements}")

    @property
    def n_places(self) -> int:
        """P, how many tokens a step reads."""
        return LONGEST if self.whole else 1

    def draw(self, rng: Random) -> tuple[list[Statement], list[int | None]]:
        """A program, and what each of its statements shows."""
        values: Values = {}
        program, shown = [], []
        for _ in range(self.statements):
            program.append(draw_statement(rng, NAMES[: self.variables], values))
            shown.append(execute(program[-1], values))
        return program, shown

    def sample(self, rng: Random, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Programs, filled up with ``END`` to the longest.

        Returns:
            tokens (B, T, P), and the answers (B, T): which number, from 0, or ``NO_ANSWER``.
        """
        return self.encode([self.draw(rng) for _ in range(batch)])

    def encode(
        self, drawn: list[tuple[list[Statement], list[int | None]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As ``sample`` gives them."""
        read = [self._read(*program) for program in drawn]
        steps = max(len(rows) for rows, _ in read)
        tokens = np.full((len(read), steps, self.n_places), INDEX["END"])
        answers = np.full((len(read), steps), NO_ANSWER)
        for b, (rows, shown) in enumerate(read):
            for t, (row, number) in enumerate(zip(rows, shown, strict=True)):
                tokens[b, t, : len(row)] = [INDEX[token] for token in row]
                if number is not None:
                    answers[b, t] = number - LOWEST
        return tokens, answers

    def _read(self, program: list[Statement], shown: list[int | None]) -> tuple[list[Statement], list[int | None]]:
        """What each step reads, and what it is to answer."""
        if self.whole:
            return program, shown
        tokens, due = [], []
        for statement, number in zip(program, shown, strict=True):
            tokens += [[token] for token in statement]
            due += [*[None] * (len(statement) - 1), number]
        return tokens, due

    def rules(self, rng: Random, batch: int) -> dict[str, float]:
        """The accuracy of rules that do less than run the program."""
        drawn = [self.draw(rng) for _ in range(batch)]
        guesses = [number for program, _ in drawn for number in without_conditions(program)]
        shown = [number for _, numbers in drawn for number in numbers]
        asked = [(guess, number) for guess, number in zip(guesses, shown, strict=True) if number is not None]
        return {"without conditions": sum(guess == number for guess, number in asked) / len(asked)}
