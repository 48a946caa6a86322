"""The Feedback Transformer as Triton kernels, for a GPU: the function of ``fbrl.cores.feedback``, same parameters.

``fbrl.cores.triton_kernels`` holds the recurrence. Here the weights are made ready for it, with the gains and biases of
the norms in the weights that follow them, and the gradients of the weights are made of what it leaves behind.

It was compared with the plain form in Triton's interpreter and compiled for GPUs of compute capability 8.0 and 9.0, and
never run on one nor timed: whether it is faster than the fast form there nobody knows yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fbrl.cores import triton_kernels as kernels
from fbrl.cores.feedback import FeedbackLayer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.forms import Form
from fbrl.cores.triton_kernels import Slope, Tape, Weights

HELD = 8192  # numbers of one head's keys that a program holds at once: what a multiprocessor's registers have room for
WARPS = 8  # of one program
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)  # TRITON_INTERPRET=1 when triton was imported


class Sizes(NamedTuple):
    """What a kernel is compiled for."""

    M: int
    H: int
    D: int  # D, E = D/H and F rounded up to powers of two
    E: int
    F: int
    WIDTH: int  # D itself
    SLOTS: int  # M, rounded up
    BLOCK: int  # sequences of one program

    @classmethod
    def of(cls, d_model: int, n_heads: int, window: int, d_feedforward: int) -> Sizes:
        """Those of a core."""
        d, e, f = (_power_of_two(size, 16) for size in (d_model, d_model // n_heads, d_feedforward))
        slots = _power_of_two(window)
        return cls(window, n_heads, d, e, f, d_model, slots, min(16, max(1, HELD // (slots * e))))


def _power_of_two(size: int, least: int = 1) -> int:
    """The first that is not below ``size``."""
    return max(least, 1 << (size - 1).bit_length())


class TritonFeedbackTransformer(FastFeedbackTransformer):
    """``FeedbackTransformer`` whose scan is two Triton kernels on a GPU, and the fast form's elsewhere.

    Everything else, saved weights and acting included, is the fast form's. Needs ``pip install fbrl[triton]``.
    """

    form: Form = "fast"  # and not the compiled form's

    def _scan(self, x: Tensor, slots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")):
            return super()._scan(x, slots, mask)
        layer = self.layers[0]
        assert isinstance(layer, FeedbackLayer)
        sizes = Sizes.of(self.d_model, self.n_heads, self.window, layer.w_1.out_features)
        weights = self._folded(sizes)
        saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        by_head = [half.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for half in self._project(slots)]
        k, v = (F.pad(half, (0, sizes.E - half.shape[-1])) for half in by_head)  # (B, H, M, E)
        x = F.pad(x, (0, sizes.D - self.d_model))
        outputs, written = _recurrence(saves, sizes, x, k, v, mask, *weights)
        return outputs[..., : self.d_model], written[..., : self.d_model]

    def _folded(self, sizes: Sizes) -> Weights:
        """The weights as the kernels take them."""
        d, e = sizes.D - self.d_model, sizes.E - self.d_model // self.n_heads
        k, v = (_rows_by_head(*_after(self.ln_m, half.weight), self.n_heads, d, e) for half in (self.w_k, self.w_v))
        layers = []
        for layer in self.layers:
            assert isinstance(layer, FeedbackLayer)
            w_q, w_o, w_2 = layer.w_q.weight / math.sqrt(layer.w_q.out_features // self.n_heads), layer.w_o, layer.w_2
            w_1, b_1 = _after(layer.ln_2, layer.w_1.weight)
            f = sizes.F - len(w_1)
            layers.append(
                [
                    *_rows_by_head(*_after(layer.ln_1, w_q), self.n_heads, d, e),
                    F.pad(w_o.weight.unflatten(1, (self.n_heads, -1)), (0, e, 0, 0, 0, d)).flatten(1),
                    F.pad(w_1, (0, d, 0, f)),
                    F.pad(b_1 + layer.w_1.bias, (0, f)),
                    F.pad(w_2.weight, (0, f, 0, d)),
                    F.pad(w_2.bias, (0, d)),
                ]
            )
        stacked = [torch.stack(parts) for parts in zip(*layers, strict=True)]
        return Weights._make([self.mix.softmax(dim=0), F.pad(self.distance.flip(0), (0, e)), *stacked, *k, *v])


def _after(ln: nn.LayerNorm, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a product that follows the norm without its gain and its bias."""
    return weight * ln.weight, weight @ ln.bias


def _rows_by_head(w: Tensor, b: Tensor, heads: int, d: int, e: int) -> tuple[Tensor, Tensor]:
    """Weight (D, D) and bias (D,) with ``e`` zeros after each head's rows and ``d`` after the columns."""
    by_head = w.unflatten(0, (heads, -1)), b.unflatten(0, (heads, -1))
    return F.pad(by_head[0], (0, d, 0, e)).flatten(0, 1), F.pad(by_head[1], (0, e)).flatten()


def new_tape(saves: bool, x: Tensor, k: Tensor, v: Tensor, layers: int, sizes: Sizes) -> Tape:
    """An empty tape but for the keys and values of the initial slots, two of (B, H, M, E)."""
    steps, batch, d = x.shape
    room, he, slots = steps if saves else 1, sizes.H * sizes.E, sizes.M + steps

    def by_layer(*shape: int) -> Tensor:
        return x.new_empty(layers, room, batch, *shape)

    return Tape(
        x=by_layer(d),
        n_1=by_layer(d),
        s_1=by_layer(),
        q=by_layer(he),
        a=x.new_zeros(layers, room, batch, sizes.H, slots if saves else 1),
        o=by_layer(he),
        n_2=by_layer(d),
        s_2=by_layer(),
        u=by_layer(sizes.F),
        n_m=x.new_empty(room, batch, d),
        s_m=x.new_empty(room, batch),
        k=F.pad(k, (0, 0, 0, steps)),
        v=F.pad(v, (0, 0, 0, steps)),
    )


def new_slope(tape: Tape) -> Slope:
    """Room for the gradients."""
    empty, zeros, by_step = torch.empty_like, torch.zeros_like, tape.o[0]
    # the last step's gradients of key and value stay zero
    return Slope(
        x=tape.x.new_empty(len(tape.x) + 1, *tape.x[0].shape),
        h=empty(tape.x),
        u=empty(tape.u),
        o=empty(tape.o),
        q=empty(tape.q),
        a=zeros(tape.a),
        m=empty(tape.n_m),
        k=zeros(by_step),
        v=zeros(by_step),
    )


def weight_gradients(slope: Slope, tape: Tape, outputs: Tensor, window: int) -> Weights:
    """What the steps' gradients add up to; ``outputs`` (T, B, D) are x^L."""

    def linear(grad: Tensor, x: Tensor) -> Tensor:
        """(..., T, B, out), (..., T, B, in) -> (..., out, in)."""
        return grad.flatten(-3, -2).mT @ x.flatten(-3, -2)

    def bias(grad: Tensor) -> Tensor:
        return grad.sum((-3, -2))

    heads, (by_layer, by_step, by_row, by_head, _) = slope.a.shape[3], slope.a.stride()
    # what each step has for its own window
    own = slope.a.as_strided((*slope.a.shape[:4], window), (by_layer, by_step + 1, by_row, by_head, 1))
    return Weights(
        mix=torch.stack([(x * slope.m).sum() for x in (*tape.x, outputs)]),
        r=own.flatten(0, 3).t() @ tape.q.unflatten(-1, (heads, -1)).flatten(0, 3),
        w_q=linear(slope.q, tape.n_1),
        b_q=bias(slope.q),
        w_o=linear(slope.h, tape.o),
        w_1=linear(slope.u, tape.n_2),
        b_1=bias(slope.u),
        w_2=linear(slope.x[1:], tape.u),
        b_2=bias(slope.x[1:]),
        w_k=linear(slope.k, tape.n_m),
        b_k=bias(slope.k),
        w_v=linear(slope.v, tape.n_m),
        b_v=bias(slope.v),
    )


def initial_gradient(weight: Tensor, row: Tensor, window: int) -> Tensor:
    """At the keys or values of the initial slots, (B, H, M, E): (L, T, B, H, S) and (L, T, B, HE) that made it."""
    rows = row.unflatten(-1, (weight.shape[3], -1))
    return torch.einsum("ltbhs,ltbhe->bhse", weight[..., :window], rows)


class _Recurrence(torch.autograd.Function):
    """The scan between the initial keys and values and the last layer norm."""

    @staticmethod
    def forward(
        ctx: Any, saves: bool, sizes: Sizes, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x^L and the memory vectors, (T, B, D) each.

        Args:
            ctx: torch's.
            saves: whether a backward may follow.
            sizes: what the kernel is compiled for.
            x: x^0, (T, B, D).
            k, v: keys and values of the initial slots, (B, H, M, E).
            mask: as ``readable_mask`` gives it.
            weights: see ``Weights``.
        """
        folded = Weights(*(weight.contiguous() for weight in weights))
        tape = new_tape(saves, x, k, v, len(folded.w_q), sizes)
        outputs, written = torch.empty_like(x), torch.empty_like(x)
        _launch(kernels.forward, sizes, x, x, mask, outputs, written, tape, folded, SAVES=saves)
        if saves:
            ctx.sizes = sizes
            ctx.save_for_backward(outputs, *tape, *folded)
        return outputs, written

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_written: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients at the arguments of ``forward``."""
        outputs, *saved = ctx.saved_tensors
        tape, weights = Tape(*saved[: len(Tape._fields)]), Weights(*saved[len(Tape._fields) :])
        slope, given = new_slope(tape), (d_outputs.contiguous(), d_written.contiguous())
        _launch(kernels.backward, ctx.sizes, outputs, *given, slope, tape, weights)
        window = ctx.sizes.M
        d_k, d_v = initial_gradient(slope.a, tape.q, window), initial_gradient(tape.a, slope.o, window)
        return None, None, slope.x[0], d_k, d_v, None, *weight_gradients(slope, tape, outputs, window)


def _launch(kernel: Any, sizes: Sizes, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs the kernel over all sequences of x (T, B, D)."""
    steps, batch, _ = x.shape
    layers = len(arguments[-1].w_q)
    with torch.cuda.device_of(x):  # Triton launches on the current one
        kernel[(triton.cdiv(batch, sizes.BLOCK),)](
            *arguments, batch, steps, layers, **sizes._asdict(), **constants, num_warps=WARPS
        )


_recurrence: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
