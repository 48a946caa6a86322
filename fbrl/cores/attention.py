"""Attention over a window of slots: what the cores that attend share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def readable_mask(length: Tensor, episode_start: Tensor, window: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What each step may read.

    Args:
        length: how many slots are readable before the first step, (B,) int64.
        episode_start: (B, T) bool.
        window: M.
        dtype: of the mask.

    Returns:
        (T, B, M + 1), to be added to the scores of the window, oldest first, and of the null slot: 0 where
        readable, -inf elsewhere; and the length after the last step, (B,) int64.
    """
    steps = episode_start.shape[1]
    time = torch.arange(steps, device=length.device)
    empty_at = torch.where(episode_start, time, -length.unsqueeze(1))  # when the length was 0
    if steps > 1:  # of one there is nothing to accumulate, and ONNX knows no cummax
        empty_at = empty_at.cummax(dim=1).values
    distance = torch.arange(window, -1, -1, device=length.device)
    readable = distance <= (time - empty_at).t().unsqueeze(-1)
    mask = torch.zeros(readable.shape, dtype=dtype, device=length.device).masked_fill_(~readable, -math.inf)
    return mask, (steps - empty_at[:, -1]).clamp(max=window)


def by_head(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, M, D) -> (B, H, M, D/H)."""
    by_slot: Tensor = x.unflatten(-1, (heads, -1))
    return by_slot.transpose(1, 2)


def skew(window: Tensor) -> Tensor:
    """What each step has for its own window, (..., T, M), put where the slots are, (..., T, M + T); -inf elsewhere.

    Step t reads the slots t .. t + M - 1. Each row padded by T + 1 and the padding's last T left out, row t
    of the same numbers with one column less begins t columns later.
    """
    steps, slots = window.shape[-2:]
    padded = F.pad(window, (0, steps + 1), value=-math.inf).flatten(-2)
    skewed: Tensor = padded[..., :-steps].unflatten(-1, (steps, slots + steps))
    return skewed
