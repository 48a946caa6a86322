"""The compiled scan on a CPU: the function of ``fbrl.cores.feedback_scan``, whose steps are machine code made by numba.

The B sequences are cut into blocks, and a block runs through all steps, forwards and backwards, with everything that it
touches in the processor's caches. Threads, as many as torch uses, share the blocks. How they are cut and in which order
gradients are added up depends on B alone: the result is the same to the last bit with any number of threads.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fbrl.cores.compiled_arrays import (
    Gradients,
    Sizes,
    Tape,
    Weights,
    carve,
    fill,
    gradient_shapes,
    gradients_of,
    matrix_shapes,
    room_for,
    tape_shapes,
    vector_shapes,
)
from fbrl.cores.compiled_backward import backward
from fbrl.cores.compiled_forward import forward, start
from fbrl.cores.feedback_forward import group

BLOCK = 16  # sequences at most: more do not make the products faster
ROOM = 2**27  # bytes of freed tapes that are kept for the next, at most
SHARES = 4  # gradients that are added up on their own, at most


def blocks_of(B: int, most: int = BLOCK) -> list[tuple[int, int]]:
    """(first sequence, number of sequences) of each block; two where both can still be large enough."""
    n = max(-(-B // most), min(2, B // 8), 1)
    return [(first, last - first) for first, last in pairwise(B * i // n for i in range(n + 1))]


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process: those of the process that it was forked from are not there."""
    return ThreadPoolExecutor(thread_name_prefix="fbrl")


def in_threads(function: Callable[[int], None], jobs: int) -> None:
    """Calls ``function`` with each number below ``jobs``; the kernels let other threads run beside them."""
    workers = min(torch.get_num_threads(), jobs)

    def work(worker: int) -> None:
        for job in range(worker, jobs, workers):
            function(job)

    others = [_pool(os.getpid()).submit(work, worker) for worker in range(1, workers)]
    work(0)
    for other in others:
        other.result()


def sizes_of(heads: int, weights: Sequence[Tensor]) -> Sizes:
    """Those of a core with these weights, as ``group`` takes them."""
    shared, layers = group(weights)
    return Sizes(shared.w_k.shape[0], len(layers), heads, len(shared.distance), len(layers[0].b_1))


def check(**shapes: tuple[Sequence[int], Sequence[int]]) -> None:
    """Raises ValueError where a shape is not the one that is wanted: kernels look at no bounds."""
    for name, (found, wanted) in shapes.items():
        if tuple(found) != tuple(wanted):
            raise ValueError(f"{name} must have the shape {tuple(wanted)}, got {tuple(found)}")


def check_weights(weights: Sequence[Tensor], sizes: Sizes) -> None:
    """Raises ValueError where the layers are not all of the sizes of the first."""
    D, L, H, M, F = sizes
    norm, square = [(D,), (D,)], [(D, D), (D, D)]
    wanted = [(L + 1,), (M, D // H), *norm, *square]
    wanted += L * [*norm, *square, *norm, (F, D), (F,), (D, F), (D,)]
    for number, (weight, shape) in enumerate(zip(weights, wanted, strict=True)):
        check(**{f"weight {number}": (weight.shape, shape)})


def packed(weights: Sequence[Tensor], sizes: Sizes) -> tuple[Weights, list[Tensor]]:
    """The weights, as ``group`` takes them, for the way forwards; and what ``way_back`` takes."""
    check_weights(weights, sizes)
    shapes = [vector_shapes(sizes), matrix_shapes(sizes, forwards=True), matrix_shapes(sizes, forwards=False)]
    vectors, matrices, back = (weights[0].detach().new_zeros(room_for(of_part)) for of_part in shapes)
    w = Weights(*carve(vectors.numpy(), shapes[0]), *carve(matrices.numpy(), shapes[1]))
    fill(w, way_back([vectors, back], sizes), [weight.detach().numpy() for weight in weights], sizes)
    return w, [vectors, back]


def way_back(flat: Sequence[Tensor], sizes: Sizes) -> Weights:
    """The weights for the way back."""
    vectors, matrices = (part.numpy() for part in flat)
    return Weights(*carve(vectors, vector_shapes(sizes)), *carve(matrices, matrix_shapes(sizes, forwards=False)))


rooms: dict[tuple[int, torch.dtype], list[Tensor]] = {}  # memory of freed tapes, by size; may be emptied at any time


def room(size: int, dtype: torch.dtype) -> Tensor:
    """A vector of whatever numbers, of memory that an earlier tape had where there is some.

    The next tape is mostly as large as the last one. Memory that is new to the process has to be cleared by the
    operating system first, which took up to a third of the scan's time.
    """
    try:
        kept = rooms[size, dtype].pop()
    except (KeyError, IndexError):
        kept = torch.empty(size, dtype=dtype)
    lent = kept.numpy()[:]  # freed with the last tensor that uses it
    weakref.finalize(lent, _give_back, kept).atexit = False
    return torch.from_numpy(lent)


def _give_back(kept: Tensor) -> None:
    if kept.nbytes > ROOM:
        return
    if kept.nbytes + sum(tensor.nbytes for of_size in list(rooms.values()) for tensor in of_size) > ROOM:
        rooms.clear()
    rooms.setdefault((len(kept), kept.dtype), []).append(kept)


class _Recurrence(torch.autograd.Function):
    """The scan between the initial slots and the last layer norm."""

    @staticmethod
    def forward(
        ctx: Any,
        saves: bool,
        heads: int,
        x: Tensor,
        slots: Tensor,
        length: Tensor,
        episode_start: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``compiled_scan``; ``saves``: whether a backward may follow."""
        (B, T, _), sizes = x.shape, sizes_of(heads, weights)
        (w, back), blocks = packed(weights, sizes), blocks_of(B)
        outputs, memory, length = torch.empty_like(x), torch.empty_like(x), length.clone()
        given = [tensor.detach().numpy() for tensor in (x, length, episode_start)]
        found, initial = [outputs.numpy(), memory.numpy()], slots.numpy()
        shapes = [tape_shapes(sizes, b, T, saves) for _, b in blocks]
        tapes = [room(room_for(of_block), x.dtype) for of_block in shapes]
        readable = [length.new_empty(T if saves else 1, b) for _, b in blocks]

        def run(i: int) -> None:
            first, _ = blocks[i]
            tape = Tape.of(tapes[i].numpy(), shapes[i], readable[i].numpy())
            start(first, initial, given[1], given[2], w, tape)
            forward(first, 0, sizes.M, *given, w, tape, *found)

        in_threads(run, len(blocks))
        if saves:
            ctx.sizes = sizes
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(outputs, *back, *tapes, *readable)
        ctx.mark_non_differentiable(length)
        return outputs, memory, length

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients at the arguments of ``forward``."""
        outputs, vectors, matrices, *saved = ctx.saved_tensors  # read once: torch.utils.checkpoint allows no more
        (B, T, _), sizes = outputs.shape, ctx.sizes
        blocks, w = blocks_of(B), way_back([vectors, matrices], sizes)
        given = [torch.zeros_like(outputs) if d is None else d.contiguous() for d in d_results[:2]]
        d_x, shapes, n_shares = torch.empty_like(outputs), gradient_shapes(sizes), min(SHARES, len(blocks))
        shares = outputs.new_zeros(n_shares, room_for(shapes))
        arrays = [tensor.numpy() for tensor in (outputs, *given, d_x)]

        def run(share: int) -> None:
            g = Gradients(*carve(shares[share].numpy(), shapes))
            for i in range(share, len(blocks), n_shares):
                first, b = blocks[i]
                tape_i, readable = saved[i].numpy(), saved[len(blocks) + i].numpy()
                tape = Tape.of(tape_i, tape_shapes(sizes, b, T, saves=True), readable)
                backward(first, sizes.M, *arrays[:3], w, tape, g, arrays[3])

        in_threads(run, n_shares)
        for share in shares[1:]:
            shares[0] += share
        found = gradients_of(Gradients(*carve(shares[0].numpy(), shapes)), sizes)
        return None, None, d_x, None, None, None, *(torch.from_numpy(part.copy()) for part in found)


_recurrence: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Recurrence.apply


def compiled_scan(
    heads: int, x: Tensor, slots: Tensor, length: Tensor, episode_start: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan without its last layer norm; on a CPU, in single or double precision.

    Args:
        heads: H.
        x: x^0, (B, T, D).
        slots: the initial slots, (B, M, D); no gradient flows into them.
        length: how many are readable, (B,) int64.
        episode_start: (B, T) bool.
        weights: as ``group`` takes them.

    Returns:
        x^L and the memory vectors, (B, T, D) each, and the length after the last step, (B,) int64.

    Raises:
        ValueError: where a shape is another one.
    """
    (window, _), D, (B, T) = weights[1].shape, weights[2].numel(), x.shape[:2]
    check(
        x=(x.shape, (B, T, D)),
        slots=(slots.shape, (B, window, D)),
        length=(length.shape, (B,)),
        episode_start=(episode_start.shape, (B, T)),
    )
    length, episode_start = length.long().clamp(0, window), episode_start.bool()
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    given = (tensor.contiguous() for tensor in (x, slots, length, episode_start, *weights))
    return _recurrence(saves, heads, *given)
