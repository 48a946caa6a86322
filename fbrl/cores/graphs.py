"""The fast scan on a GPU as CUDA graphs: its thousands of small kernels are started by one call each way.

A graph replays the kernels of one call on the same addresses, so that there is one for each shape of the arguments:
they are copied to where it reads, and what it gives is copied from where it writes. Captured as
``torch.cuda.make_graphed_callables`` of torch 2.13 captures, without autograd, which the recurrence does not need. The
law holds with calls in the place of graphs; none has run on a GPU yet, and nothing is known of their speed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Scan = Callable[..., tuple[Tensor, Any]]  # ``feedback_forward.scan``
ScanGradients = Callable[..., list[Tensor]]  # ``feedback_backward.scan_gradients``
MOST = 4  # graphs of one core: each holds a tape of its own
WARM_UP = 3  # calls before a capture


class Captured(NamedTuple):
    """Two functions as graphs; every replay fills what they gave in anew."""

    forward: Callable[[], None]
    backward: Callable[[], None]
    results: tuple[Tensor, Any]
    gradients: list[Tensor]


def capture(forward: Callable[[], tuple[Tensor, Any]], backward: Callable[[Any], list[Tensor]]) -> Captured:
    """``forward``, and ``backward`` with the second thing that it gave."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            backward(forward()[1])
    torch.cuda.current_stream().wait_stream(side)
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    mode = "thread_local"  # what other threads, such as those of torch.distributed, ask of the GPU does not disturb it
    with torch.cuda.graph(graphs[0], capture_error_mode=mode):
        results = forward()
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode=mode):
        gradients = backward(results[1])
    return Captured(graphs[0].replay, graphs[1].replay, results, gradients)


class ScanGraph:
    """The scan and its gradients for arguments of one shape.

    Args:
        scan, gradients: the functions.
        heads: H.
        arguments: x, k, v, mask and the weights, as ``scan`` takes them.
    """

    def __init__(self, scan: Scan, gradients: ScanGradients, heads: int, arguments: Sequence[Tensor]) -> None:
        self.arguments = [argument.detach().clone() for argument in arguments]
        self.given = [torch.zeros_like(self.arguments[0]) for _ in range(2)]
        weights = self.arguments[4:]
        self.captured = capture(
            lambda: scan(True, heads, *self.arguments), lambda tape: gradients(tape, weights, *self.given)
        )
        self.last: weakref.ref[Any] | None = None  # what the last call will come back with
        self.done = True  # whether it has

    def waits(self) -> bool:
        """Whether a backward may still need what the last call left."""
        return not self.done and self.last is not None and self.last() is not None

    def run(self, call: Any, arguments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x^L and the memory vectors, (T, B, D) each; ``call`` is what a backward will come with."""
        for here, argument in zip(self.arguments, arguments, strict=True):
            here.copy_(argument)
        self.captured.forward()
        self.last, self.done = weakref.ref(call), False
        outputs, tape = self.captured.results
        return outputs.clone(), tape.m.clone()

    def gradients(self, call: Any, given: Sequence[Tensor]) -> list[Tensor]:
        """At the arguments but for the mask, from the gradients at what ``run`` gave.

        Raises:
            RuntimeError: where another call has taken the place of this one.
        """
        if self.last is None or self.last() is not call:
            raise RuntimeError("a second backward, after another forward, needs the core's cuda_graphs to be False")
        for here, gradient in zip(self.given, given, strict=True):
            here.copy_(gradient)
        self.captured.backward()
        self.done = True
        return [gradient.clone() for gradient in self.captured.gradients]


class ScanGraphs:
    """The graphs of one core, by the shape of the arguments; a copy of it begins with none.

    A shape gets its graph when it comes a second time. Where there are as many as there may be, where the backward of
    the last call is still to come, or where capturing has failed, of which one warning tells, the answer is ``None``.

    Args:
        scan, gradients: ``feedback_forward.scan`` and ``feedback_backward.scan_gradients``.
    """

    def __init__(self, scan: Scan, gradients: ScanGradients) -> None:
        self.functions = scan, gradients
        self.graphs: dict[Any, ScanGraph | None] = {}
        self.failed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.functions

    def __call__(self, heads: int, *arguments: Tensor) -> tuple[Tensor, Tensor] | None:
        """As ``scan``, with gradients, or ``None``."""
        graph = None if self.failed else self._graph(heads, arguments)
        if graph is None or graph.waits():
            return None
        return _replay(graph, *arguments)

    def _graph(self, heads: int, arguments: Sequence[Tensor]) -> ScanGraph | None:
        x = arguments[0]
        key = (x.device, x.dtype, *(argument.shape for argument in arguments))
        if key not in self.graphs:
            if len(self.graphs) < MOST:
                self.graphs[key] = None
            return None
        if self.graphs[key] is None:
            try:
                with torch.cuda.device(x.device), torch.no_grad():
                    self.graphs[key] = ScanGraph(*self.functions, heads, arguments)
            except RuntimeError as error:
                self.failed = True
                warnings.warn(f"the scan goes on without CUDA graphs, which failed: {error}", stacklevel=2)
        return self.graphs[key]


class _Replay(torch.autograd.Function):
    """A call of a ``ScanGraph``."""

    @staticmethod
    def forward(ctx: Any, graph: ScanGraph, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.graph = graph
        return graph.run(ctx, arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_k, d_v, *d_weights = ctx.graph.gradients(ctx, given)
        return None, d_x, d_k, d_v, None, *d_weights


_replay: Callable[..., tuple[Tensor, Tensor]] = _Replay.apply
