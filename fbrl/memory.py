"""The memory that a core carries from step to step: a value, passed in and handed back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def readable(slots: Tensor, length: Tensor) -> Tensor:
    """(B, M) bool: the rightmost ``length`` (B,) of the slots (B, M, ...)."""
    window = slots.shape[1]
    return torch.arange(window, device=slots.device) >= window - length.unsqueeze(1)


def blank_unreadable(slots: Tensor, length: Tensor) -> Tensor:
    """Slots (B, M, ...) with zeros where ``readable`` is false.

    Attention gives such a slot the weight zero, and zero times NaN or infinity is NaN: it must hold something finite.
    """
    mask = readable(slots, length)
    return slots.masked_fill(~mask.view(*mask.shape, *[1] * (slots.dim() - 2)), 0)


class Memory(NamedTuple):
    """The last M memory vectors of B sequences, newest last.

    Only the rightmost ``length[b]`` slots of row ``b`` were written in the current
    episode; what lies left of them has no effect, whatever it holds, NaN and infinity included.
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
        return readable(self.slots, self.length)

    def reset(self, episode_start: Tensor) -> Memory:
        """Forgets everything in the rows where ``episode_start`` (B,) bool is true."""
        return Memory(self.slots, self.length.masked_fill(episode_start, 0))

    def push(self, m: Tensor) -> Memory:
        """Writes the memory vectors ``m`` (B, D) of one step; the oldest slot falls out of a full window."""
        slots = torch.cat([self.slots[:, 1:], m.unsqueeze(1)], dim=1)
        return Memory(slots, (self.length + 1).clamp(max=self.slots.shape[1]))
