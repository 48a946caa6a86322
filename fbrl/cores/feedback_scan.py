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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fbrl.cores.core import State
from fbrl.cores.feedback import FeedbackLayer, FeedbackTransformer
from fbrl.memory import Memory


class FastFeedbackTransformer(FeedbackTransformer):
    """``FeedbackTransformer`` with a faster ``forward``; everything else, saved weights included, is the same.

    Under autocast the scan runs, and answers, in the parameters' own precision. Its second derivatives are not
    implemented: asking for them raises ``RuntimeError``.
    """

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, Memory]:
        """``step`` over time: x (B, T, D), a ``Memory``, episode_start (B, T) bool -> (B, T, D), memory.

        No gradient flows into the memory that the sequence starts with.
        """
        slots, length = state[0].detach(), state[1]
        with _autocast_off(x.device.type) as was_on:
            if was_on:
                x, slots = x.to(self.distance.dtype), slots.to(self.distance.dtype)
            mask, length = readable_mask(length, episode_start, self.window, x.dtype)
            outputs, written = self._scan(x.transpose(0, 1).contiguous(), slots, mask)
            features = self.ln_out(outputs).transpose(0, 1).contiguous()
            slots = torch.cat([slots[:, x.shape[1] :], written[-self.window :].transpose(0, 1)], dim=1)
        return features, Memory(slots, length)

    def _scan(self, x: Tensor, slots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x^0 (T, B, D), initial slots (B, M, D), mask (T, B, M + 1) -> x^L and the memory vectors, (T, B, D) each."""
        n = self.ln_m(slots)
        k, v = self.w_k(n), self.w_v(n)
        ln, w_k, w_v = self.ln_m, self.w_k.weight, self.w_v.weight
        weights: list[Tensor] = [self.mix.softmax(dim=0), self.distance, ln.weight, ln.bias, w_k, w_v]
        for layer in self.layers:
            assert isinstance(layer, FeedbackLayer)
            ln_1, ln_2, w_1, w_2 = layer.ln_1, layer.ln_2, layer.w_1, layer.w_2
            weights += [ln_1.weight, ln_1.bias, layer.w_q.weight, layer.w_o.weight]
            weights += [ln_2.weight, ln_2.bias, w_1.weight, w_1.bias, w_2.weight, w_2.bias]
        saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        return _recurrence(saves, self.n_heads, x, k, v, mask, *weights)


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
    empty_at = torch.where(episode_start, time, -length.unsqueeze(1)).cummax(dim=1).values  # when the length was 0
    distance = torch.arange(window, -1, -1, device=length.device)
    readable = distance <= (time - empty_at).t().unsqueeze(-1)
    mask = torch.zeros(readable.shape, dtype=dtype, device=length.device).masked_fill_(~readable, -math.inf)
    return mask, (steps - empty_at[:, -1]).clamp(max=window)


@contextlib.contextmanager
def _autocast_off(device_type: str) -> Iterator[bool]:
    """Switches autocast off inside; gives whether it was on."""
    was_on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    with torch.autocast(device_type, enabled=False) if was_on else contextlib.nullcontext():
        yield was_on


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the last dimension; its mean and 1 / deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], gain, bias, 1e-5)


def _norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor) -> Tensor:
    """The gradient at ``x`` from the gradient at the norm."""
    mask = [True, False, False]
    d_x: Tensor = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, gain, None, mask)[0]
    return d_x


def _norm_gradients(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor) -> list[Tensor]:
    """The gradients of gain and bias from the gradient at the norm."""
    mask = [False, True, True]
    _, d_gain, d_bias = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, gain, torch.zeros_like(gain), mask
    )
    return [d_gain, d_bias]


def _relu_backward(grad: Tensor, y: Tensor, out: Tensor) -> None:
    """The gradient at the input of a relu from the gradient at its output ``y``."""
    torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=out)


def _linear_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight from the gradient at the output, (T, B, out), and the input, (T, B, in)."""
    return grad.flatten(0, 1).t() @ x.flatten(0, 1)


def _grid(tensor: Tensor) -> list[tuple[Tensor, ...]]:
    """``tensor[i, j]`` as ``grid[i][j]``: in the loop over time a slice would cost as much as a small product."""
    return [row.unbind(0) for row in tensor.unbind(0)]


def _skew(tensor: Tensor, width: int) -> Tensor:
    """(B H, T, L, slots) -> (T, L, B H, width), where row t begins at the slot t."""
    rows, steps, n_layers, _ = tensor.shape
    by_row, by_step, by_layer, _ = tensor.stride()
    return tensor.as_strided((steps, n_layers, rows, width), (by_step + 1, by_layer, by_row, 1))


class _Shared(NamedTuple):
    """The weights that all layers share."""

    mix: Tensor  # (L + 1,), after the softmax
    distance: Tensor  # (M, D/H), distance 1 first
    gain_m: Tensor
    bias_m: Tensor
    w_k: Tensor
    w_v: Tensor


class _Layer(NamedTuple):
    """The weights of one layer."""

    gain_1: Tensor
    bias_1: Tensor
    w_q: Tensor
    w_o: Tensor
    gain_2: Tensor
    bias_2: Tensor
    w_1: Tensor
    b_1: Tensor
    w_2: Tensor
    b_2: Tensor


def _group(weights: Sequence[Tensor]) -> tuple[_Shared, list[_Layer]]:
    first, size = len(_Shared._fields), len(_Layer._fields)
    return _Shared(*weights[:first]), [_Layer(*weights[i : i + size]) for i in range(first, len(weights), size)]


class _Tape(NamedTuple):
    """What the steps leave behind; where no backward will follow, all steps share the room of one."""

    x: Tensor  # (L + 1, T, B, D): x^0 .. x^L
    h: Tensor  # (L, T, B, D): after the attention
    u: Tensor  # (L, T, B, F): inside the feed-forward block
    o: Tensor  # (L, T, B, D): what the heads read
    q: Tensor  # (B H, T, L, D/H): queries
    attention: Tensor  # (B H, T, L, M + T): step t's at t .. t + M, the null slot last; zero elsewhere
    m: Tensor  # (T, B, D): memory vectors
    kv: Tensor  # (2, B H, M + T, D/H): keys and values


def _new_tape(saves: bool, heads: int, x: Tensor, k: Tensor, v: Tensor, layers: Sequence[_Layer]) -> _Tape:
    steps, batch, d_model = x.shape
    window, d_head = k.shape[1], d_model // heads
    n_layers, room = len(layers), steps if saves else 1

    def by_layer(n: int, width: int) -> Tensor:
        return x.new_empty(n, room, batch, width).expand(n, steps, batch, width)

    kv = x.new_zeros(2, batch, heads, window + steps, d_head)
    for half, initial in zip(kv.unbind(0), (k, v), strict=True):
        half[:, :, :window] = initial.unflatten(-1, (heads, d_head)).transpose(1, 2)
    return _Tape(
        x=by_layer(n_layers + 1, d_model),
        h=by_layer(n_layers, d_model),
        u=by_layer(n_layers, layers[0].b_1.shape[0]),
        o=by_layer(n_layers, d_model),
        q=x.new_empty(batch * heads, room, n_layers, d_head).expand(-1, steps, -1, -1),
        attention=x.new_zeros(batch * heads, room, n_layers, window + room).expand(-1, steps, -1, -1),
        m=x.new_empty(steps, batch, d_model),
        kv=kv.flatten(1, 2),
    )


class _Record:
    """The steps forwards; arguments as in ``_Recurrence.forward``."""

    def __init__(
        self,
        saves: bool,
        heads: int,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        shared: _Shared,
        layers: Sequence[_Layer],
    ) -> None:
        self.saves, self.shared, self.layers = saves, shared, layers
        self.batch, window, self.d_head = *k.shape[:2], k.shape[2] // heads
        self.scale = 1 / math.sqrt(self.d_head)
        self.inputs, self.mask = x.unbind(0), mask.unsqueeze(2).unbind(0)
        self.tape = tape = _new_tape(saves, heads, x, k, v, layers)
        self.x, self.h, self.u, self.o = _grid(tape.x), _grid(tape.h), _grid(tape.u), _grid(tape.o)
        if saves:
            self.q, self.attention = _grid(tape.q.permute(1, 2, 0, 3)), _grid(_skew(tape.attention, window + 1))
        self.keys, self.values = (half.unfold(1, window + 1, 1).unbind(1) for half in tape.kv)  # (B H, D/H, M + 1)
        self.slots = _grid(tape.kv[:, :, window:].transpose(1, 2))  # (B H, D/H)
        self.mixed, self.m = tape.x.flatten(2).unbind(1), tape.m.unbind(0)
        n = _norm(x, layers[0].gain_1, layers[0].bias_1)[0]
        self.q_1 = F.linear(n, layers[0].w_q).unbind(0)  # the first layer's queries, of all steps
        self.r = F.pad(shared.distance.flip(0), (0, 0, 0, 1)).t()  # (D/H, M + 1); 0 for the null slot
        self.scores = x.new_empty(self.batch, heads, window + 1)

    def run(self) -> Tensor:
        """Fills the tape and gives x^L, (T, B, D)."""
        outputs = torch.empty_like(self.tape.m)
        for t, output in enumerate(outputs.unbind(0)):
            h = self.x[0][t].copy_(self.inputs[t])
            for i in range(len(self.layers)):
                h = self.layer(t, i, h)
            output.copy_(h)
            self.write(t)
        return outputs

    def layer(self, t: int, i: int, h: Tensor) -> Tensor:
        """x^i (B, D) -> x^(i + 1) at step t."""
        w = self.layers[i]
        q = torch.mm(_norm(h, w.gain_1, w.bias_1)[0], w.w_q.t()) if i else self.q_1[t]
        self.attend(t, i, q.view(-1, self.d_head))
        h = torch.addmm(h, self.o[i][t], w.w_o.t(), out=self.h[i][t])
        u = torch.addmm(w.b_1, _norm(h, w.gain_2, w.bias_2)[0], w.w_1.t(), out=self.u[i][t]).relu_()
        return torch.addmm(w.b_2, u, w.w_2.t(), out=self.x[i + 1][t]).add_(h)

    def attend(self, t: int, i: int, q: Tensor) -> None:
        """Fills in what layer i's heads read at step t with the queries (B H, D/H)."""
        scores = self.scores.copy_(self.mask[t]).view(len(q), -1).addmm_(q, self.r, alpha=self.scale).unsqueeze(1)
        attention = scores.baddbmm_(q.unsqueeze(1), self.keys[t], alpha=self.scale).softmax(dim=-1)
        torch.bmm(attention, self.values[t].transpose(1, 2), out=self.o[i][t].view(len(q), 1, -1))
        if self.saves:
            self.q[t][i].copy_(q)
            self.attention[t][i].copy_(attention.squeeze(1))

    def write(self, t: int) -> None:
        """Makes the memory vector of step t, and its key and value unless no step is left to read them."""
        torch.mm(self.shared.mix.unsqueeze(0), self.mixed[t], out=self.m[t].view(1, -1))
        if t + 1 < len(self.m):
            n = _norm(self.m[t], self.shared.gain_m, self.shared.bias_m)[0]
            for half, weight in zip(self.slots, (self.shared.w_k, self.shared.w_v), strict=True):
                half[t].copy_(torch.mm(n, weight.t()).view(-1, self.d_head))


class _Slope(NamedTuple):
    """The gradients at what is on the tape."""

    x: Tensor  # (L + 1, T, B, D)
    h: Tensor  # (L, T, B, D)
    u: Tensor  # (L, T, B, F): before the relu
    o: Tensor  # (B H, T, L, D/H)
    q: Tensor  # (L, T, B, D)
    n_1: Tensor  # (L, T, B, D): LN1, and so on
    n_2: Tensor
    n_m: Tensor  # (T, B, D)
    products: Tensor  # (B H, T, L, M + T): q . (k + r), laid out as the attention, without the null slot
    m: Tensor  # (T, B, D)
    kv: Tensor  # (2, T, B, D): keys and values that the steps wrote


def _new_slope(tape: _Tape, written: Tensor) -> _Slope:
    empty, zeros = torch.empty_like, torch.zeros_like
    return _Slope(
        x=empty(tape.x),
        h=empty(tape.h),
        u=empty(tape.u),
        o=empty(tape.q),
        q=empty(tape.h),
        n_1=empty(tape.h),
        n_2=empty(tape.h),
        n_m=zeros(tape.m),  # the last step's stays, and so does kv's
        products=zeros(tape.attention),
        m=written.clone(),
        kv=tape.m.new_zeros(2, *tape.m.shape),
    )


class _Norm(NamedTuple):
    """A layer norm of all steps: its output and what going back through it takes."""

    y: Tensor
    x: Tensor
    mean: Tensor
    rstd: Tensor
    gain: Tensor

    @classmethod
    def of(cls, x: Tensor, gain: Tensor, bias: Tensor) -> _Norm:
        y, mean, rstd = _norm(x, gain, bias)
        return cls(y, x, mean, rstd, gain)

    def steps(self) -> list[tuple[Tensor, ...]]:
        """What ``_norm_backward`` takes besides the gradient, by step."""
        return [(*step, self.gain) for step in zip(*(part.unbind(0) for part in self[1:4]), strict=True)]


class _Rewind:
    """The steps backwards, from the gradients at x^L and, from outside the scan, at the memory vectors."""

    def __init__(
        self, tape: _Tape, outputs: Tensor, written: Tensor, shared: _Shared, layers: Sequence[_Layer]
    ) -> None:
        self.tape, self.shared, self.layers, self.outputs = tape, shared, layers, outputs.unbind(0)
        self.rows, steps, n_layers, d_head = tape.q.shape
        window, self.scale = len(shared.distance), 1 / math.sqrt(d_head)
        self.norm_m = _Norm.of(tape.m, shared.gain_m, shared.bias_m)
        self.norm_1 = [_Norm.of(x, w.gain_1, w.bias_1) for x, w in zip(tape.x, layers, strict=False)]
        self.norm_2 = [_Norm.of(h, w.gain_2, w.bias_2) for h, w in zip(tape.h, layers, strict=True)]
        self.steps_m, self.steps_1, self.steps_2 = (
            self.norm_m.steps(),
            [norm.steps() for norm in self.norm_1],
            [norm.steps() for norm in self.norm_2],
        )
        self.u, self.o = _grid(tape.u), _grid(tape.o.view(n_layers, steps, self.rows, d_head))
        self.attention = _grid(_skew(tape.attention, window))
        self.keys, self.values = (half.unfold(1, window, 1).unbind(1) for half in tape.kv)  # (B H, D/H, M)
        self.r, self.mix = shared.distance.flip(0), shared.mix.unsqueeze(1)
        self.slope = slope = _new_slope(tape, written)
        self.d_x, self.d_h, self.d_u, self.d_q = (_grid(part) for part in (slope.x, slope.h, slope.u, slope.q))
        self.d_n_1, self.d_n_2, self.d_n_m = _grid(slope.n_1), _grid(slope.n_2), slope.n_m.unbind(0)
        self.d_o, self.d_products = _grid(slope.o.permute(1, 2, 0, 3)), _grid(_skew(slope.products, window))
        self.d_mixed, self.d_m = slope.x.flatten(2).unbind(1), slope.m.unbind(0)

    def run(self) -> None:
        """Fills in the slope."""
        for t in reversed(range(len(self.outputs))):
            if t + 1 < len(self.outputs):
                self.memory_vector(t)
            torch.mm(self.mix, self.d_m[t].view(1, -1), out=self.d_mixed[t])
            self.d_x[-1][t].add_(self.outputs[t])
            for i in reversed(range(len(self.layers))):
                self.feed_forward(t, i)
                self.attend(t, i)
        self.first_queries()

    def memory_vector(self, t: int) -> None:
        """From the steps that read what step t wrote to its memory vector, by its key and its value."""
        window = len(self.r)
        later, slot = slice(t + 1, t + 1 + window), slice(window + t, window + t + 1)
        d_kv = self.slope.kv[:, t]
        for (weight, row), out in zip(self.pairs(), d_kv, strict=True):
            # Transposed, the column is a matrix that the batched product takes without a copy or a loop.
            column = weight[:, later, :, slot].flatten(1, 2).transpose(1, 2)
            torch.bmm(column, row[:, later].flatten(1, 2), out=out.view(self.rows, 1, -1))
        n = torch.mm(d_kv[0], self.shared.w_k, out=self.d_n_m[t]).addmm_(d_kv[1], self.shared.w_v)
        self.d_m[t].add_(_norm_backward(n, *self.steps_m[t]))

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What makes the gradient at the keys, and at the values."""
        return (self.slope.products, self.tape.q), (self.tape.attention, self.slope.o)

    def feed_forward(self, t: int, i: int) -> None:
        """From x^(i + 1) to what stands behind the heads."""
        w, d_x = self.layers[i], self.d_x[i + 1][t]
        _relu_backward(torch.mm(d_x, w.w_2), self.u[i][t], out=self.d_u[i][t])
        n = torch.mm(self.d_u[i][t], w.w_1, out=self.d_n_2[i][t])
        d_h = torch.add(d_x, _norm_backward(n, *self.steps_2[i][t]), out=self.d_h[i][t])
        self.d_x[i][t].add_(d_h)

    def attend(self, t: int, i: int) -> None:
        """From behind the heads to the scores and, above the first layer, by the queries to x^i."""
        w = self.layers[i]
        d_o = self.d_o[t][i].copy_(torch.mm(self.d_h[i][t], w.w_o).view(self.rows, -1)).unsqueeze(1)
        shift = torch.bmm(d_o, self.o[i][t].unsqueeze(2))  # attention times its gradient, summed over the slots
        products = torch.baddbmm(shift, d_o, self.values[t], beta=-self.scale, alpha=self.scale).squeeze(1)
        self.d_products[t][i].copy_(products.mul_(self.attention[t][i]))
        if i:
            q = torch.mm(products, self.r).unsqueeze(1).baddbmm_(products.unsqueeze(1), self.keys[t].transpose(1, 2))
            n = torch.mm(self.d_q[i][t].copy_(q.view(-1, len(w.w_q))), w.w_q, out=self.d_n_1[i][t])
            self.d_x[i][t].add_(_norm_backward(n, *self.steps_1[i][t]))

    def first_queries(self) -> None:
        """The first layer's queries, which no earlier step waits for, and what follows at x^0."""
        products = self.slope.products[:, :, 0]
        q = torch.bmm(products, self.tape.kv[0]).transpose(0, 1).contiguous()
        for d_q, d_products in zip(q.unbind(0), self.d_products, strict=True):
            d_q.addmm_(d_products[0], self.r)
        self.slope.q[0] = q.view(self.slope.q.shape[1:])
        torch.matmul(self.slope.q[0], self.layers[0].w_q, out=self.slope.n_1[0])
        self.slope.x[0] += _norm_backward(self.slope.n_1[0], *self.norm_1[0][1:])

    def initial_gradients(self) -> list[Tensor]:
        """At the keys and the values of the initial slots, (B, M, D) each."""
        batch, window = len(self.outputs[0]), len(self.r)
        found = [w[..., :window].flatten(1, 2).transpose(1, 2) @ row.flatten(1, 2) for w, row in self.pairs()]
        return [heads.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2) for heads in found]

    def weight_gradients(self) -> list[Tensor]:
        """In the order that ``_group`` takes the weights in."""
        tape, slope, norm_m = self.tape, self.slope, self.norm_m
        mix = torch.stack([torch.dot(x.flatten(), slope.m.flatten()) for x in tape.x])
        r = torch.zeros_like(self.r)
        for d_products, q in zip(_skew(slope.products, len(r)), tape.q.permute(1, 2, 0, 3), strict=True):
            r.addmm_(d_products.flatten(0, 1).t(), q.flatten(0, 1))
        gradients = [mix, r.flip(0), *_norm_gradients(slope.n_m, *norm_m[1:])]
        gradients += [_linear_gradient(half, norm_m.y) for half in slope.kv]
        for i, (norm_1, norm_2) in enumerate(zip(self.norm_1, self.norm_2, strict=True)):
            gradients += [
                *_norm_gradients(slope.n_1[i], *norm_1[1:]),
                _linear_gradient(slope.q[i], norm_1.y),
                _linear_gradient(slope.h[i], tape.o[i]),
                *_norm_gradients(slope.n_2[i], *norm_2[1:]),
                _linear_gradient(slope.u[i], norm_2.y),
                slope.u[i].sum((0, 1)),
                _linear_gradient(slope.x[i + 1], tape.u[i]),
                slope.x[i + 1].sum((0, 1)),
            ]
        return gradients


class _Recurrence(torch.autograd.Function):
    """The scan between the initial keys and values and the last layer norm."""

    @staticmethod
    def forward(
        ctx: Any, saves: bool, heads: int, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x^L and the memory vectors, (T, B, D) each.

        Args:
            ctx: torch's.
            saves: whether a backward may follow.
            heads: H.
            x: x^0, (T, B, D).
            k, v: keys and values of the initial slots, (B, M, D).
            mask: as ``readable_mask`` gives it.
            weights: as ``_group`` takes them.
        """
        record = _Record(saves, heads, x, k, v, mask, *_group(weights))
        outputs, tape = record.run(), record.tape
        if saves:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tape, *weights)
        return outputs, tape.m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor | None, written: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients at the arguments of ``forward``; ``None`` stands for zero."""
        kept = len(_Tape._fields)
        tape, (shared, layers) = _Tape(*ctx.saved_tensors[:kept]), _group(ctx.saved_tensors[kept:])
        outputs, written = (torch.zeros_like(tape.m) if grad is None else grad for grad in (outputs, written))
        with _autocast_off(outputs.device.type):
            rewind = _Rewind(tape, outputs, written, shared, layers)
            rewind.run()
            return None, None, rewind.slope.x[0], *rewind.initial_gradients(), None, *rewind.weight_gradients()


_recurrence: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
