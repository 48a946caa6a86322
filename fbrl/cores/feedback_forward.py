"""The fast scan forwards: what the steps of ``fbrl.cores.feedback_scan`` do, and what they leave behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fbrl.cores.attention import by_head


def norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the last dimension; its mean and 1 / deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], gain, bias, 1e-5)


def grid(tensor: Tensor) -> list[tuple[Tensor, ...]]:
    """``tensor[i, j]`` as ``grid[i][j]``: in the loop over time a slice would cost as much as a small product."""
    return [row.unbind(0) for row in tensor.unbind(0)]


def windows(tensor: Tensor, width: int) -> Tensor:
    """(B H, T, L, slots) -> (T, L, B H, width), where row t begins at the slot t."""
    rows, steps, n_layers, _ = tensor.shape
    by_row, by_step, by_layer, _ = tensor.stride()
    return tensor.as_strided((steps, n_layers, rows, width), (by_step + 1, by_layer, by_row, 1))


class Shared(NamedTuple):
    """The weights that all layers share."""

    mix: Tensor  # (L + 1,), after the softmax
    distance: Tensor  # (M, D/H), distance 1 first
    gain_m: Tensor
    bias_m: Tensor
    w_k: Tensor
    w_v: Tensor


class Layer(NamedTuple):
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


def group(weights: Sequence[Tensor]) -> tuple[Shared, list[Layer]]:
    """The weights one after the other, the shared ones first, by their names."""
    first, size = len(Shared._fields), len(Layer._fields)
    return Shared(*weights[:first]), [Layer(*weights[i : i + size]) for i in range(first, len(weights), size)]


class Tape(NamedTuple):
    """What the steps leave behind; T is 1 in all but m and kv where no backward will follow."""

    x: Tensor  # (L + 1, T, B, D): x^0 .. x^L
    h: Tensor  # (L, T, B, D): after the attention
    u: Tensor  # (L, T, B, F): inside the feed-forward block
    o: Tensor  # (L, T, B, D): what the heads read
    q: Tensor  # (B H, T, L, D/H): queries
    attention: Tensor  # (B H, T, L, M + T): step t's at t .. t + M, the null slot last; zero elsewhere
    m: Tensor  # (T, B, D): memory vectors
    kv: Tensor  # (2, B H, M + T, D/H): keys and values


def new_tape(saves: bool, x: Tensor, steps: int, kv: Sequence[Tensor], layers: Sequence[Layer]) -> Tape:
    """An empty tape.

    Args:
        saves: whether every step needs room of its own.
        x: any tensor (..., B, D) of the tape's type and device.
        steps: T.
        kv: keys and values of the initial slots, two of (B, H, M, D/H).
        layers: the layers' weights.
    """
    (batch, d_model), (_, heads, window, d_head) = x.shape[-2:], kv[0].shape
    n_layers, room = len(layers), steps if saves else 1

    def by_layer(n: int, width: int) -> Tensor:
        return x.new_empty(n, room, batch, width)

    all_kv = x.new_zeros(2, batch, heads, window + steps, d_head)
    for half, initial in zip(all_kv.unbind(0), kv, strict=True):
        half[:, :, :window] = initial
    return Tape(
        x=by_layer(n_layers + 1, d_model),
        h=by_layer(n_layers, d_model),
        u=by_layer(n_layers, layers[0].b_1.shape[0]),
        o=by_layer(n_layers, d_model),
        q=x.new_empty(batch * heads, room, n_layers, d_head),
        attention=x.new_zeros(batch * heads, room, n_layers, window + room),
        m=x.new_empty(steps, batch, d_model),
        kv=all_kv.flatten(1, 2),
    )


class Forward:
    """The steps forwards, one by one or all of them.

    Args:
        saves: whether a backward may follow.
        tape: to be filled.
        shared, layers: the weights.
    """

    def __init__(self, saves: bool, tape: Tape, shared: Shared, layers: Sequence[Layer]) -> None:
        self.saves, self.tape, self.shared = saves, tape, shared
        # in the loop over time a view costs as much as a small product: what can be made beforehand is
        self.layers = [w._replace(w_q=w.w_q.t(), w_o=w.w_o.t(), w_1=w.w_1.t(), w_2=w.w_2.t()) for w in layers]
        window, self.d_head = shared.distance.shape
        rows, (steps, batch, _) = tape.kv.shape[1], tape.m.shape
        self.scale = 1 / math.sqrt(self.d_head)
        self.x, self.h, self.u, self.o = grid(tape.x), grid(tape.h), grid(tape.u), grid(tape.o)
        self.heads = grid(tape.o.view(*tape.o.shape[:2], rows, 1, self.d_head))
        if saves:
            self.q, self.attention = grid(tape.q.permute(1, 2, 0, 3)), grid(windows(tape.attention, window + 1))
        self.keys = tape.kv[0].unfold(1, window + 1, 1).unbind(1)  # (B H, D/H, M + 1)
        self.values = tape.kv[1].unfold(1, window + 1, 1).transpose(2, 3).unbind(1)  # (B H, M + 1, D/H)
        self.written = tape.kv[:, :, window:].unflatten(1, (batch, -1)).unbind(3)  # (2, B, H, D/H)
        self.w_kv = torch.cat([shared.w_k, shared.w_v]).t()
        self.mix, self.mixed = shared.mix.unsqueeze(0), tape.x.flatten(2).unbind(1)
        self.m, self.flat_m = tape.m.unbind(0), tape.m.view(steps, 1, -1).unbind(0)
        self.r = F.pad(shared.distance.flip(0), (0, 0, 0, 1)).t()  # (D/H, M + 1); 0 for the null slot
        self.scores = tape.m.new_empty(rows, 1, window + 1)
        self.scores_by_head = self.scores.view(batch, -1, window + 1)
        self.softmax = torch.empty_like(self.scores)

    def run(self, x: Tensor, mask: Tensor) -> Tensor:
        """All steps: x^0 (T, B, D), mask (T, B, M + 1) as ``readable_mask`` gives it -> x^L (T, B, D)."""
        outputs = torch.empty_like(self.tape.m)
        # the first layer's queries, and what distances make of them, wait for no step
        queries = self.first_queries(x)
        q = queries.view(len(x), -1, self.d_head)  # (T, B H, D/H)
        scores = mask.repeat_interleave(q.shape[1] // mask.shape[1], dim=1)
        scores.baddbmm_(q, self.r.expand(len(x), -1, -1), alpha=self.scale)
        for t, step in enumerate(zip(x, mask, q, scores.unsqueeze(2), strict=True)):
            outputs[t].copy_(self.step(t, *step))
            if t + 1 < len(outputs):  # otherwise no step is left to read them
                self.project(t)
        return outputs

    def first_queries(self, x: Tensor) -> Tensor:
        """x^0 (..., B, D) -> the first layer's queries (..., B, D)."""
        w = self.layers[0]
        return torch.matmul(norm(x, w.gain_1, w.bias_1)[0], w.w_q)

    def by_distance(self, q: Tensor, mask: Tensor) -> Tensor:
        """Scores (B H, 1, M + 1) as far as they depend on distances alone: queries (B H, D/H), mask (B, M + 1)."""
        self.scores_by_head.copy_(mask.unsqueeze(1))
        self.scores.squeeze(1).addmm_(q, self.r, alpha=self.scale)
        return self.scores

    def step(self, t: int, x: Tensor, mask: Tensor, q: Tensor, scores: Tensor) -> Tensor:
        """One step.

        Args:
            t: its number.
            x: x_t^0 (B, D).
            mask: (B, M + 1).
            q: the first layer's queries, (B H, D/H).
            scores: of them ``by_distance``.

        Returns:
            x_t^L (B, D); m_t is made too.
        """
        room = t if self.saves else 0
        h = self.x[0][room].copy_(x)
        for i, w in enumerate(self.layers):
            if i:
                q = torch.mm(norm(h, w.gain_1, w.bias_1)[0], w.w_q).view(-1, self.d_head)
                scores = self.by_distance(q, mask)
            self.attend(t, i, q, scores)
            h = self.feed_forward(room, i, h)
        torch.mm(self.mix, self.mixed[room], out=self.flat_m[t])
        return h

    def attend(self, t: int, i: int, q: Tensor, scores: Tensor) -> None:
        """Fills in what layer i's heads read at step t with the queries (B H, D/H); completes the scores."""
        scores.baddbmm_(q.unsqueeze(1), self.keys[t], alpha=self.scale)
        attention = torch.softmax(scores, dim=-1, out=self.softmax)
        torch.bmm(attention, self.values[t], out=self.heads[i][t if self.saves else 0])
        if self.saves:
            self.q[t][i].copy_(q)
            self.attention[t][i].copy_(attention.squeeze(1))

    def feed_forward(self, t: int, i: int, h: Tensor) -> Tensor:
        """From what layer i got and what its heads read to x_t^(i + 1), (B, D)."""
        w = self.layers[i]
        h = torch.addmm(h, self.o[i][t], w.w_o, out=self.h[i][t])
        u = torch.addmm(w.b_1, norm(h, w.gain_2, w.bias_2)[0], w.w_1, out=self.u[i][t]).relu_()
        return torch.addmm(w.b_2, u, w.w_2, out=self.x[i + 1][t]).add_(h)

    def project(self, t: int) -> None:
        """Makes the key and the value of m_t, for the steps after t."""
        n = norm(self.m[t], self.shared.gain_m, self.shared.bias_m)[0]
        both = torch.mm(n, self.w_kv).view(len(n), 2, -1, self.d_head)
        self.written[t].copy_(both.transpose(0, 1))


def scan(
    saves: bool, heads: int, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, *weights: Tensor
) -> tuple[Tensor, Tape]:
    """All steps.

    Args:
        saves: whether a backward may follow.
        heads: H.
        x: x^0, (T, B, D).
        k, v: keys and values of the initial slots, (B, M, D).
        mask: as ``readable_mask`` gives it.
        weights: as ``group`` takes them.

    Returns:
        x^L, (T, B, D), and the tape with the memory vectors.
    """
    shared, layers = group(weights)
    tape = new_tape(saves, x, len(x), [by_head(k, heads), by_head(v, heads)], layers)
    return Forward(saves, tape, shared, layers).run(x, mask), tape
