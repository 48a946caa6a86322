"""Sequences of steps, as ``evaluate_actions`` takes them, and parallel passes over them with any number of cores."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from fbrl.cores.core import Core, State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_passes import parallel_passes
from fbrl.cores.twin import TwinCore


@dataclass
class Iterate:
    """The memory vectors that parallel passes over some sequences start from, and leave behind."""

    memories: Tensor  # (B, T, D); of an actor's core and a critic's, (B, T, 2 D)
    passes: int

    def run(self, core: Core, x: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        """``core.forward`` by parallel passes, of which the memory vectors stay behind.

        ``core`` is a ``FeedbackTransformer`` or a ``TwinCore`` of two.
        """
        cores, states = [core], [state]
        if isinstance(core, TwinCore):
            cores, states = [core.pi, core.vf], list(core.split(state))
        n, features, after, memories = len(cores), [], [], []
        for one, x_one, state_one, written in zip(
            cores, x.chunk(n, dim=-1), states, self.memories.chunk(n, dim=-1), strict=True
        ):
            assert isinstance(one, FeedbackTransformer)
            done = parallel_passes(one, x_one, state_one, episode_starts, written, self.passes)
            features.append(done[0])
            after.append(done[1])
            memories.append(done[2].detach())
        self.memories = torch.cat(memories, dim=-1)
        return torch.cat(features, dim=-1), after[0] if n == 1 else tuple(itertools.chain(*after))


class Sequences(NamedTuple):
    """B sequences of T time steps, as ``evaluate_actions`` takes them in the place of observations."""

    observations: PyTorchObs  # (B, T, ...), or a dict of them
    episode_starts: Tensor  # (B, T) bool
    state: State  # the core's state before the first step, tensors (B, ...)
    iterate: Iterate | None = None  # for parallel passes in the place of the scan; renewed by ``evaluate_actions``
