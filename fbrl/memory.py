"""The memory that a core carries from step to step: a value, passed in and handed back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """The last M memory vectors of B sequences, newest last.

    Only the rightmost ``length[b]`` slots of row ``b`` were written in the current
    episode; what lies left of them has no effect, whatever finite value it holds.
    """

    slots: Tensor  # (B, M, D) float
    length: Tensor  # (B,) int64, each in 0..M

    @classmethod
    def empty(
        cls,
        batch_size: int,
        window: int,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Memory:
        """A memory of B = ``batch_size`` rows, M = ``window`` slots of width D = ``d_model``, nothing readable."""
        return cls(
            torch.zeros(batch_size, window, d_model, device=device, dtype=dtype),
            torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    @property
    def readable(self) -> Tensor:
        """(B, M) bool: the slots that were written in the current episode."""
        window = self.slots.shape[1]
        slot = torch.arange(window, device=self.slots.device)
        return slot >= window - self.length.unsqueeze(1)

    def reset(self, episode_start: Tensor) -> Memory:
        """Forgets everything in the rows where ``episode_start`` (B,) bool is true."""
        return Memory(self.slots, self.length.masked_fill(episode_start, 0))

    def push(self, m: Tensor) -> Memory:
        """Writes the memory vectors ``m`` (B, D) of one step; the oldest slot falls out of a full window."""
        slots = torch.cat([self.slots[:, 1:], m.unsqueeze(1)], dim=1)
        return Memory(slots, (self.length + 1).clamp(max=self.slots.shape[1]))
