"""The scan of the Feedback Transformer as Triton kernels, for a GPU: the function of ``fbrl.cores.feedback``.

``fbrl.cores.triton_kernels`` holds the recurrence. Here the weights are made ready for it, with the gains and biases of
the norms in the weights that follow them, and the gradients of the weights are made of what it leaves behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fbrl.cores import triton_kernels as kernels
from fbrl.cores.feedback_forward import Layer, Shared, group
from fbrl.cores.triton_kernels import Slope, Tape, Weights

HELD = 8192  # numbers of one head's keys that a program holds at once: what a multiprocessor's registers have room for
PROGRAMS = 2  # of a multiprocessor, before one takes more than one sequence: so it was fastest on an H100
MOST = 16  # sequences of a program
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
    def of(cls, d_model: int, n_heads: int, window: int, d_feedforward: int, block: int = MOST) -> Sizes:
        """Those of a core; ``block`` sequences a program if there is room."""
        d, e, f = (_power_of_two(size, 16) for size in (d_model, d_model // n_heads, d_feedforward))
        slots = _power_of_two(window)
        return cls(window, n_heads, d, e, f, d_model, slots, min(block, max(1, HELD // (slots * e))))

    @property
    def warps(self) -> int:
        """Of one program: so that a thread has some tens of numbers to hold."""
        return min(8, max(2, self.BLOCK * max(self.SLOTS * self.E, 2 * self.F) // 1024))


def _block(x: Tensor) -> int:
    """Sequences a program, of a batch x (T, B, D): one, until the device's multiprocessors have enough to do."""
    if not x.is_cuda:
        return MOST
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return min(MOST, _power_of_two(math.ceil(x.shape[1] / (PROGRAMS * processors))))


def _power_of_two(size: int, least: int = 1) -> int:
    """The first that is not below ``size``."""
    return max(least, 1 << (size - 1).bit_length())


def triton_scan(
    heads: int, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """x^L and the memory vectors, (T, B, D) each.

    Args:
        heads: H.
        x: x^0, (T, B, D).
        k, v: keys and values of the initial slots, (B, M, D) each.
        mask: as ``readable_mask`` gives it.
        weights: as ``feedback_forward.group`` takes them.
    """
    d, window, (shared, layers) = x.shape[-1], k.shape[1], group(weights)
    sizes = Sizes.of(d, heads, window, len(layers[0].w_1), _block(x))
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    by_head = (_pad(half.unflatten(-1, (heads, -1)).transpose(1, 2), sizes.E) for half in (k, v))  # (B, H, M, E)
    folded = fold(shared, layers, sizes)
    outputs, written = _recurrence(saves, sizes, _pad(x, sizes.D), *by_head, mask, *folded)
    return outputs[..., :d], written[..., :d]


def fold(shared: Shared, layers: Sequence[Layer], sizes: Sizes) -> Weights:
    """The weights as the kernels take them: norms in the weights that follow, sizes rounded up."""
    d, e, f = sizes.D, sizes.E, sizes.F
    of = Layer(*(torch.stack(parts) for parts in zip(*layers, strict=True)))

    def after(gain: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (.., out, in) and bias (.., out) of a product that follows the norm without its gain and bias."""
        return weight * gain.unsqueeze(-2), (weight @ bias.unsqueeze(-1)).squeeze(-1)

    def rows_by_head(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """(.., D, D) and (.., D) with zeros after each head's rows, and after the columns."""
        by_head = w.unflatten(-2, (sizes.H, -1)), b.unflatten(-1, (sizes.H, -1))
        return _pad(by_head[0], e, d).flatten(-3, -2), _pad(by_head[1], e).flatten(-2)

    w_1, b_1 = after(of.gain_2, of.bias_2, of.w_1)
    w_o = _pad(of.w_o.unflatten(-1, (sizes.H, -1)), d, sizes.H, e).flatten(-2)
    root = math.sqrt(sizes.WIDTH // sizes.H)
    return Weights(
        shared.mix,
        _pad(shared.distance.flip(0), e),
        *rows_by_head(*after(of.gain_1, of.bias_1, of.w_q / root)),
        w_o,
        _pad(w_1, f, d),
        _pad(b_1 + of.b_1, f),
        _pad(of.w_2, d, f),
        _pad(of.b_2, d),
        *rows_by_head(*after(shared.gain_m, shared.bias_m, shared.w_k)),
        *rows_by_head(*after(shared.gain_m, shared.bias_m, shared.w_v)),
    )


def _pad(tensor: Tensor, *sizes: int) -> Tensor:
    """With zeros after the last dimensions up to ``sizes``; the tensor itself where there are none to add."""
    more = [size - has for size, has in zip(sizes, tensor.shape[-len(sizes) :], strict=True)]
    return F.pad(tensor, [zeros for end in reversed(more) for zeros in (0, end)]) if any(more) else tensor


def try_out(device: torch.device) -> None:
    """Compiles and runs the least of kernels; whatever Triton lacks it says by an exception."""
    x = torch.zeros(1, device=device)
    with torch.cuda.device_of(x):
        kernels.add_one[(1,)](x)
    if x.item() != 1:
        raise RuntimeError(f"0 + 1 is {x.item()}")


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
            *arguments, batch, steps, layers, **sizes._asdict(), **constants, num_warps=sizes.warps
        )


_recurrence: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
