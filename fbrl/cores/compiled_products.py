"""Matrix products of a block of sequences in numba code: a tile of the result at a time, which stays in registers.

A matrix that is read many times lies packed, as (panels, K, P): ``P`` of its columns after the other, so that what a
tile reads follows each other in memory. Columns that are no multiple of ``V`` are filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic, register_jitable

from fbrl.cores.compiled_cache import cached
from fbrl.cores.compiled_vectors import FUSE, OPTIONS, V, Vector, address, load_at, repeat, store_at, to_address

Array = np.ndarray[Any, Any]

# What the registers hold: 32 of 512 bits, or 16 of 256.
ROWS, VECTORS = (8, 2) if binding.get_host_cpu_features().get("avx512f") else (4, 1)
P = VECTORS * V


def padded(n: int) -> int:
    """The next multiple of ``V``."""
    return -(-n // V) * V


register_jitable(padded)  # here and in kernels


def panels(n: int) -> int:
    """Of how many panels a matrix of n columns is made."""
    return -(-n // P)


@intrinsic(prefer_literal=True)
def tile(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    steps: Any,
    x: Any,
    x_row: Any,
    x_step: Any,
    w: Any,
    w_step: Any,
    start: Any,
    start_row: Any,
    out: Any,
    out_row: Any,
) -> Any:
    """out[r, j] = start[r, j] + sum_k x[r, k] w[k, j], for ``rows`` rows, ``vectors`` vectors of j, ``steps`` k.

    Addresses are followed by the distances of two rows and of two k. Over 60 lines: its arguments, and the code that it
    makes, instruction by instruction.
    """
    n_rows, n_vectors, vector, whole = rows.literal_value, vectors.literal_value, Vector(x.dtype), types.int64
    sig = types.void(rows, vectors, whole, x, whole, whole, x, whole, x, whole, x, whole)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def constant(n: int) -> Any:
            return ir.Constant(ir.IntType(64), n)

        def rows_of(first: Any, distance: Any) -> list[Any]:
            return [builder.gep(first, [builder.mul(distance, constant(r))]) for r in range(n_rows)]

        def vectors_at(address: Any) -> list[Any]:
            return [builder.gep(address, [constant(c * V)]) for c in range(n_vectors)]

        steps, x, x_row, x_step, w, w_step, start, start_row, out, out_row = args[2:]
        x_rows, starts, outs = rows_of(x, x_row), rows_of(start, start_row), rows_of(out, out_row)
        begin = [[load_at(builder, vector, address) for address in vectors_at(row)] for row in starts]
        before, loop, done = builder.block, builder.append_basic_block("step"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(ir.IntType(64))
        sums = [[builder.phi(vector.ir) for _ in row] for row in begin]
        at_k, w_k = builder.mul(k, x_step), builder.gep(w, [builder.mul(k, w_step)])
        w_row = [load_at(builder, vector, address) for address in vectors_at(w_k)]
        added = []
        for of_row, row in zip(x_rows, sums, strict=True):
            number = repeat(builder, vector, builder.load(builder.gep(of_row, [at_k])))
            terms = [builder.fmul(number, part, flags=FUSE) for part in w_row]
            added.append([builder.fadd(term, part, flags=FUSE) for term, part in zip(terms, row, strict=True)])
        following = builder.add(k, constant(1))
        k.add_incoming(constant(0), before)
        k.add_incoming(following, loop)
        for row, first, more in zip(sums, begin, added, strict=True):
            for part, of_first, of_more in zip(row, first, more, strict=True):
                part.add_incoming(of_first, before)
                part.add_incoming(of_more, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
        builder.position_at_end(done)
        for of_row, row in zip(outs, added, strict=True):
            for place, part in zip(vectors_at(of_row), row, strict=True):
                store_at(builder, vector, place, part)
        return context.get_dummy_value()

    return sig, codegen


def _make_strip(vectors: int) -> Any:
    """``tile`` for n rows, a strip of ``vectors`` vectors wide."""

    @njit(**OPTIONS)
    def strip(n, K, x, xr, xk, w, wk, start, sr, out, rr):
        r = 0
        while r + ROWS <= n:
            x_r, start_r, out_r = address(x, r * xr), address(start, r * sr), address(out, r * rr)
            tile(ROWS, vectors, K, x_r, xr, xk, w, wk, start_r, sr, out_r, rr)
            r += ROWS
        while r + 4 <= n:
            x_r, start_r, out_r = address(x, r * xr), address(start, r * sr), address(out, r * rr)
            tile(4, vectors, K, x_r, xr, xk, w, wk, start_r, sr, out_r, rr)
            r += 4
        while r < n:
            x_r, start_r, out_r = address(x, r * xr), address(start, r * sr), address(out, r * rr)
            tile(1, vectors, K, x_r, xr, xk, w, wk, start_r, sr, out_r, rr)
            r += 1

    return strip


_wide, _narrow = _make_strip(VECTORS), _make_strip(1)


@njit(**OPTIONS)
def tiles(n, N, K, x, xr, xk, w, wj, wk, start, sr, out, rr):
    """``tile`` for n rows and N columns, a multiple of V; ``wj``: how far apart in w two strips' columns lie."""
    j = 0
    while j + P <= N:
        _wide(n, K, x, xr, xk, address(w, j * wj), wk, address(start, j), sr, address(out, j), rr)
        j += P
    while j < N:
        _narrow(n, K, x, xr, xk, address(w, j * wj), wk, address(start, j), sr, address(out, j), rr)
        j += V


@njit(**OPTIONS)
def product(x, w, start, out):
    """out = start + x @ w: x (n, at least K), w packed, start (n, N) or one row (N,) for all, out (n, N)."""
    K, (n, N) = w.shape[1], out.shape
    sr = 0 if start.ndim == 1 else N
    tiles(n, N, K, address(x, 0), x.shape[1], 1, address(w, 0), K, P, address(start, 0), sr, address(out, 0), N)


@njit(**OPTIONS)
def add_product(n, g, x, w):
    """w (O, N) += the transpose of g (n, at least O) @ x (n, N), of which the n rows follow each other in memory."""
    (O, N), start = w.shape, address(w, 0)
    tiles(O, N, n, address(g, 0), 1, g.shape[-1], address(x, 0), 1, x.shape[-1], start, N, start, N)


@cached
@njit(**OPTIONS)
def are(addresses, sizes, kept):
    """Whether the numbers at the addresses, ``sizes`` at each, are those in ``kept``, one after the other."""
    first, differ = 0, False
    for i in range(addresses.size):
        here, there = to_address(addresses[i], kept), address(kept, first)
        for j in range(sizes[i]):
            differ |= here[j] != there[j]
        first += sizes[i]
    return not differ


@cached
@njit(**OPTIONS)
def pack(w, first, rows, columns):
    """Packs the matrix w (O, N) as (O, N), from the row ``first`` of ``rows`` on, and as (N, O), from such a column."""
    for o in range(w.shape[0]):
        panel, place = (first + o) // P, (first + o) % P
        for n in range(w.shape[1]):
            rows[n // P, first + o, n % P] = w[o, n]
            columns[panel, n, place] = w[o, n]
