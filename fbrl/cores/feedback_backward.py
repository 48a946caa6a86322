"""The fast scan backwards: from the gradients at what the steps gave to the gradients at what they were given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fbrl.cores.feedback_forward import Layer, Shared, Tape, grid, group, norm, windows


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


class Slope(NamedTuple):
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


def new_slope(tape: Tape, written: Tensor) -> Slope:
    """Room for the gradients; ``written`` (T, B, D) are those at the memory vectors from outside the scan."""
    empty, zeros = torch.empty_like, torch.zeros_like
    return Slope(
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


class Norm(NamedTuple):
    """A layer norm of all steps: its output and what going back through it takes."""

    y: Tensor
    x: Tensor
    mean: Tensor
    rstd: Tensor
    gain: Tensor

    @classmethod
    def of(cls, x: Tensor, gain: Tensor, bias: Tensor) -> Norm:
        """Norms ``x`` (T, B, D)."""
        y, mean, rstd = norm(x, gain, bias)
        return cls(y, x, mean, rstd, gain)

    def steps(self) -> list[tuple[Tensor, ...]]:
        """What ``_norm_backward`` takes besides the gradient, by step."""
        return [(*step, self.gain) for step in zip(*(part.unbind(0) for part in self[1:4]), strict=True)]


class Backward:
    """The steps backwards, from the gradients at x^L and, from outside the scan, at the memory vectors."""

    def __init__(self, tape: Tape, outputs: Tensor, written: Tensor, shared: Shared, layers: Sequence[Layer]) -> None:
        self.tape, self.shared, self.layers, self.outputs = tape, shared, layers, outputs.unbind(0)
        self.rows, steps, n_layers, d_head = tape.q.shape
        window, self.scale = len(shared.distance), 1 / math.sqrt(d_head)
        self.norm_m = Norm.of(tape.m, shared.gain_m, shared.bias_m)
        self.norm_1 = [Norm.of(x, w.gain_1, w.bias_1) for x, w in zip(tape.x, layers, strict=False)]
        self.norm_2 = [Norm.of(h, w.gain_2, w.bias_2) for h, w in zip(tape.h, layers, strict=True)]
        self.steps_m, self.steps_1, self.steps_2 = (
            self.norm_m.steps(),
            [norm.steps() for norm in self.norm_1],
            [norm.steps() for norm in self.norm_2],
        )
        self.u, self.o = grid(tape.u), grid(tape.o.view(n_layers, steps, self.rows, d_head))
        self.attention = grid(windows(tape.attention, window))
        self.keys, self.values = (half.unfold(1, window, 1).unbind(1) for half in tape.kv)  # (B H, D/H, M)
        self.r, self.mix = shared.distance.flip(0), shared.mix.unsqueeze(1)
        self.slope = slope = new_slope(tape, written)
        self.d_x, self.d_h, self.d_u, self.d_q = (grid(part) for part in (slope.x, slope.h, slope.u, slope.q))
        self.d_n_1, self.d_n_2, self.d_n_m = grid(slope.n_1), grid(slope.n_2), slope.n_m.unbind(0)
        self.d_o, self.d_products = grid(slope.o.permute(1, 2, 0, 3)), grid(windows(slope.products, window))
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
        """In the order that ``group`` takes the weights in."""
        tape, slope, norm_m = self.tape, self.slope, self.norm_m
        mix = torch.stack([torch.dot(x.flatten(), slope.m.flatten()) for x in tape.x])
        r = torch.zeros_like(self.r)
        for d_products, q in zip(windows(slope.products, len(r)), tape.q.permute(1, 2, 0, 3), strict=True):
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


def scan_gradients(tape: Tape, weights: Sequence[Tensor], outputs: Tensor, written: Tensor) -> list[Tensor]:
    """From the gradients at x^L and, from outside the scan, at the memory vectors to those at ``scan``'s arguments."""
    rewind = Backward(tape, outputs, written, *group(weights))
    rewind.run()
    return [rewind.slope.x[0], *rewind.initial_gradients(), *rewind.weight_gradients()]
