"""A core that reads tokens and answers at every step: how it is trained, and how its answers are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.supervised.programs import NO_ANSWER
from fbrl.cores.core import Core, State


class Task(Protocol):
    """What makes sequences of tokens, and the answers."""

    @property
    def n_tokens(self) -> int:
        """How many different ones there are."""

    @property
    def n_places(self) -> int:
        """P, how many of them a step reads."""

    @property
    def n_answers(self) -> int:
        """How many different ones there are."""

    def sample(self, rng: Random, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (B, T, P), and answers (B, T), ``NO_ANSWER`` where none is due."""

    def rules(self, rng: Random, batch: int) -> dict[str, float]:
        """The accuracy of rules that do less than the whole task, by name."""


class Reader(nn.Module):
    """Reads tokens and answers at every step."""

    def __init__(self, core: Core, task: Task) -> None:
        super().__init__()
        self.core = core
        self.embedding = nn.Embedding(task.n_places * task.n_tokens, core.d_model)
        self.norm = nn.LayerNorm(core.d_model)
        self.head = nn.Linear(core.d_model, task.n_answers)
        self.first: Tensor  # of each place's own embeddings, the index of the first
        self.register_buffer("first", torch.arange(task.n_places) * task.n_tokens)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens (B, T, P) -> logits (B, T, answers) and the state after; without a state a sequence begins."""
        begins = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        x = self.norm(self.embedding(tokens + self.first).sum(dim=2))
        features, state = self.core(x, self.core.initial_state(len(tokens)) if state is None else state, begins)
        return self.head(features), state


def factor(step: int, warm_up: int, steps: int) -> float:
    """Of the learning rate: up in a line, down along a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@dataclass(frozen=True)
class Plan:
    """How a reader is trained."""

    batch: int  # sequences
    segment: int  # steps that are read, and back-propagated through, at a time
    steps: int  # updates, one a segment
    learning_rate: float
    warm_up: int  # updates
    clip: float  # the gradient's norm


class Trainer:
    """Trains a reader; one step is one segment of one batch."""

    def __init__(self, reader: Reader, task: Task, plan: Plan, seed: int, device: str) -> None:
        self.reader, self.task, self.plan, self.device = reader, task, plan, device
        self.rng = Random(seed)
        self.optimiser = torch.optim.Adam(reader.parameters(), lr=plan.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: factor(step, plan.warm_up, plan.steps)
        )
        self.parts: list[tuple[Tensor, Tensor]] = []  # what is left of the batch, the next segment last
        self.state: State | None = None

    def step(self) -> float:
        """One update; gives the loss, the mean over the answers that were due."""
        if not self.parts:
            pair = [torch.from_numpy(part).to(self.device) for part in self.task.sample(self.rng, self.plan.batch)]
            self.parts = list(zip(*(part.split(self.plan.segment, dim=1) for part in pair), strict=True))[::-1]
            self.state = None
        tokens, answers = self.parts.pop()
        logits, self.state = self.reader(tokens, self.state)
        total = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=NO_ANSWER, reduction="sum")
        loss = total / (answers != NO_ANSWER).sum().clamp(min=1)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.reader.parameters(), self.plan.clip)
        self.optimiser.step()
        self.schedule.step()
        return loss.item()


class Score(NamedTuple):
    """How many answers were due at each step of held-out sequences, how many right; the same of each one's last."""

    asked: NDArray[np.int64]  # (T,)
    right: NDArray[np.int64]  # (T,)
    sequences: int  # those in which an answer was due
    last_right: int

    @property
    def accuracy(self) -> float:
        """Over all answers."""
        return float(self.right.sum() / self.asked.sum())


def score(answers: NDArray[np.int64], given: NDArray[np.int64]) -> Score:
    """Of answers (B, T)."""
    due = answers != NO_ANSWER
    right = due & (answers == given)
    any_due = due.any(axis=1)
    last = due.shape[1] - 1 - due[:, ::-1].argmax(axis=1)
    last_right = right[np.arange(len(right)), last] & any_due
    return Score(due.sum(axis=0), right.sum(axis=0), int(any_due.sum()), int(last_right.sum()))


@torch.no_grad()
def answer(reader: Reader, tokens: NDArray[np.int64], segment: int, device: str, batch: int = 512) -> NDArray[np.int64]:
    """The most probable answers (B, T)."""
    given = []
    for rows in torch.from_numpy(tokens).split(batch):
        state, parts = None, []
        for part in rows.to(device).split(segment, dim=1):
            logits, state = reader(part, state)
            parts.append(logits.argmax(dim=-1).cpu())
        given.append(torch.cat(parts, dim=1))
    found: NDArray[np.int64] = torch.cat(given).numpy()
    return found
