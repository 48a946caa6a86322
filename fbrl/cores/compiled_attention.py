"""Attention in the compiled scan: what the heads of a block's sequences read, and the way back.

``fbrl.cores.compiled_arrays`` says what the letters and the arrays are.
"""

from __future__ import annotations

import math

from numba import njit

from fbrl.cores.compiled_products import padded, tiles
from fbrl.cores.compiled_vectors import (
    INLINE,
    V,
    address,
    at,
    exp,
    fma,
    highest,
    load,
    maximum,
    splat,
    store,
    total,
    zeros,
)


@njit(**INLINE)
def softmax(a, row, first, scale, hidden, n_hidden):
    """Attention from the products (q . k_j + q . r_(t-j)) at ``row`` of a (H, W): over the slots and the null slot.

    The slots before ``first`` and ``n_hidden`` more are not readable. ``hidden``: V times -inf, V times 0.
    """
    number, W = a.dtype.type, a.shape[1]
    mask, scales = load(hidden, V - n_hidden), splat(a, scale)
    top = zeros(a)  # the null slot's score
    for j in range(first, W, V):
        s = fma(load(a, row + j), scales, mask)
        mask = zeros(a)
        top = maximum(top, s)
        store(a, row + j, s)
    top = splat(a, highest(top))
    sums = exp(zeros(a) - top, a) * splat(a, number(1 / V))  # the null slot's, in V parts
    for j in range(first, W, V):
        e = exp(load(a, row + j) - top, a)
        sums = sums + e
        store(a, row + j, e)
    inverse = splat(a, number(1) / total(sums))
    for j in range(0, first, V):
        store(a, row + j, zeros(a))
    for j in range(first, W, V):
        store(a, row + j, load(a, row + j) * inverse)


@njit(**INLINE)
def by_distance(q, w, a):
    """a (b, H, W) = q . r of the queries q (b, D+) of all heads, for every distance."""
    (b, H, W), d_head, width = a.shape, w.r_t.shape[0], q.shape[1]
    rows, n = (b, H) if width > H * d_head else (1, b * H)  # filled up, heads do not follow each other from row to row
    r, none = address(w.r_t, 0), address(w.none, 0)
    for i in range(rows):
        tiles(n, W, d_head, address(q, i * width), d_head, 1, r, 1, W, none, 0, address(a, i * H * W), W)


@njit(**INLINE)
def attend(q, k_t, v, w, t, n, a, o):
    """What the heads of one sequence read at step t, with n readable slots: o (E).

    ``a`` (H, W) holds the products of queries and distances, and then the attention.
    """
    (H, W), (d_head, _), S, E = a.shape, w.r_t.shape, k_t.shape[1], v.shape[1]
    first, scale = (W - n) // V * V, q.dtype.type(1 / math.sqrt(d_head))
    for h in range(H):
        of_h, keys = address(a, h * W + first), address(k_t, h * d_head * S + t + first)
        tiles(1, W - first, d_head, address(q, h * d_head), 0, 1, keys, 1, S, of_h, 0, of_h, 0)
    for h in range(H):
        softmax(a, h * W, first, scale, w.hidden, W - n - first)
    for h in range(H):
        for e in range(h * d_head, (h + 1) * d_head, V):
            store(o, e, weighted(address(a, h * W), address(v, t * E + e), E, first, W))


@njit(**INLINE)
def weighted(a, v, E, first, W):
    """sum_j a_j v_j over first <= j < W, a multiple of 4: one vector of each row of v, which are E apart."""
    o_0, o_1, o_2, o_3 = zeros(a), zeros(a), zeros(a), zeros(a)
    for j in range(first, W, 4):
        o_0 = fma(at(a, j), load(v, j * E), o_0)
        o_1 = fma(at(a, j + 1), load(v, (j + 1) * E), o_1)
        o_2 = fma(at(a, j + 2), load(v, (j + 2) * E), o_2)
        o_3 = fma(at(a, j + 3), load(v, (j + 3) * E), o_3)
    return (o_0 + o_1) + (o_2 + o_3)


@njit(**INLINE)
def attend_backward(d_o, k, v_t, a, w, t, n, d_s, d_q):
    """From what the heads of one sequence read to the products d_s (H, W) and, by the keys, the queries d_q (E)."""
    (H, W), (d_head, _), S, E = a.shape, w.r_t.shape, v_t.shape[1], k.shape[1]
    first, scale = (W - n) // V * V, splat(a, a.dtype.type(1 / math.sqrt(d_head)))
    for h in range(H):
        of_h, values = address(d_s, h * W + first), address(v_t, h * d_head * S + t + first)
        tiles(1, W - first, d_head, address(d_o, h * d_head), 0, 1, values, 1, S, address(w.none, 0), 0, of_h, 0)
    for h in range(H):
        sums = zeros(a)
        for j in range(0, first, V):
            store(d_s, h * W + j, zeros(a))
        for j in range(h * W + first, (h + 1) * W, V):
            sums = fma(load(a, j), load(d_s, j), sums)
        mean = splat(a, total(sums))
        for j in range(h * W + first, (h + 1) * W, V):
            store(d_s, j, load(a, j) * (load(d_s, j) - mean) * scale)
    for h in range(H):
        for e in range(h * d_head, (h + 1) * d_head, V):
            store(d_q, e, weighted(address(d_s, h * W), address(k, t * E + e), E, first, W))


@njit(**INLINE)
def by_distance_backward(d_s, w, d_q):
    """d_q (b, E) += what the products d_s (b, H, W) want of the queries through the distances."""
    (b, H, W), d_head, width, (_, R) = d_s.shape, w.r_t.shape[0], d_q.shape[1], w.r.shape
    if d_head == R and width == H * d_head:
        out = address(d_q, 0)
        tiles(b * H, R, W, address(d_s, 0), W, 1, address(w.r, 0), 1, R, out, R, out, R)
        return
    for i in range(b):
        for h in range(H):  # a head's last vector reaches into the next one's numbers, and adds zeros
            out = address(d_q, i * width + h * d_head)
            tiles(1, R, W, address(d_s, (i * H + h) * W), 0, 1, address(w.r, 0), 1, R, out, 0, out, 0)


@njit(**INLINE)
def by_head(x, t, z, i, d_head, heads):
    """The rows x[:, t, i] of the layers, at least D wide, to heads[:, z] (L, H, D/H+): zeros fill every head up."""
    L, _, H, width = heads.shape
    for l in range(L):
        for h in range(H):
            for d in range(d_head):
                heads[l, z, h, d] = x[l, t, i, h * d_head + d]
            for d in range(d_head, width):
                heads[l, z, h, d] = 0


@njit(**INLINE)
def rows_of(x, t, i, heads):
    """Where x[:, t:, i] of the layers begins, and the distances of two steps and of two layers there.

    It is read from ``heads``, which ``by_head`` filled, where there are such: a head's last vector would have numbers
    of the next one. Two heads lie D/H+ apart either way.
    """
    if heads.size > 0:
        _, L, C, H, width = heads.shape
        return address(heads, i * L * C * H * width), H * width, C * H * width
    _, R, b, width = x.shape
    return address(x, (t * b + i) * width), b * width, R * b * width


@njit(**INLINE)
def spread(tape, chunk, t, steps, i, d_head, d_k, d_v):
    """What the ``steps`` steps of a chunk, from t on, want of the keys and values (S, E) that i had before step t.

    What is the slot j of step t is the slot j - z in the window of the step t + z.
    """
    (L, _, b, H, W), E, wide = chunk.s.shape, d_k.shape[1], padded(d_head)
    q, q_step, q_layer = rows_of(tape.q, t, i, chunk.q_heads)
    d_o, o_step, o_layer = rows_of(chunk.o, 0, i, chunk.o_heads)
    first = W
    for z in range(steps):
        first = min(first, z + (W - tape.readable[t + z, i]) // V * V)
    for h in range(H):
        for l in range(L):
            d_s, a = address(chunk.s[l, 0, i, h], 0), address(tape.a[l, t, i, h], 0)
            q_h, d_o_h = address(q, l * q_layer + h * wide), address(d_o, l * o_layer + h * wide)
            j = first
            while j < W:  # one by one as long as j is in the windows of the first j + 1 steps only
                rows, K = (1, j + 1) if j < steps - 1 else (W - j, steps)
                of_k, of_v = address(d_k, (t + j) * E + h * d_head), address(d_v, (t + j) * E + h * d_head)
                tiles(rows, wide, K, address(d_s, j), 1, b * H * W - 1, q_h, 1, q_step, of_k, E, of_k, E)
                tiles(rows, wide, K, address(a, j), 1, b * H * W - 1, d_o_h, 1, o_step, of_v, E, of_v, E)
                j += rows


@njit(**INLINE)
def spread_within(tape, chunk, t, z, steps, i, d_head, d_k, d_v):
    """The same of the keys and values of step t, the chunk's step z: later ones of its ``steps`` read them."""
    (L, _, b, H, W), E, wide = chunk.s.shape, d_k.shape[1], padded(d_head)
    q, q_step, q_layer = rows_of(tape.q, t - z, i, chunk.q_heads)
    d_o, o_step, o_layer = rows_of(chunk.o, 0, i, chunk.o_heads)
    for h in range(H):
        for e in range(0, wide, V):
            place = (W + t) * E + h * d_head + e
            of_k, of_v = load(d_k, place), load(d_v, place)
            for l in range(L):
                for later in range(z + 1, steps):
                    j = ((later * b + i) * H + h) * W + W - (later - z)
                    d_s, a = at(chunk.s[l], j), at(tape.a[l, t - z], j)
                    of_k = fma(d_s, load(q, l * q_layer + later * q_step + h * wide + e), of_k)
                    of_v = fma(a, load(d_o, l * o_layer + later * o_step + h * wide + e), of_v)
            store(d_k, place, of_k)
            store(d_v, place, of_v)
