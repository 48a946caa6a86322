"""The scan as two Triton kernels: one program works a block of sequences through all steps, forwards or backwards.

Letters: B sequences, T steps, M slots, D width, H heads, E = D/H, L layers, F inside the feed-forward block, S = M + T
slots in all: step t reads the slots t .. t + M - 1 and writes the slot M + t. D, E and F are powers of two from 16 on;
beyond the true ones all weights are zero, so that only the norms know the true width. The norms are without gain and
bias, which are in the weights that follow them, as 1 / sqrt(D/H) is in those of the queries.

What a step leaves for the next one, and for other threads, goes through the GPU's memory, with a barrier between
writing and reading. The gradients of the weights are not made here: they are products over all steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Weights(NamedTuple):
    """What the steps compute with; the letters give the shapes."""

    mix: Any  # (L + 1)
    r: Any  # (M, E), the farthest first
    w_q: Any  # (L, HE, D)
    b_q: Any  # (L, HE)
    w_o: Any  # (L, D, HE)
    w_1: Any  # (L, F, D)
    b_1: Any  # (L, F)
    w_2: Any  # (L, D, F)
    b_2: Any  # (L, D)
    w_k: Any  # (HE, D)
    b_k: Any  # (HE)
    w_v: Any
    b_v: Any


class Tape(NamedTuple):
    """What the steps leave behind. R is T, or 1 where no backward will follow; x and a are not written then."""

    x: Any  # (L, R, B, D): x^0 .. x^(L - 1)
    n_1: Any  # (L, R, B, D): LN1, s_1 its 1 / deviation, and so on
    s_1: Any  # (L, R, B)
    q: Any  # (L, R, B, HE)
    a: Any  # (L, R, B, H, S): the attention, zero outside the window
    o: Any  # (L, R, B, HE)
    n_2: Any
    s_2: Any
    u: Any  # (L, R, B, F)
    n_m: Any  # (R, B, D)
    s_m: Any  # (R, B)
    k: Any  # (B, H, S, E), of which the first M slots are given
    v: Any


class Slope(NamedTuple):
    """The gradients at what is on the tape."""

    x: Any  # (L + 1, T, B, D)
    h: Any  # (L, T, B, D): after the attention
    u: Any  # (L, T, B, F): before the relu
    o: Any  # (L, T, B, HE)
    q: Any
    a: Any  # (L, T, B, H, S): at the scores, zero outside the window
    m: Any  # (T, B, D)
    k: Any  # (T, B, HE): at the keys and values that the steps wrote
    v: Any


@triton.jit
def add_one(x):
    """To try Triton with."""
    tl.store(x, tl.load(x) + 1)


@triton.jit
def product(x, alive, w, by_k, by_n, K: tl.constexpr, N: tl.constexpr):
    """What lies at the pointers ``x`` (block, 1) and after them, (block, K), times w (K, N) of those strides."""
    PART: tl.constexpr = min(K & -K, 8192 // N)  # what is multiplied at once: a divisor of K, of room in the registers
    n = tl.arange(0, N)[None, :]
    total = tl.zeros((x.shape[0], N), x.dtype.element_ty)
    for first in range(0, K, PART):
        k = first + tl.arange(0, PART)
        part = tl.load(x + k[None, :], mask=alive, other=0.0)
        factor = tl.load(w + k[:, None] * by_k + n * by_n)
        total = tl.dot(part, factor, total, input_precision="ieee", out_dtype=total.dtype)
    return total


@triton.jit
def norm(x, WIDTH: tl.constexpr):
    """The layer norm of x (block, D), and its 1 / deviation (block, 1)."""
    within = tl.arange(0, x.shape[1])[None, :] < WIDTH
    away = tl.where(within, x - tl.sum(x, 1)[:, None] / WIDTH, 0.0)
    s = 1 / tl.sqrt(tl.sum(away * away, 1)[:, None] / WIDTH + 1e-5)
    return away * s, s


@triton.jit
def norm_backward(d_n, n, s, WIDTH: tl.constexpr):
    """From the gradient at the norm n to that at what was normed; s as ``norm`` gave it."""
    d_x = s * (d_n - tl.sum(d_n, 1)[:, None] / WIDTH - n * (tl.sum(d_n * n, 1)[:, None] / WIDTH))
    return tl.where(tl.arange(0, n.shape[1])[None, :] < WIDTH, d_x, 0.0)


@triton.jit
def attend(q, hidden, k, v, r, a, window, SAVES: tl.constexpr):
    """One head of one step: queries (block, E), the mask (block, slots) and pointers -> what it reads, (block, E).

    ``window`` (block, slots, 1) says which of the slots there are.
    """
    s = tl.sum(q[:, None, :] * (tl.load(k, mask=window, other=0.0) + r[None, :, :]), 2) + hidden
    top = tl.maximum(tl.max(s, 1), 0.0)  # the null slot's score is 0
    weight = tl.exp(s - top[:, None])
    weight = weight / (tl.sum(weight, 1) + tl.exp(-top))[:, None]
    if SAVES:
        tl.store(a, weight[:, :, None], mask=window)
    return tl.sum(weight[:, :, None] * tl.load(v, mask=window, other=0.0), 1)  # its value is 0


@triton.jit(do_not_specialize=["B", "T", "L"])  # one compilation for all of them
def forward(
    x,  # (T, B, D): x^0
    mask,  # (T, B, M + 1): 0 where a slot is readable, -inf elsewhere
    outputs,  # (T, B, D): x^L, to be filled in, as are
    memory,  # (T, B, D): the memory vectors, and
    tape,
    weights,
    B,
    T,
    L,
    M: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    F: tl.constexpr,
    WIDTH: tl.constexpr,  # the true D
    SLOTS: tl.constexpr,  # M, rounded up to a power of two
    BLOCK: tl.constexpr,
    SAVES: tl.constexpr,
):
    """All steps of ``BLOCK`` sequences, forwards. Over 60 lines: its arguments, and one loop of a kernel."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]).to(tl.int64)  # (block, 1)
    alive = row < B
    d, e, f, j = tl.arange(0, D)[None, :], tl.arange(0, E)[None, :], tl.arange(0, F)[None, :], tl.arange(0, SLOTS)
    HE: tl.constexpr = H * E
    S = M + T
    window = alive[:, :, None] & (j < M)[None, :, None]  # (block, slots, 1)
    r = tl.load(weights.r + j[:, None] * E + e, mask=(j < M)[:, None], other=0.0)
    for t in range(T):
        outer = t * B + row
        hidden = tl.load(mask + outer * (M + 1) + j[None, :], mask=alive & (j < M)[None, :], other=float("-inf"))
        h = tl.load(x + outer * D + d, mask=alive, other=0.0)
        m = tl.load(weights.mix) * h
        for i in range(L):
            inner = i * B + row
            if SAVES:
                inner = (i * T + t) * B + row
                tl.store(tape.x + inner * D + d, h, mask=alive)
            n, s = norm(h, WIDTH)
            tl.store(tape.n_1 + inner * D + d, n, mask=alive)
            tl.store(tape.s_1 + inner, s, mask=alive)
            tl.debug_barrier()
            for head in range(H):
                w_q = weights.w_q + (i * HE + head * E) * D
                q = product(tape.n_1 + inner * D, alive, w_q, 1, D, D, E)
                q += tl.load(weights.b_q + i * HE + head * E + e)
                tl.store(tape.q + inner * HE + head * E + e, q, mask=alive)
                slot = (row * H + head) * S + t + j[None, :]  # (block, slots)
                at = (slot * E)[:, :, None] + e[:, None, :]
                a = tape.a + (inner * H * S + head * S + t + j[None, :])[:, :, None]
                o = attend(q, hidden, tape.k + at, tape.v + at, r, a, window, SAVES)
                tl.store(tape.o + inner * HE + head * E + e, o, mask=alive)
            tl.debug_barrier()
            h += product(tape.o + inner * HE, alive, weights.w_o + i * D * HE, 1, HE, HE, D)
            n, s = norm(h, WIDTH)
            tl.store(tape.n_2 + inner * D + d, n, mask=alive)
            tl.store(tape.s_2 + inner, s, mask=alive)
            tl.debug_barrier()
            u = product(tape.n_2 + inner * D, alive, weights.w_1 + i * F * D, 1, D, D, F)
            u = tl.maximum(u + tl.load(weights.b_1 + i * F + f), 0.0)
            tl.store(tape.u + inner * F + f, u, mask=alive)
            tl.debug_barrier()
            h += product(tape.u + inner * F, alive, weights.w_2 + i * D * F, 1, F, F, D)
            h += tl.load(weights.b_2 + i * D + d)
            m += tl.load(weights.mix + i + 1) * h
        tl.store(outputs + outer * D + d, h, mask=alive)
        tl.store(memory + outer * D + d, m, mask=alive)
        inner = row
        if SAVES:
            inner = outer
        n, s = norm(m, WIDTH)
        tl.store(tape.n_m + inner * D + d, n, mask=alive)
        tl.store(tape.s_m + inner, s, mask=alive)
        tl.debug_barrier()
        for head in range(H):
            at = ((row * H + head) * S + M + t) * E + e
            k = product(tape.n_m + inner * D, alive, weights.w_k + head * E * D, 1, D, D, E)
            v = product(tape.n_m + inner * D, alive, weights.w_v + head * E * D, 1, D, D, E)
            tl.store(tape.k + at, k + tl.load(weights.b_k + head * E + e), mask=alive)
            tl.store(tape.v + at, v + tl.load(weights.b_v + head * E + e), mask=alive)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["B", "T", "L"])  # one compilation for all of them
def backward(
    given,  # (T, B, D): the gradient at x^L
    written,  # (T, B, D): the gradient at the memory vectors from outside the scan
    slope,  # to be filled in; k, v and a hold zeros
    tape,
    weights,
    B,
    T,
    L,
    M: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All steps of ``BLOCK`` sequences, backwards. Over 60 lines for the same reasons as ``forward``."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]).to(tl.int64)
    alive = row < B
    d, e, f, j = tl.arange(0, D)[None, :], tl.arange(0, E)[None, :], tl.arange(0, F)[None, :], tl.arange(0, SLOTS)
    HE: tl.constexpr = H * E
    S = M + T
    window = alive[:, :, None] & (j < M)[None, :, None]
    r = tl.load(weights.r + j[:, None] * E + e, mask=(j < M)[:, None], other=0.0)
    for back in range(T):
        t = T - 1 - back
        outer = t * B + row
        d_m = tl.load(written + outer * D + d, mask=alive, other=0.0)
        if t + 1 < T:  # from the steps that read what this one wrote
            later = t + 1 + j  # (slots,)
            reads = alive[:, :, None] & ((j < M) & (later < T))[None, :, None]
            for head in range(H):
                d_k = tl.zeros((BLOCK, E), tape.k.dtype.element_ty)
                d_v = tl.zeros((BLOCK, E), tape.k.dtype.element_ty)
                for i in range(L):
                    by = ((i * T + later[None, :]) * B + row) * H + head  # (block, slots)
                    scores, at = (by * S + M + t)[:, :, None], (by * E)[:, :, None] + e[:, None, :]
                    d_s = tl.load(slope.a + scores, mask=reads, other=0.0)
                    d_k += tl.sum(d_s * tl.load(tape.q + at, mask=reads, other=0.0), 1)
                    a = tl.load(tape.a + scores, mask=reads, other=0.0)
                    d_v += tl.sum(a * tl.load(slope.o + at, mask=reads, other=0.0), 1)
                tl.store(slope.k + outer * HE + head * E + e, d_k, mask=alive)
                tl.store(slope.v + outer * HE + head * E + e, d_v, mask=alive)
            tl.debug_barrier()
            d_n = product(slope.k + outer * HE, alive, weights.w_k, D, 1, HE, D)
            d_n += product(slope.v + outer * HE, alive, weights.w_v, D, 1, HE, D)
            n = tl.load(tape.n_m + outer * D + d, mask=alive, other=0.0)
            d_m += norm_backward(d_n, n, tl.load(tape.s_m + outer, mask=alive, other=0.0), WIDTH)
        tl.store(slope.m + outer * D + d, d_m, mask=alive)
        d_x = tl.load(given + outer * D + d, mask=alive, other=0.0) + tl.load(weights.mix + L) * d_m
        for above in range(L):
            i = L - 1 - above
            inner = (i * T + t) * B + row
            tl.store(slope.x + (inner + T * B) * D + d, d_x, mask=alive)
            tl.debug_barrier()
            d_u = product(slope.x + (inner + T * B) * D, alive, weights.w_2 + i * D * F, F, 1, D, F)
            u = tl.load(tape.u + inner * F + f, mask=alive, other=0.0)
            tl.store(slope.u + inner * F + f, tl.where(u > 0, d_u, 0.0), mask=alive)
            tl.debug_barrier()
            d_n = product(slope.u + inner * F, alive, weights.w_1 + i * F * D, D, 1, F, D)
            n = tl.load(tape.n_2 + inner * D + d, mask=alive, other=0.0)
            d_h = d_x + norm_backward(d_n, n, tl.load(tape.s_2 + inner, mask=alive, other=0.0), WIDTH)
            tl.store(slope.h + inner * D + d, d_h, mask=alive)
            tl.debug_barrier()
            for head in range(H):
                d_o = product(slope.h + inner * D, alive, weights.w_o + i * D * HE + head * E, HE, 1, D, E)
                tl.store(slope.o + inner * HE + head * E + e, d_o, mask=alive)
                o = tl.load(tape.o + inner * HE + head * E + e, mask=alive, other=0.0)
                at = (((row * H + head) * S + t + j[None, :]) * E)[:, :, None] + e[:, None, :]
                scores = ((inner * H + head) * S + t + j[None, :])[:, :, None]
                d_a = tl.sum(d_o[:, None, :] * tl.load(tape.v + at, mask=window, other=0.0), 2)
                a = tl.load(tape.a + scores, mask=window, other=0.0)
                d_s = a * (d_a - tl.sum(d_o * o, 1)[:, None])[:, :, None]
                tl.store(slope.a + scores, d_s, mask=window)
                d_q = tl.sum(d_s * (tl.load(tape.k + at, mask=window, other=0.0) + r[None, :, :]), 1)
                tl.store(slope.q + inner * HE + head * E + e, d_q, mask=alive)
            tl.debug_barrier()
            d_n = product(slope.q + inner * HE, alive, weights.w_q + i * HE * D, D, 1, HE, D)
            n = tl.load(tape.n_1 + inner * D + d, mask=alive, other=0.0)
            d_x = d_h + norm_backward(d_n, n, tl.load(tape.s_1 + inner, mask=alive, other=0.0), WIDTH)
            d_x += tl.load(weights.mix + i) * d_m
        tl.store(slope.x + outer * D + d, d_x, mask=alive)
        tl.debug_barrier()
