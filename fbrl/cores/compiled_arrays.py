"""The arrays that the compiled scan works on: weights as its products read them, what the steps leave behind.

Letters as in ``fbrl.cores.feedback``; b sequences of a block of the B; F the width inside the feed-forward block; W the
M slots of the window, filled up from the left to a multiple of V; S = W + T slots in all, of which step t reads t to
t + W - 1 and writes W + t. A ``+`` after a width: filled up with zeros to a multiple of V. E is D+ and, where a head's
width is no multiple of V, the room that its last vector needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fbrl.cores.compiled_products import Array, P, pack, padded, panels
from fbrl.cores.compiled_vectors import V
from fbrl.cores.feedback_forward import group

CHUNK = 4  # steps between two additions to the gradients of the weights


class Sizes(NamedTuple):
    """Those of a core."""

    D: int
    L: int
    H: int
    M: int
    F: int

    @property
    def W(self) -> int:
        """Slots, filled up."""
        return padded(self.M)

    @property
    def E(self) -> int:
        """The width of keys and values, the last head's last vector included."""
        d_head = self.D // self.H
        return max(padded(self.D), padded(self.D - d_head + padded(d_head)))


class Weights(NamedTuple):
    """Those of a way: the matrices, from ``w_kv`` on, are packed, for the way forwards after they were transposed."""

    none: Array  # zeros, as many as any row has
    hidden: Array  # V times -inf, V times 0
    real: Array  # (D+): 1, and 0 where it is filled up
    mix: Array  # (L + 1)
    r: Array  # (W, D/H+): the farthest first
    r_t: Array  # (D/H, W)
    gain_m: Array  # (D+)
    bias_m: Array
    gain_1: Array  # (L, D+)
    bias_1: Array
    gain_2: Array
    bias_2: Array
    b_1: Array  # (L, F+)
    b_2: Array  # (L, D+)
    w_kv: Array  # (2 D, D)
    w_q: Array  # L times (D, D)
    w_o: Array
    w_1: Array  # L times (F, D)
    w_2: Array


class Tape(NamedTuple):
    """What the steps of a block leave behind; R is T or, where no backward will follow, 1."""

    x: Array  # (L, R, b, D+): x^0 to x^(L-1)
    y_1: Array  # (L, R, b, D+): layer norms without gain and bias
    s_1: Array  # (L, R, b): by what they were multiplied
    q: Array  # (L, R, b, D+)
    a: Array  # (L, R, b, H, W): attention
    o: Array  # (L, R, b, E)
    y_2: Array
    s_2: Array
    u: Array  # (L, R, b, F+)
    y_m: Array  # (W + R, b, D+): of the memory vectors, the initial ones first
    s_m: Array  # (W + R, b)
    v: Array  # (b, S, E)
    k_t: Array  # (b, D, S)
    readable: Array  # (R, b) int64: how many of the window's slots

    @classmethod
    def of(cls, flat: Array, shapes: Sequence[tuple[int, ...]], readable: Array) -> Tape:
        """The tape that lies in ``flat``, with shapes as ``tape_shapes`` gives them."""
        return cls(*[*carve(flat, shapes), readable])


class Gradients(NamedTuple):
    """Of the weights."""

    mix: Array  # (L + 1)
    r: Array  # (W, D/H+)
    gain_m: Array  # (D+)
    bias_m: Array
    w_kv: Array  # (2 D, D+)
    gain_1: Array  # (L, D+)
    bias_1: Array
    w_q: Array  # (L, D, D+)
    w_o: Array
    gain_2: Array
    bias_2: Array
    w_1: Array  # (L, F, D+)
    b_1: Array  # (L, F+)
    w_2: Array  # (L, D, F+)
    b_2: Array


def tape_shapes(sizes: Sizes, b: int, T: int, saves: bool) -> list[tuple[int, ...]]:
    """As ``Tape`` has them, all but ``readable``; ``saves``: whether a backward may follow."""
    (D, L, H, _, F), W, E, R = sizes, sizes.W, sizes.E, T if saves else 1
    rows, narrow = (L, R, b), (L, R, b, padded(D))
    shapes = [narrow, narrow, rows, narrow, (*rows, H, W), (*rows, E), narrow, rows, (*rows, padded(F))]
    return [*shapes, (W + R, b, padded(D)), (W + R, b), (b, W + T, E), (b, D, W + T)]


def gradient_shapes(sizes: Sizes) -> list[tuple[int, ...]]:
    """As ``Gradients`` has them."""
    D, L, H, _, F = sizes
    width, square = padded(D), (L, D, padded(D))
    norm = [(L, width), (L, width)]
    shapes = [(L + 1,), (sizes.W, padded(D // H)), (width,), (width,), (2 * D, width), *norm, square, square, *norm]
    return [*shapes, (L, F, width), (L, padded(F)), (L, D, padded(F)), (L, width)]


def vector_shapes(sizes: Sizes) -> list[tuple[int, ...]]:
    """As ``Weights`` has those that are no matrices."""
    (D, L, H, _, F), W, width = sizes, sizes.W, padded(sizes.D)
    shapes = [(max(padded(2 * D), padded(F), W),), (2 * V,), (width,), (L + 1,), (W, padded(D // H)), (D // H, W)]
    return [*shapes, *[(width,)] * 2, *[(L, width)] * 4, (L, padded(F)), (L, width)]


def matrix_shapes(sizes: Sizes, forwards: bool) -> list[tuple[int, ...]]:
    """As ``Weights`` has the matrices, for the way forwards or back."""
    D, L, _, _, F = sizes
    shapes = []
    for O, N in ((2 * D, D), (D, D), (D, D), (F, D), (D, F)):
        shapes.append((panels(O), N, P) if forwards else (panels(N), O, P))
    return [shapes[0], *((L, *shape) for shape in shapes[1:])]


def room_for(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many numbers ``carve`` needs."""
    return sum(padded(math.prod(shape)) for shape in shapes) + V  # a vector that begins in the last may end after it


def carve(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Arrays of these shapes, one after the other in ``flat``; each begins as well aligned as it does."""
    first, found = 0, []
    for shape in shapes:
        size = math.prod(shape)
        found.append(flat[first : first + size].reshape(shape))
        first += padded(size)
    return found


def fill(w: Weights, back: Weights, weights: Sequence[Any], sizes: Sizes) -> None:
    """Packs the weights, given as ``group`` takes them, into room of zeros; both ways share what is no matrix."""
    D, unused = sizes.D, sizes.W - sizes.M
    shared, layers = group(weights)
    w.hidden[:V] = -np.inf
    w.real[:D] = 1
    w.mix[:] = shared.mix
    w.r[unused:, : shared.distance.shape[1]] = shared.distance[::-1]
    w.r_t[:, unused:] = shared.distance[::-1].T
    w.gain_m[:D], w.bias_m[:D] = shared.gain_m, shared.bias_m
    pack(shared.w_k, 0, back.w_kv, w.w_kv)
    pack(shared.w_v, D, back.w_kv, w.w_kv)
    for l, layer in enumerate(layers):
        for name in ("gain_1", "bias_1", "gain_2", "bias_2", "b_1", "b_2"):
            given = getattr(layer, name)
            getattr(w, name)[l, : len(given)] = given
        for name in ("w_q", "w_o", "w_1", "w_2"):
            pack(getattr(layer, name), 0, getattr(back, name)[l], getattr(w, name)[l])


def gradients_of(g: Gradients, sizes: Sizes) -> list[Array]:
    """In the order and the shapes of what ``fill`` was given."""
    (D, L, H, M, F), W = sizes, sizes.W
    found = [g.mix, g.r[W - M :, : D // H][::-1], g.gain_m[:D], g.bias_m[:D], g.w_kv[:D, :D], g.w_kv[D:, :D]]
    for l in range(L):
        found += [g.gain_1[l, :D], g.bias_1[l, :D], g.w_q[l, :, :D], g.w_o[l, :, :D]]
        found += [g.gain_2[l, :D], g.bias_2[l, :D], g.w_1[l, :, :D], g.b_1[l, :F], g.w_2[l, :, :F], g.b_2[l, :D]]
    return found
