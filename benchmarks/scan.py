"""The speed of the two forms of the scan, forward and backward, in one run and in turns.

    python -m benchmarks.scan [--quick] [--threads 1] [--repeats 7] [--json benchmarks/results/NAME.json]

Reports nothing where the two forms do not agree. Of each size (D, L, H, M, T, B), with memories full and no episode
starts:

- ``fast_over_plain``: the plain form's median time over the fast form's, forward and backward;
- ``cpu_fast_over_plain``: the same in processor time, which does not count what other processes take;
- ``act_fast_over_plain``: the same for one step (T = 1) forward without gradients, as while acting;
- ``samples_per_second``: B T over the fast form's median time;
- ``peak_memory_ratio``: the most bytes that tensors made in forward and backward hold at once, the fast form's over
  the plain form's. Counted by following every tensor's storage, so it is the same on every machine;
- ``matmul_fraction``: the rate at which the fast form does the multiplications and additions that the equations need,
  over the rate of plain matrix products (B x D) @ (D x D) measured beside it. Needed are, forward and for each
  sequence, T (L (2 D^2 + 2 D F + 3 M D) + 2 D^2) + 2 M D^2 multiply-adds, F = 2 D, and twice as many backward.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.memory import Memory

SIZES = [
    (128, 2, 4, 64, 32, 64),  # D, L, H, M, T, B
    (64, 2, 4, 32, 32, 64),
    (64, 2, 4, 32, 32, 32),
    (64, 1, 4, 32, 64, 32),
    (128, 4, 4, 32, 32, 32),
]
QUICK_SIZES = [(64, 2, 4, 32, 32, 32), (32, 1, 2, 16, 16, 16)]
NAMES = ("D", "L", "H", "M", "T", "B")
SEED = 0

Size = tuple[int, int, int, int, int, int]


def make_cores(size: Size, dtype: torch.dtype) -> tuple[FeedbackTransformer, FeedbackTransformer]:
    """The plain and the fast form with the same parameters."""
    d_model, n_layers, n_heads, window = size[:4]
    torch.manual_seed(SEED)
    plain = FeedbackTransformer(d_model, n_layers, n_heads, window).to(dtype)
    fast = FastFeedbackTransformer(d_model, n_layers, n_heads, window).to(dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def make_case(size: Size, dtype: torch.dtype) -> tuple[torch.Tensor, Memory, torch.Tensor]:
    """Inputs, full memories, no episode starts."""
    d_model, _, _, window, steps, batch = size
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batch, steps, d_model, generator=generator).to(dtype).requires_grad_()
    memory = Memory(
        torch.randn(batch, window, d_model, generator=generator).to(dtype),
        torch.full((batch,), window),
    )
    return x, memory, torch.zeros(batch, steps, dtype=torch.bool)


def train(core: FeedbackTransformer, x: torch.Tensor, memory: Memory, episode_start: torch.Tensor) -> None:
    """Forward and backward."""
    x.grad = None
    core.zero_grad()
    features, _ = core(x, memory, episode_start)
    features.square().mean().backward()


def act(core: FeedbackTransformer, x: torch.Tensor, memory: Memory, episode_start: torch.Tensor) -> None:
    """One step forward."""
    with torch.no_grad():
        core(x[:, :1], memory, episode_start[:, :1])


def check_parity() -> None:
    """Exits where outputs, final memory or any gradient of the two forms differ, in double precision.

    The whole law is in tests/cores/test_feedback_scan.py.
    """
    size = (15, 2, 3, 7, 11, 5)
    found = []
    for core in make_cores(size, torch.float64):
        x, memory, episode_start = make_case(size, torch.float64)
        episode_start[:, 4] = torch.arange(size[5]) % 2 == 0
        features, final = core(x, memory, episode_start)
        (features.square().sum() + final.slots.pow(3).sum()).backward()
        found.append([features, final.slots, x.grad, *(parameter.grad for parameter in core.parameters())])
    for plain, fast in zip(*found, strict=True):
        if plain is None or fast is None or not torch.allclose(plain, fast, rtol=1e-9, atol=1e-9):
            raise SystemExit("parity is red: the two forms differ; nothing is reported")


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


def peak_memory(core: FeedbackTransformer, size: Size) -> int:
    """Bytes, forward and backward."""
    case = make_case(size, torch.float32)
    memory = PeakMemory()
    with memory:
        train(core, *case)
    return memory.peak


def seconds(function: Callable[..., object], *args: Any) -> tuple[float, float]:
    """What one call takes: by the clock, and of all processors."""
    start, cpu_start = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - start, time.process_time() - cpu_start


def products(x: torch.Tensor, w: torch.Tensor) -> None:
    """A hundred matrix products (B x D) @ (D x D)."""
    for _ in range(100):
        torch.mm(x, w)


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """One row of the report."""
    d_model, n_layers, _, window, steps, batch = size
    cores, case = make_cores(size, torch.float32), make_case(size, torch.float32)
    operands = torch.randn(batch, d_model), torch.randn(d_model, d_model)
    times: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("plain", "fast", "act_plain", "act_fast", "products")
    }
    for repeat in range(repeats + 1):
        for form, core in zip(("plain", "fast"), cores, strict=True):
            taken = {form: seconds(train, core, *case), f"act_{form}": seconds(act, core, *case)}
            if repeat:  # the first warms up
                for name, value in taken.items():
                    times[name].append(value)
        times["products"].append(seconds(products, *operands))
    median, cpu_median = (
        {name: statistics.median(pair[clock] for pair in pairs) for name, pairs in times.items()} for clock in (0, 1)
    )
    needed = steps * (n_layers * (6 * d_model**2 + 3 * window * d_model) + 2 * d_model**2) + 2 * window * d_model**2
    rate = 100 * 2 * batch * d_model**2 / median["products"]
    plain_peak, fast_peak = (peak_memory(core, size) for core in cores)
    return dict(zip(NAMES, size, strict=True)) | {
        "fast_over_plain": median["plain"] / median["fast"],
        "cpu_fast_over_plain": cpu_median["plain"] / cpu_median["fast"],
        "act_fast_over_plain": median["act_plain"] / median["act_fast"],
        "samples_per_second": batch * steps / median["fast"],
        "peak_memory_ratio": fast_peak / plain_peak,
        "matmul_fraction": 3 * 2 * batch * needed / median["fast"] / rate,
        "matmul_gflops": rate / 1e9,
        "fast_peak_bytes": fast_peak,
        "seconds_and_cpu_seconds": times,
    }


def cpu_name() -> str:
    """As the kernel gives it, where it does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git(*args: str) -> str:
    """What git answers, or nothing where there is no git or no repository."""
    try:
        found = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def main() -> None:
    """Checks, measures, prints and, if asked to, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="at least 5")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats must be at least 5")
    torch.set_num_threads(options.threads)
    check_parity()
    columns = ["fast_over_plain", "cpu_fast_over_plain", "act_fast_over_plain"]
    columns += ["samples_per_second", "peak_memory_ratio", "matmul_fraction"]
    print(*NAMES, *columns, sep="\t")
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        rows.append(measure(size, options.repeats))
        print(*size, *(f"{rows[-1][column]:.3g}" for column in columns), sep="\t", flush=True)
    report = {
        "machine": {"cpu": cpu_name(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": options.threads,
        "seeds": [SEED],
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--", "../fbrl", ".")),
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
