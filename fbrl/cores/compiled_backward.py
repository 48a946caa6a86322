"""The compiled scan backwards: from the gradients at what the steps of a block gave to those at what they were given.

``fbrl.cores.compiled_arrays`` says what the letters and the arrays are; d_x is the gradient at x. The gradients of the
weights are added up every ``CHUNK`` steps, in one product each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fbrl.cores.compiled_arrays import CHUNK
from fbrl.cores.compiled_attention import attend_backward, by_distance_backward, by_head, spread, spread_within
from fbrl.cores.compiled_cache import cached
from fbrl.cores.compiled_forward import copy_in, copy_out
from fbrl.cores.compiled_products import Array, add_product, padded, product, tiles
from fbrl.cores.compiled_vectors import (
    INLINE,
    OPTIONS,
    V,
    address,
    fma,
    load,
    splat,
    store,
    total,
    where_positive,
    zeros,
)


class Chunk(NamedTuple):
    """The gradients of ``CHUNK`` steps, C; in the first two the norms themselves, which no tape keeps."""

    n_1: Array  # (L, C, b, D+)
    n_2: Array
    n_m: Array  # (C, b, D+)
    x: Array  # (L, C, b, D+): at x^1 to x^L
    h: Array  # (L, C, b, D+): after the attention
    u: Array  # (L, C, b, F+): before the relu
    o: Array  # (L, C, b, D+)
    q: Array  # (L, C, b, E)
    s: Array  # (L, C, b, H, W): at the products of queries and keys
    kv: Array  # (C, b, 2 D+): at the keys and values that the steps wrote
    q_heads: Array  # (b, L, C, H, D/H+): the queries, and o, head by head; empty where heads are whole vectors
    o_heads: Array


@njit(**INLINE)
def norm_backward(d_n, y, s, gain, bias, real, D, given, d_x, n, d_gain, d_bias):
    """d_x = given + the gradient at the input of ``norm``, whose output n is made again; adds to d_gain and d_bias."""
    number, width = d_n.dtype.type, d_n.shape[1]
    for i in range(d_n.shape[0]):
        row = i * width
        sums, products = zeros(d_n), zeros(d_n)
        for e in range(0, width, V):
            y_e, of_gain, d_e = load(y, row + e), load(gain, e), load(d_n, row + e)
            store(n, row + e, fma(y_e, of_gain, load(bias, e)))
            store(d_gain, e, fma(d_e, y_e, load(d_gain, e)))
            store(d_bias, e, d_e + load(d_bias, e))
            d_y = d_e * of_gain
            sums = sums + d_y
            products = fma(d_y, y_e, products)
        s_i = splat(d_n, s[i])
        mean, slope = splat(d_n, total(sums) / number(D)), splat(d_n, total(products) / number(D))
        for e in range(0, width, V):
            d_y = load(d_n, row + e) * load(gain, e) - mean - load(y, row + e) * slope
            store(d_x, row + e, fma(d_y * load(real, e), s_i, load(given, row + e)))


@njit(**INLINE)
def gather(d_k, d_v, slot, D, kv):
    """The gradients at the keys and values of a slot, to kv (b, 2 D+)."""
    for i in range(kv.shape[0]):
        for d in range(D):
            kv[i, d] = d_k[i, slot, d]
            kv[i, D + d] = d_v[i, slot, d]


@njit(**INLINE)
def memory_backward(slot, D, d_k, d_v, tape, w, d_m, d_n, kv, n, g):
    """From keys and values of a slot to its memory vectors (b, D+), added to d_m; kv and n are filled in."""
    gather(d_k, d_v, slot, D, kv)
    product(kv, w.w_kv, w.none, d_n)
    y, s = tape.y_m[slot], tape.s_m[slot]
    norm_backward(d_n, y, s, w.gain_m, w.bias_m, w.real, D, d_m, d_m, n, g.gain_m, g.bias_m)


@njit(**INLINE)
def layer_backward(l, t, z, D, tape, k, v_t, w, chunk, d_x, d_n, g):
    """From x^(l + 1), whose gradient d_x (b, D+) becomes that at x^l."""
    x, h, u, o, q = chunk.x[l, z], chunk.h[l, z], chunk.u[l, z], chunk.o[l, z], chunk.q[l, z]
    for e in range(0, x.size, V):
        store(x, e, load(d_x, e))
    product(x, w.w_2[l], w.none, u)
    for e in range(0, u.size, V):
        store(u, e, where_positive(load(tape.u[l, t], e), load(u, e)))
    product(u, w.w_1[l], w.none, d_n)
    y, s, n = tape.y_2[l, t], tape.s_2[l, t], chunk.n_2[l, z]
    norm_backward(d_n, y, s, w.gain_2[l], w.bias_2[l], w.real, D, x, h, n, g.gain_2[l], g.bias_2[l])
    product(h, w.w_o[l], w.none, o)
    for i in range(x.shape[0]):
        a, d_s, n_i = tape.a[l, t, i], chunk.s[l, z, i], tape.readable[t, i]
        attend_backward(o[i], k[i], v_t[i], a, w, t, n_i, d_s, q[i])
    by_distance_backward(chunk.s[l, z], w, q)
    product(q, w.w_q[l], w.none, d_n)
    y, s, n = tape.y_1[l, t], tape.s_1[l, t], chunk.n_1[l, z]
    norm_backward(d_n, y, s, w.gain_1[l], w.bias_1[l], w.real, D, h, d_x, n, g.gain_1[l], g.bias_1[l])


@njit(**OPTIONS)
def add_rows(n, g, b):
    """b (N) += the n rows that follow each other from the first of g on."""
    N = b.size
    for e in range(0, N, V):
        sums = load(b, e)
        for i in range(n):
            sums = sums + load(g, i * N + e)
        store(b, e, sums)


@njit(**INLINE)
def add_weights(steps, t, d_head, tape, chunk, g):
    """The gradients of the weights from the chunk of ``steps`` steps that begins at step t."""
    L, _, b, width = tape.x.shape
    (H, W), n = tape.a.shape[3:], steps * b
    for l in range(L):
        add_product(n, chunk.q[l], chunk.n_1[l], g.w_q[l])
        add_product(n, chunk.h[l], tape.o[l, t], g.w_o[l])
        add_product(n, chunk.u[l], chunk.n_2[l], g.w_1[l])
        add_rows(n, chunk.u[l], g.b_1[l])
        add_product(n, chunk.x[l], tape.u[l, t], g.w_2[l])
        add_rows(n, chunk.x[l], g.b_2[l])
        by_row = width > H * d_head  # where rows are filled up, the heads do not follow each other from row to row
        for i in range(n if by_row else 1):
            rows, N, r = H if by_row else n * H, g.r.shape[1], address(g.r, 0)
            d_s, q = address(chunk.s[l], i * H * W), address(tape.q[l, t], i * width)
            tiles(W, N, rows, d_s, 1, W, q, 1, d_head, r, N, r, N)
    add_product(n, chunk.kv, chunk.n_m, g.w_kv)


@njit(**INLINE)
def add_mix(d_m, tape, t, last, mix):
    """The gradient of the mix from that at the memory vectors of step t; ``last``: x^L, both (b, D+)."""
    L = tape.x.shape[0]
    for l in range(L + 1):
        x, sums = tape.x[l, t] if l < L else last, zeros(d_m)
        for e in range(0, d_m.size, V):
            sums = fma(load(x, e), load(d_m, e), sums)
        mix[l] += total(sums)


@njit(**OPTIONS)
def add_scaled(scale, d, out):
    """out += scale d."""
    scales = splat(d, scale)
    for e in range(0, d.size, V):
        store(out, e, fma(scales, load(d, e), load(out, e)))


@njit(**INLINE)
def new_chunk(tape, D, E, d_head):
    """Room for a chunk; of the last step's keys and values nobody wants anything."""
    (L, _, b, width), C, dtype = tape.x.shape, CHUNK, tape.x.dtype
    (H, W), F, rows = tape.a.shape[3:], tape.u.shape[3], (L, C, b, width)
    heads = (b if d_head % V else 0, L, C, H, padded(d_head))
    return Chunk(
        np.empty(rows, dtype),
        np.empty(rows, dtype),
        np.zeros((C, b, width), dtype),
        np.empty(rows, dtype),
        np.empty(rows, dtype),
        np.empty((L, C, b, F), dtype),
        np.empty(rows, dtype),
        np.empty((L, C, b, E), dtype),
        np.empty((L, C, b, H, W), dtype),
        np.zeros((C, b, padded(2 * D)), dtype),
        np.empty(heads, dtype),
        np.empty(heads, dtype),
    )


@njit(**INLINE)
def mirror(tape, D):
    """Keys (b, S, E) from the tape's k_t, and v_t (b, D, S) from its values."""
    b, S, E = tape.v.shape
    k, v_t = np.empty((b, S, E), tape.v.dtype), np.empty((b, D, S), tape.v.dtype)
    for i in range(b):
        for j in range(S):
            for d in range(D):
                k[i, j, d] = tape.k_t[i, d, j]
            for d in range(D, E):
                k[i, j, d] = 0
        for d in range(D):
            for j in range(S):
                v_t[i, d, j] = tape.v[i, j, d]
    return k, v_t


@cached
@njit(**OPTIONS)
def backward(first, M, out, d_out, d_memory, w, tape, g, d_x0):
    """The steps of a block, the last one first.

    Args:
        first: its first sequence of the B.
        M: the slots of the window.
        out: what ``forward`` gave, (B, T, D).
        d_out: the gradient at it.
        d_memory: the gradient at the memory vectors from outside the scan, (B, T, D).
        w: the weights.
        tape: what ``forward`` left behind.
        g: the gradients of the weights, added to.
        d_x0: filled in with the gradient at x^0, (B, T, D).
    """
    (T, D), (L, _, b, width), dtype = out.shape[1:], tape.x.shape, out.dtype
    W, (_, S, E), d_head = tape.a.shape[4], tape.v.shape, w.r_t.shape[0]
    chunk, (k, v_t) = new_chunk(tape, D, E, d_head), mirror(tape, D)
    d_k, d_v = np.zeros((b, S, E), dtype), np.zeros((b, S, E), dtype)
    d_x, d_m = np.empty((b, width), dtype), np.empty((b, width), dtype)
    d_n, last = np.empty((b, width), dtype), np.empty((b, width), dtype)
    for t in range(T - 1, -1, -1):
        z = t % CHUNK
        steps = min(CHUNK, T - (t - z))  # of the chunk
        copy_in(d_memory, first, t, D, d_m)
        if t + 1 < T:
            for i in range(b):
                spread_within(tape, chunk, t, z, steps, i, d_head, d_k[i], d_v[i])
            memory_backward(W + t, D, d_k, d_v, tape, w, d_m, d_n, chunk.kv[z], chunk.n_m[z], g)
        copy_in(out, first, t, D, last)
        add_mix(d_m, tape, t, last, g.mix)
        copy_in(d_out, first, t, D, d_x)
        for l in range(L - 1, -1, -1):
            add_scaled(w.mix[l + 1], d_m, d_x)
            layer_backward(l, t, z, D, tape, k, v_t, w, chunk, d_x, d_n, g)
        add_scaled(w.mix[0], d_m, d_x)
        copy_out(d_x, first, t, D, d_x0)
        if d_head % V:
            for i in range(b):
                by_head(tape.q, t, z, i, d_head, chunk.q_heads[i])
                by_head(chunk.o, z, z, i, d_head, chunk.o_heads[i])
        if z == 0:
            for i in range(b):
                spread(tape, chunk, t, steps, i, d_head, d_k[i], d_v[i])
            add_weights(steps, t, d_head, tape, chunk, g)
    for j in range(W - M, W):  # the initial slots
        z = (j - (W - M)) % CHUNK
        memory_backward(j, D, d_k, d_v, tape, w, d_m, d_n, chunk.kv[z], chunk.n_m[z], g)
        if z == CHUNK - 1 or j == W - 1:
            add_product((z + 1) * b, chunk.kv, chunk.n_m, g.w_kv)
