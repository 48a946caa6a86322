"""Parallel passes: the Feedback Transformer over a sequence without a loop over time.

The memory vectors of a sequence are the fixed point of the recurrence of ``fbrl.cores.feedback``. A pass takes all of
them as given, computes all T steps at once, and hands on the memory vectors that come out to the next pass. Started
from those that the scan wrote with the same weights, every pass gives what the scan gives. p passes carry the
gradient over p - 1 hops from a step to one that read it, each up to M steps long; T passes give the scan's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fbrl.cores.attention import by_head, readable_mask, skew
from fbrl.cores.core import State
from fbrl.cores.feedback import FeedbackLayer, FeedbackTransformer
from fbrl.memory import Memory, blank_unreadable


def parallel_passes(
    core: FeedbackTransformer, x: Tensor, state: State, episode_start: Tensor, memories: Tensor, passes: int
) -> tuple[Tensor, Memory, Tensor]:
    """``core.forward`` by parallel passes.

    No gradient flows into the memory that the sequence starts with, nor into ``memories``.

    Args:
        core: the weights.
        x: encoder output, (B, T, D).
        state: the ``Memory`` before the first step.
        episode_start: (B, T) bool.
        memories: the memory vectors that the first pass reads, (B, T, D); for example what the rollout wrote.
        passes: how many, at least 1.

    Returns:
        features (B, T, D), the memory after the last step, and the memory vectors of the last pass, (B, T, D).
    """
    slots, length = state[0].detach(), state[1]
    readable = blank_unreadable(slots, length.masked_fill(episode_start[:, 0], 0))
    mask, length = readable_mask(length, episode_start, core.window, x.dtype)
    mask = mask[..., :-1].transpose(0, 1)  # (B, T, M): without the null slot
    # what the last step of a sequence or of an episode wrote no step of the sequence reads
    unread = F.pad(episode_start[:, 1:], (0, 1), value=True).unsqueeze(-1)
    memories = memories.detach().masked_fill(unread, 0)
    for _ in range(passes):
        x_last, memories = _pass(core, x, torch.cat([readable, memories], dim=1), mask)
    after = torch.cat([slots, memories], dim=1)[:, x.shape[1] :]
    return core.ln_out(x_last), Memory(after, length), memories


def _pass(core: FeedbackTransformer, x: Tensor, written: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x^0 (B, T, D), initial and assumed memory vectors (B, M + T, D) -> x^L and the memory vectors, (B, T, D) each."""
    n = core.ln_m(written)
    k, v = (by_head(weight(n), core.n_heads) for weight in (core.w_k, core.w_v))  # (B, H, M + T, D/H)
    r = core.distance.flip(0).t()  # (D/H, M), the farthest first
    outputs = [x]
    for layer in core.layers:
        assert isinstance(layer, FeedbackLayer)
        h = outputs[-1]
        q = by_head(layer.w_q(layer.ln_1(h)), core.n_heads) / math.sqrt(len(r))  # (B, H, T, D/H)
        s = q @ k.transpose(2, 3) + skew(q @ r + mask.unsqueeze(1))  # (B, H, T, M + T)
        attention = F.pad(s, (1, 0)).softmax(dim=-1)[..., 1:]  # the null slot's score is 0, and so is its value
        h = h + layer.w_o((attention @ v).transpose(1, 2).flatten(2))
        outputs.append(h + layer.w_2(F.relu(layer.w_1(layer.ln_2(h)))))
    return outputs[-1], torch.einsum("l,lbtd->btd", core.mix.softmax(dim=0), torch.stack(outputs))
