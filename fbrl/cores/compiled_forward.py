"""The compiled scan forwards: all steps of a block of sequences, as ``fbrl.cores.feedback`` defines them.

``fbrl.cores.compiled_arrays`` says what the letters and the arrays are.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fbrl.cores.compiled_attention import attend, by_distance
from fbrl.cores.compiled_cache import cached
from fbrl.cores.compiled_products import padded, product
from fbrl.cores.compiled_vectors import (
    INLINE,
    OPTIONS,
    V,
    fma,
    load,
    splat,
    store,
    total,
    where_positive,
    zeros,
)


@njit(**INLINE)
def norm(x, gain, bias, real, D, y, n, s):
    """n = LN(x) of rows (b, D+); y is the same before gain and bias, s (b) 1 / deviation."""
    number, width = x.dtype.type, x.shape[1]
    for i in range(x.shape[0]):
        row = i * width
        sums = zeros(x)
        for e in range(0, width, V):
            sums = sums + load(x, row + e)
        mean = splat(x, total(sums) / number(D))
        squares = zeros(x)
        for e in range(0, width, V):
            d = (load(x, row + e) - mean) * load(real, e)
            squares = fma(d, d, squares)
        s[i] = number(1) / math.sqrt(total(squares) / number(D) + number(1e-5))
        for e in range(0, width, V):
            y_e = (load(x, row + e) - mean) * load(real, e) * splat(x, s[i])
            store(y, row + e, y_e)
            store(n, row + e, fma(y_e, load(gain, e), load(bias, e)))


@njit(**INLINE)
def feed_forward(h, w, l, n, D, y, s, u, x):
    """x = h + W2 relu(W1 LN2(h) + b1) + b2 of layer l, for rows (b, D+); h is written to."""
    norm(h, w.gain_2[l], w.bias_2[l], w.real, D, y, n, s)
    product(n, w.w_1[l], w.b_1[l], u)
    for e in range(0, u.size, V):
        store(u, e, where_positive(load(u, e), load(u, e)))
    width = h.shape[1]
    for i in range(h.shape[0]):
        for e in range(0, width, V):
            store(h, i * width + e, load(h, i * width + e) + load(w.b_2[l], e))
    product(u, w.w_2[l], h, x)


@njit(**INLINE)
def copy_in(given, first, t, D, x):
    """Rows of step (or slot) t of ``given`` (B, T, D), from the sequence ``first`` on, to x (b, D+)."""
    for i in range(x.shape[0]):
        for e in range(D):
            x[i, e] = given[first + i, t, e]
        for e in range(D, x.shape[1]):
            x[i, e] = 0


@njit(**INLINE)
def copy_out(x, first, t, D, given):
    """The way back from ``copy_in``."""
    for i in range(x.shape[0]):
        for e in range(D):
            given[first + i, t, e] = x[i, e]


@njit(**INLINE)
def project(m, row, slot, w, D, n, kv, tape):
    """Keys and values of memory vectors (b, D+), one a sequence, to a slot; their norms to a row of the tape."""
    norm(m, w.gain_m, w.bias_m, w.real, D, tape.y_m[row], n, tape.s_m[row])
    product(n, w.w_kv, w.none, kv)
    (b, _, S), E, width = tape.k_t.shape, tape.v.shape[2], kv.shape[1]
    for i in range(b):
        of_row, place = i * width, (i * S + slot) * E
        for e in range(0, D, V):
            store(tape.v, place + e, load(kv, of_row + D + e))
        for d in range(D):
            tape.k_t[i, d, slot] = kv[i, d]


@cached
@njit(**OPTIONS)
def start(first, slots, length, episode_start, w, tape):
    """Keys and values of the initial slots (B, M, D); those of zeros where none was written in the current episode."""
    b, D, (M, W) = tape.k_t.shape[0], slots.shape[2], (slots.shape[1], tape.a.shape[4])
    dtype, width = slots.dtype, w.real.size
    m, n, kv = np.zeros((b, width), dtype), np.empty((b, width), dtype), np.empty((b + 1, padded(2 * D)), dtype)
    for j in range(W):
        for i in range(b):
            n_i = 0 if episode_start[first + i, 0] else length[first + i]
            if W - j <= n_i:
                for e in range(D):
                    m[i, e] = slots[first + i, j - (W - M), e]
            else:
                m[i] = 0
        project(m, j, j, w, D, n, kv[:b], tape)


@njit(**INLINE)
def write(mix, x, p, last, m):
    """m = sum_l mix_l x^l, of the step p on the tape and of x^L (b, D+)."""
    for e in range(0, m.size, V):
        sums = splat(m, mix[-1]) * load(last, e)
        for l in range(x.shape[0]):
            sums = fma(splat(m, mix[l]), load(x[l, p], e), sums)
        store(m, e, sums)


@cached
@njit(**OPTIONS)
def forward(first, done, M, x, length, episode_start, w, tape, out, memory):
    """The steps of a block.

    Args:
        first: its first sequence of the B.
        done: how many steps since ``start`` the tape has seen.
        M: the slots of the window.
        x: x^0 (B, T, D).
        length: readable slots (B,), renewed.
        episode_start: (B, T).
        w: the weights.
        tape: the block's own, filled in.
        out: filled in with x^L, (B, T, D).
        memory: filled in with the memory vectors, (B, T, D).
    """
    (T, D), (L, R, b, width) = x.shape[1:], tape.x.shape
    W, dtype = tape.a.shape[4], x.dtype
    h, n = np.empty((b, width), dtype), np.empty((b, width), dtype)
    m, last = np.empty((b, width), dtype), np.empty((b, width), dtype)
    kv = np.empty((b + 1, padded(2 * D)), dtype)
    for t in range(T):
        p = t if R > 1 else 0
        for i in range(b):
            readable = 0 if episode_start[first + i, t] else length[first + i]
            tape.readable[p, i], length[first + i] = readable, min(readable + 1, M)
        copy_in(x, first, t, D, tape.x[0, p])
        for l in range(L):
            x_l, x_next = tape.x[l, p], tape.x[l + 1, p] if l + 1 < L else last
            norm(x_l, w.gain_1[l], w.bias_1[l], w.real, D, tape.y_1[l, p], n, tape.s_1[l, p])
            product(n, w.w_q[l], w.none, tape.q[l, p])
            by_distance(tape.q[l, p], w, tape.a[l, p])
            for i in range(b):
                a, o = tape.a[l, p, i], tape.o[l, p, i]
                attend(tape.q[l, p, i], tape.k_t[i], tape.v[i], w, done + t, tape.readable[p, i], a, o)
            product(tape.o[l, p], w.w_o[l], x_l, h)
            feed_forward(h, w, l, n, D, tape.y_2[l, p], tape.s_2[l, p], tape.u[l, p], x_next)
        write(w.mix, tape.x, p, last, m)
        copy_out(last, first, t, D, out)
        copy_out(m, first, t, D, memory)
        project(m, W + p, W + done + t, w, D, n, kv[:b], tape)
