"""The Feedback Transformer that carries keys and values from step to step in the place of memory vectors.

The function of ``fbrl.cores.feedback`` with the same weights, as long as these stay as they are: a step projects the
one vector that it writes and not all M. A state is twice as large. For an agent that learns no more; training needs
memory vectors, because keys and values are stale after an update.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fbrl.cores.core import Core, State
from fbrl.cores.feedback import FeedbackLayer, FeedbackTransformer
from fbrl.cores.feedback_once import mixed


class KeysAndValues(NamedTuple):
    """The keys and values of the last M memory vectors of B sequences, newest last; ``length`` as in ``Memory``."""

    keys: Tensor  # (B, H, M, D/H)
    values: Tensor  # (B, H, M, D/H)
    length: Tensor  # (B,) int64, each in 0..M


class FeedbackKeys(Core):
    """Acts as ``core`` does, from a state of keys and values.

    Args:
        core: whose weights it shares.
    """

    def __init__(self, core: FeedbackTransformer) -> None:
        super().__init__()
        self.core, self.d_model = core, core.d_model

    def initial_state(self, batch_size: int) -> KeysAndValues:
        """An empty memory for ``batch_size`` sequences, on the parameters' device."""
        memory = self.core.initial_state(batch_size)
        empty = memory.slots.unflatten(-1, (self.core.n_heads, -1)).transpose(1, 2)
        return KeysAndValues(empty, empty.clone(), memory.length)

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, KeysAndValues]:
        """See ``Core``."""
        features, state = [], KeysAndValues(*state)
        for x_t, start_t in zip(x.unbind(1), episode_start.unbind(1), strict=True):
            y_t, state = self.step(x_t, state._replace(length=state.length.masked_fill(start_t, 0)))
            features.append(y_t)
        return torch.stack(features, dim=1), state

    def step(self, x: Tensor, state: KeysAndValues) -> tuple[Tensor, KeysAndValues]:
        """One time step: x (B, D) and the state before it -> features (B, D) and the state after it."""
        core, M = self.core, self.core.window
        # the null slot stands last: its key, its embedding and its value are 0
        at = torch.arange(M + 1, device=state.length.device)
        readable = at >= M - state.length.unsqueeze(1)  # (B, M + 1)
        hidden = torch.where(readable, 0.0, -math.inf).to(x.dtype).view(-1, 1, 1, M + 1)
        shown = readable[:, :M].view(-1, 1, M, 1)
        k, v = (F.pad(torch.where(shown, kept, 0.0), (0, 0, 0, 1)) for kept in (state.keys, state.values))
        k, r = k.transpose(2, 3), F.pad(core.distance.flip(0), (0, 0, 0, 1)).t()
        outputs = [x]
        for layer in core.layers:
            assert isinstance(layer, FeedbackLayer)
            h = outputs[-1]
            q = layer.w_q(layer.ln_1(h)).view(-1, core.n_heads, 1, k.shape[2]) / math.sqrt(k.shape[2])
            attention = (q @ k + q @ r + hidden).softmax(dim=-1)  # (B, H, 1, M + 1)
            h = h + layer.w_o((attention @ v).flatten(1))
            outputs.append(h + layer.w_2(F.relu(layer.w_1(layer.ln_2(h)))))
        new = core.keys_values(mixed(core, outputs).squeeze(1))
        keys, values = (
            torch.cat([kept[:, :, 1:], part.unsqueeze(2)], dim=2)
            for kept, part in zip((state.keys, state.values), new, strict=True)
        )
        return core.ln_out(outputs[-1]), KeysAndValues(keys, values, (state.length + 1).clamp(max=M))
