"""Acting with the compiled scan: one step, with the window's keys and values kept from the step before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fbrl.cores.compiled_arrays import Sizes, Tape, room_for, tape_shapes
from fbrl.cores.compiled_forward import forward, start
from fbrl.cores.compiled_products import are
from fbrl.cores.compiled_scan import blocks_of, check, in_threads, packed, sizes_of
from fbrl.cores.core import Actor, State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.watch import Watch
from fbrl.memory import Memory

AT_ONCE = 64  # sequences of a block: a step reads every key once, and no cache holds them until the next


class Kept:
    """Says whether a core's weights are still what they were, as ``Watch`` does, and compares all values at once."""

    def __init__(self, core: FeedbackTransformer) -> None:
        weights = [weight.detach() for weight in core.parameters()]
        dense = all(weight.is_contiguous() and weight.dtype == weights[0].dtype for weight in weights)
        self.watch = Watch(core, [] if dense else weights)
        weights = weights if dense else weights[:0]
        self.addresses = np.array([weight.data_ptr() for weight in weights], np.int64)
        self.sizes = np.array([weight.numel() for weight in weights], np.int64)
        self.values = torch.cat([weight.flatten() for weight in weights] or [core.distance.new_empty(0)]).numpy()

    def unchanged(self) -> bool:
        """Whether all weights are what they were."""
        return self.watch.unchanged() and bool(are(self.addresses, self.sizes, self.values))


class CompiledActor(Actor):
    """Acts on a CPU; otherwise as ``FeedbackActor`` of ``fbrl.cores.feedback_scan``.

    Args:
        core: acts.
        state: from here on.
        weights: gives the core's weights, as ``group`` takes them.
    """

    core: FeedbackTransformer
    state: Memory

    def __init__(self, core: FeedbackTransformer, state: State, weights: Callable[[], list[Tensor]]) -> None:
        super().__init__(core, Memory(*state))
        self.weights = weights
        self.room, self.t = 8, 0  # little at first, for those who take one step
        self.kept: Kept | None = None

    @torch.no_grad()
    def step(self, x: Tensor, episode_start: Tensor) -> tuple[Tensor, Memory]:
        """One step, see ``Actor``."""
        B, D = len(self.state.length), self.core.d_model
        check(x=(x.shape, (B, D)), episode_start=(episode_start.shape, (B,)))
        length = self.state.length.clamp(0, self.core.window).masked_fill(episode_start, 0)
        self._make_room(length)
        x = x.to(self.slots.dtype).unsqueeze(1).contiguous()
        outputs, written = torch.empty_like(x), self.slots[self.core.window + self.t].unsqueeze(1)
        arrays = [tensor.numpy() for tensor in (x, length, episode_start.unsqueeze(1))]
        found = outputs.numpy(), written.numpy()

        def run(i: int) -> None:
            forward(self.blocks[i][0], self.t, self.core.window, *arrays, self.packed, self.tapes[i], *found)

        in_threads(run, len(self.blocks))
        self.t += 1
        window = self.slots[self.t : self.t + self.core.window].transpose(0, 1)
        self.state = Memory(window, length)
        norm = self.core.ln_out
        return F.layer_norm(outputs.squeeze(1), norm.normalized_shape, norm.weight, norm.bias, norm.eps), self.state

    def _make_room(self, length: Tensor) -> None:
        """Sees to it that there is room for a step that reads ``length`` (B,) slots, and that keys are up to date."""
        core = self.core
        if self.kept is None or not self.kept.unchanged():
            weights = self.weights()
            self.sizes = sizes_of(core.n_heads, weights)
            self.packed, _ = packed(weights, self.sizes)
            self.kept = Kept(core)
        elif self.t == self.room:
            self.room = max(core.window, 32)
        else:
            return
        slots = self.state.slots.contiguous()
        self.blocks = blocks_of(len(slots), AT_ONCE)
        self.tapes = [new_tape(slots, self.sizes, b, self.room) for _, b in self.blocks]
        for (first, _), tape in zip(self.blocks, self.tapes, strict=True):
            start(first, slots.numpy(), length.numpy(), going_on(length).numpy(), self.packed, tape)
        self.slots = slots.new_empty(core.window + self.room, *slots[:, 0].shape)
        self.slots[: core.window] = slots.transpose(0, 1)
        self.t = 0


def going_on(length: Tensor) -> Tensor:
    """No episode start in any row (B, 1)."""
    return torch.zeros(len(length), 1, dtype=torch.bool)


def new_tape(like: Tensor, sizes: Sizes, b: int, room: int) -> Tape:
    """For b sequences and ``room`` steps, one at a time."""
    shapes = tape_shapes(sizes, b, room, saves=False)
    flat = like.new_empty(room_for(shapes))
    return Tape.of(flat.numpy(), shapes, torch.empty(1, b, dtype=torch.int64).numpy())
