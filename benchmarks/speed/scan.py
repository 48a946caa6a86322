"""The speed of the scan, forward and backward: the fast form beside the plain one and beside others' networks.

    python -m benchmarks.speed.scan [--quick] [--device cuda] [--threads 1] [--repeats 7] [--json FILE]

Reports nothing where the plain and the fast form do not agree. ``forms.py`` says what is compared. All forms
are measured in one run and in turns. Of each size (D, L, H, M, T, B), with memories full and no episode starts:

- ``fast_over_plain``: the plain form's median time over the fast form's, forward and backward;
- ``cpu_fast_over_plain``: the same in processor time, which does not count what other processes take;
- ``fast_over_lucidrains``: the same over feedback-transformer-pytorch; null where it is not installed;
- ``fast_over_lstm_1``, ``fast_over_lstm_L``: over ``torch.nn.LSTM`` with one and with L layers (it has less to do:
  below 1 it is the faster);
- ``fast_over_passes_p``: over p parallel passes in the place of the scan;
- ``graphs_over_fast``, ``triton_over_fast``: on a GPU, the fast form's over that of CUDA graphs and of Triton kernels;
- ``compiled_over_fast``, ``cpu_compiled_over_fast``, ``compiled_over_lucidrains``, ``act_compiled_over_fast``: the same
  for the compiled form, on a CPU with numba; ``compiled_two_threads_over_one``: its time with one thread over that with
  two, which take turns of several laps and wait as the scripts let them; ``compiled_peak_over_fast``: of the most
  bytes, without those that a kernel uses for itself;
- ``act_fast_over_plain``: plain over fast for steps one by one, as while acting: the plain form projects the whole
  window in each, the fast form keeps its keys and values;
- ``forward_share``, ``backward_share``: of the fast form's time; the laps hold every form's forward;
- ``samples_per_second``: B T over the fast form's median time;
- ``peak_memory_ratio``: the most bytes that tensors made in forward and backward hold at once, the fast form's over
  the plain form's; ``peak_bytes`` are those of every form. Counted by following every tensor's storage, so it is the
  same on every machine, and does not see what torch's LSTM holds inside. On a GPU it is what torch's allocator counts
  above what it held before, which is where the graphs' tapes are;
- ``matmul_fraction``, ``compiled_matmul_fraction``: the rate at which the fast form, and the compiled one, does the
  multiplications and additions that the equations need, over the rate of plain matrix products (B x D) @ (D x D)
  measured beside it. Needed are, forward and for each sequence, T (L (2 D^2 + 2 D F + 3 M D) + 2 D^2) + 2 M D^2
  multiply-adds, F = 2 D, and twice as many backward.
"""

from __future__ import annotations

import statistics
import sys
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import (
    add_device,
    conditions,
    laps_in_turns,
    make_parser,
    medians,
    parse,
    print_row,
    ratio,
    write,
)
from benchmarks.speed.compiling import compile_costs
from benchmarks.speed.forms import RIVALS, Case, Form, Size, make_case, make_cores, make_forms
from fbrl.cores.core import Actor

SIZES = [
    Size(128, 2, 4, 64, 32, 64),  # the one that is quoted
    Size(64, 2, 4, 32, 32, 32),  # that of configs/memory_s7_view3.yaml
    Size(64, 1, 2, 16, 16, 8),
    Size(64, 1, 4, 32, 64, 32),
    Size(64, 4, 8, 128, 16, 128),
    Size(64, 2, 8, 16, 128, 64),
    Size(64, 2, 4, 128, 64, 8),
    Size(128, 4, 4, 32, 32, 32),
    Size(128, 1, 8, 128, 16, 8),
    Size(128, 2, 2, 16, 64, 128),
    Size(128, 2, 4, 64, 128, 16),
    Size(256, 2, 8, 64, 32, 64),
    Size(256, 1, 4, 16, 16, 8),
    Size(256, 1, 2, 32, 64, 32),
    Size(256, 4, 8, 128, 128, 8),
    Size(256, 2, 4, 128, 16, 128),
]
QUICK_SIZES = [Size(64, 2, 4, 32, 32, 32), Size(32, 1, 2, 16, 16, 16)]
GPU_FORMS = ["graphs", "triton"]
SUMMARISED = ["fast_over_plain", "fast_over_lucidrains", "fast_over_passes_2", "matmul_fraction", "peak_memory_ratio"]
SUMMARISED += ["compiled_over_fast", "compiled_over_lucidrains", "compiled_two_threads_over_one"]
SUMMARISED += ["act_compiled_over_fast", "compiled_peak_over_fast", "compiled_matmul_fraction"]
PARITY_SIZE = Size(15, 2, 3, 7, 11, 5)
GPU_SIZES = [SIZES[0], SIZES[1], SIZES[1]._replace(B=256)]  # quick ones that give a GPU something to do
WARM_UP = 3  # calls until a graph has been captured and replayed
PRODUCTS = 100  # in one lap
ACTS = 20  # steps in one lap
COLUMNS = ["fast_over_plain", "cpu_fast_over_plain", *(f"fast_over_{name}" for name in RIVALS)]
COLUMNS += [f"{name}_over_fast" for name in GPU_FORMS]
COMPILED = ["compiled_over_fast", "compiled_over_lucidrains", "compiled_two_threads_over_one", "act_compiled_over_fast"]
COMPILED += ["compiled_matmul_fraction"]
COLUMNS += COMPILED
COLUMNS += ["act_fast_over_plain", "samples_per_second", "peak_memory_ratio", "matmul_fraction"]


def train(form: Form) -> None:
    """Forward and backward."""
    torch.autograd.grad(form.forward().square().mean(), form.wanted, allow_unused=True)


def one_thread_and_two(form: Form, repeats: int) -> dict[int, list[float]]:
    """The seconds of ``train`` with one thread and with two, in turns of several laps: to make threads takes time."""
    before = torch.get_num_threads()
    found: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(repeats):
            for threads, seconds in found.items():
                torch.set_num_threads(threads)
                train(form)
                for _ in range(3):
                    start = time.perf_counter()
                    train(form)
                    seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return found


def act(actor: Actor, case: Case) -> None:
    """Some steps one by one, as in a rollout."""
    for _ in range(ACTS):
        actor.step(case.x[:, 0], case.episode_start[:, 0])


def products(x: Tensor, w: Tensor) -> None:
    """Matrix products (B x D) @ (D x D)."""
    for _ in range(PRODUCTS):
        torch.mm(x, w)


def check_parity(device: str = "cpu") -> None:
    """Exits where outputs, final memory or any gradient of the forms differ, in double precision.

    The whole law is in tests/cores/test_feedback_scan.py and beside it.
    """
    found = {}
    for name, core in make_cores(PARITY_SIZE, torch.float64, device).items():
        for _ in range(WARM_UP):  # a graph answers from the second call on
            core.zero_grad()
            case = make_case(PARITY_SIZE, torch.float64, device)
            case.episode_start[:, 4] = torch.arange(PARITY_SIZE.B) % 2 == 0
            features, final = core(*case)
            (features.square().sum() + final.slots.pow(3).sum()).backward()
        found[name] = [features, final.slots, case.x.grad, *(parameter.grad for parameter in core.parameters())]
    for name, tensors in found.items():
        for plain, other in zip(found["plain"], tensors, strict=True):
            if plain is None or other is None or not torch.allclose(plain, other, rtol=1e-9, atol=1e-9):
                raise SystemExit(f"parity is red: the plain and the {name} form differ; nothing is reported")


class PeakMemory(TorchDispatchMode):
    """Follows the storages of the tensors made inside; ``peak`` is the most bytes that were alive at once."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes what is new among its results."""
        given = {id(t.untyped_storage()) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in self.alive and key not in given:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def peak_memory(form: Form, device: str = "cpu") -> int:
    """Bytes, forward and backward."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        train(form)
        return torch.cuda.max_memory_allocated(device) - before
    if (compiled := sys.modules.get("fbrl.cores.compiled_scan")) is not None:
        compiled.rooms.clear()  # what it keeps from one tape to the next counts, too
    memory = PeakMemory()
    with memory:
        train(form)
    return memory.peak


def multiply_adds(size: Size) -> int:
    """What the equations need, forward and backward, of all sequences."""
    d, layers, _, slots, steps, batch = size
    return 3 * batch * (steps * (layers * (6 * d**2 + 3 * slots * d) + 2 * d**2) + 2 * slots * d**2)


def measure(size: Size, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """One row of the report."""
    forms, cores = make_forms(size, device), make_cores(size, torch.float32, device)
    case = make_case(size, torch.float32, device)
    operands = torch.randn(size.B, size.D, device=device), torch.randn(size.D, size.D, device=device)
    laps = laps_in_turns(
        {name: partial(train, form) for name, form in forms.items()}
        | {f"{name}_forward": form.forward for name, form in forms.items()}
        | {f"act_{name}": partial(act, core.actor(case.memory), case) for name, core in cores.items()}
        | {"products": partial(products, *operands)},
        repeats,
        device,
        WARM_UP if torch.device(device).type == "cuda" else 1,
    )
    seconds, cpu_seconds = medians(laps), medians(laps, clock=1)
    threads = one_thread_and_two(forms["compiled"], repeats) if "compiled" in forms else {}
    both = {str(n): statistics.median(found) for n, found in threads.items()}
    peaks = {name: peak_memory(form, device) for name, form in forms.items()}
    rate = PRODUCTS * 2 * size.B * size.D**2 / seconds["products"]
    needed = {name: 2 * multiply_adds(size) / seconds[name] for name in ("fast", "compiled") if name in seconds}
    forward_share = seconds["fast_forward"] / seconds["fast"]
    return size._asdict() | {
        "fast_over_plain": ratio(seconds, "plain", "fast"),
        "cpu_fast_over_plain": ratio(cpu_seconds, "plain", "fast"),
        **{f"fast_over_{name}": ratio(seconds, name, "fast") for name in RIVALS},
        **{f"{name}_over_fast": ratio(seconds, "fast", name) for name in GPU_FORMS},
        "compiled_over_fast": ratio(seconds, "fast", "compiled"),
        "cpu_compiled_over_fast": ratio(cpu_seconds, "fast", "compiled"),
        "compiled_over_lucidrains": ratio(seconds, "lucidrains", "compiled"),
        "compiled_two_threads_over_one": ratio(both, "1", "2"),
        "compiled_peak_over_fast": ratio(peaks, "compiled", "fast"),
        "act_compiled_over_fast": ratio(seconds, "act_fast", "act_compiled"),
        "act_fast_over_plain": ratio(seconds, "act_plain", "act_fast"),
        "forward_share": forward_share,
        "backward_share": 1 - forward_share,
        "samples_per_second": size.B * size.T / seconds["fast"],
        "peak_memory_ratio": peaks["fast"] / peaks["plain"],
        "matmul_fraction": needed["fast"] / rate,
        "compiled_matmul_fraction": needed["compiled"] / rate if "compiled" in needed else None,
        "matmul_gflops": rate / 1e9,
        "peak_bytes": peaks,
        "seconds_and_cpu_seconds": laps,
        "seconds_by_threads": threads,
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum over the sizes."""
    summary = {}
    for column in SUMMARISED:
        if values := [row[column] for row in rows if row[column] is not None]:
            summary[column] = {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}
    return summary


def main(arguments: Sequence[str] | None = None, sizes: Sequence[Size] | None = None) -> None:
    """Checks, measures, prints and, if asked to, writes; ``sizes`` instead of the usual ones."""
    parser = make_parser(__doc__, repeats=7)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=1, help="that torch uses (default: 1)")
    options = parse(parser, arguments)
    torch.set_num_threads(options.threads)
    check_parity(options.device)
    print(*Size._fields, *COLUMNS, sep="\t")
    rows = []
    quick_sizes = QUICK_SIZES if options.device == "cpu" else GPU_SIZES
    for size in sizes or (quick_sizes if options.quick else SIZES):
        rows.append(measure(size, options.repeats, options.device))
        print_row(rows[-1], [*Size._fields, *COLUMNS])
    if rows[0]["fast_over_lucidrains"] is None:
        print("feedback-transformer-pytorch is not installed: no comparison with it")
    summary = summarise(rows)
    for name, values in summary.items():
        print(f"{name}: {', '.join(f'{which} {value:.3g}' for which, value in values.items())} of {len(rows)} sizes")
    compiling = compile_costs() if "compiled" in rows[0]["peak_bytes"] else None
    if compiling:
        print(", ".join(f"{name} {value:.3g}" for name, value in compiling.items()))
    found = {"summary": summary, "compiling": compiling, "rows": rows}
    write(options.json, "scan", conditions(options.threads, options.device) | found)


if __name__ == "__main__":
    main()
