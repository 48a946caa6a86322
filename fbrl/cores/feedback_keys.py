"""The Feedback Transformer that carries keys and values from step to step in the place of memory vectors.

The function of ``fbrl.cores.feedback`` with the same weights, as long as these stay as they are: a step projects the
one vector that it writes and not all M. A state is twice as large. For an agent that learns no more; training needs
memory vectors, because keys and values are stale after an update.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fbrl.cores.core import Core, State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.memory import Memory, blank_unreadable


class KeysAndValues(NamedTuple):
    """The keys and values of the last M memory vectors of B sequences, newest last; ``length`` as in ``Memory``."""

    keys: Tensor  # (B, M, H, D/H)
    values: Tensor  # (B, M, H, D/H)
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
        empty = memory.slots.unflatten(-1, (self.core.n_heads, -1))
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
        core = self.core
        keys, values = Memory(state.keys, state.length), Memory(state.values, state.length)
        k, v = (blank_unreadable(kept.slots, kept.length) for kept in (keys, values))
        outputs = [x]
        for layer in core.layers:
            outputs.append(layer(outputs[-1], k, v, core.distance.flip(0), keys.readable)[0])
        k, v = core.keys_values(core.written(outputs))
        keys, values = keys.push(k), values.push(v)
        return core.ln_out(outputs[-1]), KeysAndValues(keys.slots, values.slots, keys.length)
