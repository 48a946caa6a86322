"""The Feedback Transformer in its fast form: the function of ``fbrl.cores.feedback``, same parameters and result.

What depends on no earlier step is computed for all steps at once. The recurrence that is left is one
``torch.autograd.Function`` with a hand-written backward:

- each memory vector is normed and projected once, into one buffer of M + T keys and values, in which step t
  reads the slots t .. t + M - 1 and writes the slot t + M;
- the slot t + M is still zero when step t reads. Read along with the window it is the null slot: score 0, value 0;
- a key (value) gets its gradient when the step that wrote it is reached: one product of the later steps'
  scores (attention) with their queries (output gradients);
- each weight's gradient is one matrix product over all steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fbrl.cores.attention import by_head, readable_mask
from fbrl.cores.core import Actor, State
from fbrl.cores.feedback import FeedbackLayer, FeedbackTransformer
from fbrl.cores.feedback_backward import scan_gradients
from fbrl.cores.feedback_forward import Forward, Tape, group, new_tape, norm, scan
from fbrl.cores.forms import Form, form_of
from fbrl.cores.graphs import ScanGraphs
from fbrl.cores.watch import Watch
from fbrl.memory import Memory, blank_unreadable


class FastFeedbackTransformer(FeedbackTransformer):
    """``FeedbackTransformer`` with a faster ``forward``; everything else, saved weights included, is the same.

    Under autocast the scan runs, and answers, in the parameters' own precision. Its second derivatives are not
    implemented: asking for them raises ``RuntimeError``. Under the transforms of ``torch.func`` it is the plain form.

    Attributes:
        form: what computes the scan. ``auto`` is, in single or double precision and where nothing traces, the compiled
            form (``fbrl.cores.compiled_scan``) on a CPU with numba, and that of Triton kernels
            (``fbrl.cores.feedback_triton``) on a GPU that has them and for sizes that fit; the fast form of this file
            elsewhere. ``compiled``, ``triton``, ``fast`` and ``plain`` are one of them everywhere. Not saved with the
            weights.
        cuda_graphs: whether the fast form's scans with gradients on a GPU become CUDA graphs, one for each shape that
            comes again (see ``fbrl.cores.graphs``). Not saved with the weights.
    """

    form: Form = "auto"
    cuda_graphs = True
    _graphs: ScanGraphs | None = None

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, Memory]:
        """``step`` over time: x (B, T, D), a ``Memory``, episode_start (B, T) bool -> (B, T, D), memory.

        No gradient flows into the memory that the sequence starts with.
        """
        # the transforms know no backward written by hand
        if self.form == "plain" or torch._C._are_functorch_transforms_active():
            return super().forward(x, state, episode_start)
        slots, length = state[0].detach(), state[1]
        with _autocast_off(x.device.type) as was_on:
            if was_on:
                x, slots = x.to(self.distance.dtype), slots.to(self.distance.dtype)
            form = form_of(self.form, x, slots, self.distance)
            if form == "compiled":
                outputs, written, length = self._compiled_scan(x, slots, length, episode_start)
                features, recent = self.ln_out(outputs), written[:, -self.window :]
            else:
                readable = blank_unreadable(slots, length.masked_fill(episode_start[:, 0], 0))
                mask, length = readable_mask(length, episode_start, self.window, x.dtype)
                scan = self._triton_scan if form == "triton" else self._scan
                outputs, written = scan(x.transpose(0, 1).contiguous(), readable, mask)
                features = self.ln_out(outputs).transpose(0, 1).contiguous()
                recent = written[-self.window :].transpose(0, 1)
            slots = torch.cat([slots[:, x.shape[1] :], recent], dim=1)
        return features, Memory(slots, length)

    def _compiled_scan(
        self, x: Tensor, slots: Tensor, length: Tensor, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x^L and the memory vectors, (B, T, D) each, and the length after the last step."""
        from fbrl.cores.compiled_scan import compiled_scan  # numba is an extra

        return compiled_scan(self.n_heads, x, slots, length, episode_start, self._weights())

    def _triton_scan(self, x: Tensor, slots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As ``_scan``."""
        from fbrl.cores.feedback_triton import triton_scan  # Triton is an extra

        return triton_scan(self.n_heads, x, *self._project(slots), mask, self._weights())

    def _scan(self, x: Tensor, slots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x^0 (T, B, D), initial slots (B, M, D), mask (T, B, M + 1) -> x^L and the memory vectors, (T, B, D) each."""
        weights = self._weights()
        saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        arguments = (x, *self._project(slots), mask, *weights)
        if saves and self.cuda_graphs and _on_gpu(x):
            self._graphs = self._graphs or ScanGraphs(scan, scan_gradients)
            replayed = self._graphs(self.n_heads, *arguments)
            if replayed is not None:
                return replayed
        return _recurrence(saves, self.n_heads, *arguments)

    def _project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of memory vectors, both of the same shape (B, M, D)."""
        n = self.ln_m(slots)
        return self.w_k(n), self.w_v(n)

    def _weights(self) -> list[Tensor]:
        """As ``group`` takes them."""
        ln, w_k, w_v = self.ln_m, self.w_k.weight, self.w_v.weight
        weights: list[Tensor] = [self.mix.softmax(dim=0), self.distance, ln.weight, ln.bias, w_k, w_v]
        for layer in self.layers:
            assert isinstance(layer, FeedbackLayer)
            ln_1, ln_2, w_1, w_2 = layer.ln_1, layer.ln_2, layer.w_1, layer.w_2
            weights += [ln_1.weight, ln_1.bias, layer.w_q.weight, layer.w_o.weight]
            weights += [ln_2.weight, ln_2.bias, w_1.weight, w_1.bias, w_2.weight, w_2.bias]
        return weights

    def actor(self, state: State) -> Actor:
        """What acts from ``state``, a ``Memory``, on: keys and values are kept from step to step."""
        # a subclass is to act as it learns
        if self.form == "plain" or type(self).forward is not FastFeedbackTransformer.forward:
            return super().actor(state)
        if self.form != "triton" and form_of(self.form, state[0], state[0], self.distance) == "compiled":
            from fbrl.cores.compiled_actor import CompiledActor  # numba is an extra

            return CompiledActor(self, state, self._weights)
        return FeedbackActor(self, state)


class FeedbackActor(Actor):
    """Acts with the window's keys and values kept: a step projects one memory vector and not M of them.

    Memory vectors are only ever appended, so that a state that was handed out stays as it was. Once the room for
    them is full, the window moves to a new one. Where the weights were changed, in whatever way, keys and values are
    made anew.
    """

    core: FastFeedbackTransformer
    state: Memory
    forward: Forward

    def __init__(self, core: FastFeedbackTransformer, state: State) -> None:
        super().__init__(core, Memory(*state))
        self.room, self.t = 8, 0  # little at first, for those who take one step
        slots, window = self.state.slots, core.window
        # by length: rows of one vector, each beginning one place further than the last
        hidden = slots.new_full((window,), -math.inf)
        self.masks = torch.cat([hidden, slots.new_zeros(window + 1)]).as_strided((window + 1, window + 1), (1, 1))
        self.mask = slots.new_empty(len(slots), window + 1)
        self.watch: Watch | None = None

    @torch.no_grad()
    def step(self, x: Tensor, episode_start: Tensor) -> tuple[Tensor, Memory]:
        """One step, see ``Actor``."""
        with _autocast_off(x.device.type):
            length = self.state.length.masked_fill(episode_start, 0)
            self._make_room(length)
            torch.index_select(self.masks, 0, length, out=self.mask)
            forward, x, ln_out = self.forward, x.to(self.mask.dtype), self.core.ln_out
            q = forward.first_queries(x).view(-1, forward.d_head)
            h = forward.step(self.t, x, self.mask, q, forward.by_distance(q, self.mask))
            features = norm(h, ln_out.weight, ln_out.bias)[0]
            forward.project(self.t)
            self.t += 1
            window = self.slots[self.t : self.t + self.core.window].transpose(0, 1)
            self.state = Memory(window, (length + 1).clamp_(max=self.core.window))
        return features, self.state

    def _make_room(self, length: Tensor) -> None:
        """Sees to it that there is room for a step that reads ``length`` (B,) slots, and that keys are up to date."""
        core, slots = self.core, self.state.slots
        if self.watch is None or not self.watch.unchanged():
            made = core._project(blank_unreadable(slots, length))
            kv: Sequence[Tensor] = [by_head(half, core.n_heads) for half in made]
            copied = [core.w_k.weight, core.w_v.weight, *core.ln_m.parameters(), core.distance]
            self.watch = Watch(core, [*copied, *_not_among(core.parameters(), core._weights())])
        elif self.t == self.room:
            kv = self.forward.tape.kv[:, :, self.room :].unflatten(1, (len(slots), -1)).unbind(0)
            self.room = max(core.window, 32)
        else:
            return
        self.slots = slots.new_empty(core.window + self.room, *slots[:, 0].shape)
        self.slots[: core.window] = slots.transpose(0, 1)
        shared, layers = group(core._weights())
        tape = new_tape(False, slots[:, 0], self.room, kv, layers)._replace(m=self.slots[core.window :])
        self.forward = Forward(False, tape, shared, layers)
        self.t = 0


def _not_among(parameters: Iterable[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """The parameters that are no weights themselves: weights are made of them, as the mix is, or a parametrization."""
    return [parameter for parameter in parameters if all(parameter is not weight for weight in weights)]


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


@contextlib.contextmanager
def _autocast_off(device_type: str) -> Iterator[bool]:
    """Switches autocast off inside; gives whether it was on."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            yield True
    else:
        yield False


class _Recurrence(torch.autograd.Function):
    """``scan``, from x^0 and the initial keys and values to x^L and the memory vectors, with its gradients."""

    @staticmethod
    def forward(ctx: Any, saves: bool, heads: int, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        outputs, tape = scan(saves, heads, *arguments)
        if saves:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tape, *arguments[4:])
        return outputs, tape.m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor | None, written: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, kept = ctx.saved_tensors, len(Tape._fields)  # read once: torch.utils.checkpoint allows no more
        tape, weights = Tape(*saved[:kept]), saved[kept:]
        outputs, written = (torch.zeros_like(tape.m) if grad is None else grad for grad in (outputs, written))
        with _autocast_off(outputs.device.type):
            d_x, d_k, d_v, *d_weights = scan_gradients(tape, weights, outputs, written)
        return None, None, d_x, d_k, d_v, None, *d_weights


_recurrence: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
