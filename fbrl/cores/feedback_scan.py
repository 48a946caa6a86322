"""The Feedback Transformer in its fast form: the function of ``fbrl.cores.feedback``, same parameters and result.

What depends on no earlier step (the first layer's queries, the keys and values of the initial slots, the last
layer norm) is computed for all steps at once by ordinary autograd. The recurrence that is left is one
``torch.autograd.Function`` with a hand-written backward:

- each memory vector is normed and projected once, into one buffer of M + T keys and values, in which step t
  reads the slots t .. t + M - 1 and writes the slot t + M;
- slot t + M is still zero when step t reads. Read along with the others it is the null slot: score 0, value 0;
- a memory vector gets its gradient when the step that wrote it is reached: one product of the later steps'
  attention to it with their queries (output gradients) for its key (value);
- each weight's gradient is one matrix product over all steps.

The gain and bias of every layer norm, and the scale 1 / sqrt(D/H), are folded into the weight behind them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fbrl.cores.core import State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.memory import Memory

EPS = 1e-5  # of every layer norm, torch's default


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
        steps = x.shape[1]
        with _full_precision(x.device.type) as autocast:
            if autocast:
                x, slots = x.to(self.distance.dtype), slots.to(self.distance.dtype)
            mask, length = readable_mask(length, episode_start, self.window, x.dtype)
            outputs, written = self._scan(x.transpose(0, 1).contiguous(), slots, mask)
            features = self.ln_out(outputs).transpose(0, 1).contiguous()
            slots = torch.cat([slots[:, steps:], written[-self.window :].transpose(0, 1)], dim=1)
        return features, Memory(slots, length)

    def _scan(self, x: Tensor, slots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x^0 (T, B, D), initial slots (B, M, D), mask (T, B, M + 1) -> x^L and the memory vectors, each (T, B, D)."""
        d_head = self.d_model // self.n_heads
        w_k, b_k = _fold(self.ln_m, self.w_k)
        w_v, b_v = _fold(self.ln_m, self.w_v)
        initial = F.linear(_norm(slots)[0], torch.cat([w_k, w_v]), torch.cat([b_k, b_v]))
        initial = initial.unflatten(-1, (2, self.n_heads, d_head)).permute(2, 0, 3, 1, 4)  # (2, B, H, M, D/H)
        weights: list[Tensor] = [self.mix.softmax(dim=0), self.distance, w_k, b_k, w_v, b_v]
        for layer in self.layers:
            w_q, b_q = (tensor / math.sqrt(d_head) for tensor in _fold(layer.ln_1, layer.w_q))
            weights += [w_q, b_q, layer.w_o.weight, *_fold(layer.ln_2, layer.w_1), layer.w_2.weight, layer.w_2.bias]
        saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
        outputs, written = _Recurrence.apply(saves, x, initial, mask, *weights)
        return outputs, written


@contextlib.contextmanager
def _full_precision(device_type: str) -> Iterator[bool]:
    """Switches autocast off inside; gives whether it was on."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    with torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext():
        yield on


def readable_mask(
    length: Tensor, episode_start: Tensor, window: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What each step may read, and how much is readable after the last.

    Args:
        length: readable slots before the first step, (B,) int64.
        episode_start: (B, T) bool.
        window: M.
        dtype: the dtype of the mask.

    Returns:
        (T, B, M + 1), to be added to the scores of the M slots, oldest first, and the null slot: 0 where
        readable and -inf elsewhere; and the length after the last step, (B,) int64.
    """
    steps = episode_start.shape[1]
    time = torch.arange(steps, device=length.device)
    empty_at = torch.where(episode_start, time, -length.unsqueeze(1)).cummax(dim=1).values  # when the length was 0
    distance = torch.arange(window, -1, -1, device=length.device)
    readable = distance <= (time - empty_at).t().unsqueeze(-1)
    mask = torch.zeros(readable.shape, dtype=dtype, device=length.device).masked_fill_(~readable, -math.inf)
    return mask, (steps - empty_at[:, -1]).clamp(max=window)


def _norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm without gain and bias over the last dimension: its output, the mean and 1 / deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], None, None, EPS)


def _norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient at ``x`` from the gradient at ``_norm(x)[0]``."""
    wanted = [True, False, False]
    result: Tensor = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, None, None, wanted)[0]
    return result


def _fold(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias that make of ``_norm(x)[0]`` what ``linear`` makes of ``norm(x)``."""
    bias = linear.weight @ norm.bias
    return linear.weight * norm.weight, bias if linear.bias is None else bias + linear.bias


class _Shared(NamedTuple):
    """The weights that all layers share, gains folded in."""

    mix: Tensor  # (L + 1,), after the softmax
    distance: Tensor  # (M, D/H), distance 1 first
    w_k: Tensor
    b_k: Tensor
    w_v: Tensor
    b_v: Tensor


class _Layer(NamedTuple):
    """The weights of one layer, gains and 1 / sqrt(D/H) folded in."""

    w_q: Tensor
    b_q: Tensor
    w_o: Tensor
    w_1: Tensor
    b_1: Tensor
    w_2: Tensor
    b_2: Tensor


def _weights(flat: Sequence[Tensor]) -> tuple[_Shared, list[_Layer]]:
    n, size = len(_Shared._fields), len(_Layer._fields)
    return _Shared(*flat[:n]), [_Layer(*flat[i : i + size]) for i in range(n, len(flat), size)]


class _Tape(NamedTuple):
    """What the steps leave behind; the time dimension is an expanded 1 where no backward will follow."""

    x: Tensor  # (L + 1, T, B, D): x^0 .. x^L
    h: Tensor  # (L, T, B, D): after the attention
    u: Tensor  # (L, T, B, F): inside the feed-forward block, after the relu
    o: Tensor  # (L, T, B, D): what the heads read
    q: Tensor  # (B H, T, L, D/H): queries
    attention: Tensor  # (B H, T, L, M + T): step t's is at t .. t + M, the null slot last, zero elsewhere
    memory: Tensor  # (T, B, D): the memory vectors
    kv: Tensor  # (2, B H, M + T, D/H): keys and values


def _new_tape(saves: bool, x: Tensor, initial: Tensor, layers: list[_Layer]) -> _Tape:
    steps, batch, d_model = x.shape
    heads, window, d_head = initial.shape[2:]
    n_layers, d_feedforward, kept = len(layers), layers[0].w_1.shape[0], steps if saves else 1
    slots = window + steps if saves else window + 1
    kv = x.new_zeros(2, batch * heads, window + steps, d_head)
    kv.view(2, batch, heads, window + steps, d_head)[..., :window, :] = initial
    return _Tape(
        x=x.new_empty(n_layers + 1, kept, batch, d_model).expand(-1, steps, -1, -1),
        h=x.new_empty(n_layers, kept, batch, d_model).expand(-1, steps, -1, -1),
        u=x.new_empty(n_layers, kept, batch, d_feedforward).expand(-1, steps, -1, -1),
        o=x.new_empty(n_layers, kept, batch, d_model).expand(-1, steps, -1, -1),
        q=x.new_empty(batch * heads, kept, n_layers, d_head),
        attention=x.new_zeros(batch * heads, kept, n_layers, slots),
        memory=x.new_empty(steps, batch, d_model),
        kv=kv,
    )


def _record(
    saves: bool, x: Tensor, initial: Tensor, mask: Tensor, shared: _Shared, layers: list[_Layer]
) -> tuple[Tensor, _Tape]:
    """Runs the recurrence: x^L (T, B, D) and the tape. Arguments as ``_Recurrence.forward``."""
    steps, batch, _ = x.shape
    heads, window, d_head = initial.shape[2:]
    tape = _new_tape(saves, x, initial, layers)
    outputs = torch.empty_like(x)
    q_1 = F.linear(_norm(x)[0], layers[0].w_q, layers[0].b_q)
    r = F.pad(shared.distance.flip(0), (0, 0, 0, 1)).t()  # (D/H, M + 1); the null slot's is 0
    scores = x.new_empty(batch * heads, 1, window + 1)
    for t in range(steps):
        tape.x[0, t].copy_(x[t])
        keys, values = tape.kv[:, :, t : t + window + 1]
        for l, w in enumerate(layers):
            h = tape.x[l, t]
            q = torch.addmm(w.b_q, _norm(h)[0], w.w_q.t()) if l else q_1[t]
            q = q.view(batch * heads, 1, d_head)
            scores.view(batch, heads, -1).copy_(mask[t].unsqueeze(1))
            scores[:, 0].addmm_(q[:, 0], r)
            attention = scores.baddbmm_(q, keys.transpose(1, 2)).softmax(dim=-1)
            torch.bmm(attention, values, out=tape.o[l, t].view(batch * heads, 1, d_head))
            if saves:
                tape.q[:, t, l].copy_(q[:, 0])
                tape.attention[:, t, l, t : t + window + 1].copy_(attention[:, 0])
            h = torch.addmm(h, tape.o[l, t], w.w_o.t(), out=tape.h[l, t])
            u = torch.addmm(w.b_1, _norm(h)[0], w.w_1.t(), out=tape.u[l, t]).relu_()
            torch.addmm(w.b_2, u, w.w_2.t(), out=tape.x[l + 1, t]).add_(h)
        outputs[t].copy_(tape.x[-1, t])
        m = torch.mm(shared.mix.unsqueeze(0), tape.x[:, t].view(len(layers) + 1, -1), out=tape.memory[t].view(1, -1))
        if t + 1 < steps:
            n = _norm(m.view(batch, -1))[0]
            tape.kv[0, :, window + t] = torch.addmm(shared.b_k, n, shared.w_k.t()).view(-1, d_head)
            tape.kv[1, :, window + t] = torch.addmm(shared.b_v, n, shared.w_v.t()).view(-1, d_head)
    return outputs, tape


class _Slopes(NamedTuple):
    """The gradients of the loss at what is on the tape."""

    x: Tensor  # (L + 1, T, B, D)
    h: Tensor  # (L, T, B, D)
    u: Tensor  # (L, T, B, F): before the relu
    o: Tensor  # (B H, T, L, D/H)
    q: Tensor  # (L, T, B, D); the first layer's is filled in after the steps
    scores: Tensor  # (B H, T, L, M + T), as the attention
    memory: Tensor  # (T, B, D)
    kv: Tensor  # (2, T, B, D): at the keys and values that the steps wrote


def _new_slopes(tape: _Tape) -> _Slopes:
    return _Slopes(
        x=torch.empty_like(tape.x),
        h=torch.empty_like(tape.h),
        u=torch.empty_like(tape.u),
        o=torch.empty_like(tape.q),
        q=torch.empty_like(tape.h),
        scores=torch.zeros_like(tape.attention),
        memory=torch.empty_like(tape.memory),
        kv=tape.memory.new_zeros(2, *tape.memory.shape),
    )


def _rewind(
    tape: _Tape, outputs: Tensor, memory: Tensor, shared: _Shared, layers: list[_Layer]
) -> tuple[_Slopes, list[Tensor]]:
    """The steps backwards.

    Args:
        tape: of the forward run.
        outputs: gradient at x^L, (T, B, D).
        memory: gradient at the memory vectors from outside the recurrence, (T, B, D).
        shared, layers: the weights.

    Returns:
        the gradients at what is on the tape, and the normed values of x^1 .. x^(L-1)
    """
    steps, batch, d_model = outputs.shape
    rows, _, n_layers, d_head = tape.q.shape
    window = tape.kv.shape[2] - steps
    slope = _new_slopes(tape)
    r = shared.distance.flip(0)
    x_stats, h_stats, m_stats = (_norm(tensor)[1:] for tensor in (tape.x, tape.h, tape.memory))
    o, delta = slope.o.view(rows, -1, d_head), None
    flat = slice(0, rows)
    q_rows = tape.q.view(rows, steps * n_layers, d_head)
    o_rows = slope.o.view(rows, steps * n_layers, d_head)
    attention = tape.attention.view(rows, steps * n_layers, -1)
    scores = slope.scores.view(rows, steps * n_layers, -1)
    for t in reversed(range(steps)):
        m = slope.memory[t].copy_(memory[t])
        if t + 1 < steps:
            later, slot = slice((t + 1) * n_layers, (t + 1 + window) * n_layers), window + t
            d_k, d_v = slope.kv[:, t]
            torch.bmm(scores[:, later, slot : slot + 1].transpose(1, 2), q_rows[:, later], out=d_k.view(rows, 1, d_head))
            torch.bmm(attention[:, later, slot : slot + 1].transpose(1, 2), o_rows[:, later], out=d_v.view(rows, 1, d_head))
            n = torch.mm(d_k, shared.w_k).addmm_(d_v, shared.w_v)
            m += _norm_backward(n, tape.memory[t], *(stat[t] for stat in m_stats))
        torch.mul(shared.mix.view(-1, 1, 1), m, out=slope.x[:, t])
        slope.x[-1, t] += outputs[t]
        keys, values = tape.kv[:, :, t : t + window]
        for l in reversed(range(n_layers)):
            w = layers[l]
            g = slope.x[l + 1, t]
            u = torch.mm(g, w.w_2)
            torch.mul(u, tape.u[l, t] > 0, out=slope.u[l, t])
            n = torch.mm(slope.u[l, t], w.w_1)
            g = torch.add(g, _norm_backward(n, tape.h[l, t], *(stat[l, t] for stat in h_stats)), out=slope.h[l, t])
            slope.x[l, t] += g
            o = torch.mm(g, w.w_o).view(rows, d_head)
            slope.o[:, t, l].copy_(o)
            delta = (o * tape.o[l, t].view(rows, d_head)).sum(-1, keepdim=True)
            s = torch.bmm(o.unsqueeze(1), values.transpose(1, 2))[:, 0]
            s = torch.mul(s.sub_(delta), tape.attention[:, t, l, t : t + window])
            slope.scores[:, t, l, t : t + window] = s
            if l:
                q = torch.mm(s, r).unsqueeze(1).baddbmm_(s.unsqueeze(1), keys)
                q = slope.q[l, t].copy_(q.view(batch, d_model))
                n = torch.mm(q, w.w_q)
                slope.x[l, t] += _norm_backward(n, tape.x[l, t], *(stat[l, t] for stat in x_stats))
    return slope


def _first_queries(tape: _Tape, slope: _Slopes, r: Tensor, w_q: Tensor) -> None:
    """The gradient at the first layer's queries, which no step needs, for all steps at once."""
    rows, steps, _, d_head = tape.q.shape
    window = r.shape[0]
    q = torch.bmm(slope.scores[:, :, 0], tape.kv[0]).transpose(0, 1)
    for t in range(steps):
        q[t].addmm_(slope.scores[:, t, 0, t : t + window], r)
    slope.q[0] = q.reshape(slope.q.shape[1:])
    slope.x[0] += _norm_backward(slope.q[0] @ w_q, tape.x[0], *_norm(tape.x[0])[1:])


def _weight_gradients(tape: _Tape, slope: _Slopes, window: int) -> list[Tensor]:
    """The gradients of ``_Shared`` and of each ``_Layer``, in order."""
    steps = len(tape.memory)
    mix = torch.stack([torch.dot(x.flatten(), slope.memory.flatten()) for x in tape.x])
    distance = tape.kv.new_zeros(window, tape.kv.shape[-1])
    for t in range(steps):
        s, q = slope.scores[:, t, :, t : t + window], tape.q[:, t]
        distance.addmm_(s.flatten(0, 1).t(), q.flatten(0, 1))
    n = _norm(tape.memory)[0]
    gradients = [mix, distance.flip(0), *_linear_gradients(slope.kv[0], n), *_linear_gradients(slope.kv[1], n)]
    for l in range(len(tape.h)):
        gradients += [
            *_linear_gradients(slope.q[l], _norm(tape.x[l])[0]),
            _linear_gradients(slope.h[l], tape.o[l])[0],
            *_linear_gradients(slope.u[l], _norm(tape.h[l])[0]),
            *_linear_gradients(slope.x[l + 1], tape.u[l]),
        ]
    return gradients


def _linear_gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight and a bias: gradient (T, B, out) at the output, input (T, B, in)."""
    grad = grad.flatten(0, 1)
    return grad.t() @ x.flatten(0, 1), grad.sum(0)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, saves: bool, x: Tensor, initial: Tensor, mask: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x^L and the memory vectors, each (T, B, D).

        Args:
            saves: whether a backward may follow.
            x: x^0, (T, B, D).
            initial: keys and values of the initial slots, (2, B, H, M, D/H).
            mask: as ``readable_mask`` gives it.
            weights: as ``_weights`` takes them.
        """
        outputs, tape = _record(saves, x, initial, mask, *_weights(weights))
        if saves:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tape, *weights)
        return outputs, tape.memory.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor | None, memory: Tensor | None) -> tuple[Tensor | None, ...]:
        tape = _Tape(*ctx.saved_tensors[: len(_Tape._fields)])
        shared, layers = _weights(ctx.saved_tensors[len(_Tape._fields) :])
        zeros = torch.zeros_like(tape.memory)
        with _full_precision(zeros.device.type):
            outputs = zeros if outputs is None else outputs
            memory = zeros if memory is None else memory
            slope = _rewind(tape, outputs, memory, shared, layers)
            window = len(shared.distance)
            _first_queries(tape, slope, shared.distance.flip(0), layers[0].w_q)
            gradients = _weight_gradients(tape, slope, window)
            rows, _, _, d_head = tape.q.shape
            initial = [
                torch.bmm(s.flatten(1, 2)[:, :, :window].transpose(1, 2), q.flatten(1, 2))
                for s, q in ((slope.scores, tape.q), (tape.attention, slope.o))
            ]
            batch = zeros.shape[1]
            init = torch.stack(initial).unflatten(1, (batch, rows // batch))
        return None, slope.x[0], init, None, *gradients
