"""What the compiled form costs before it computes: seconds of compiling, nothing cached and cached; what is installed.

Part of ``benchmarks.speed.scan``'s report, as ``compiling``. Every time is a fresh process's, by its own processor time
where that is said.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata

from benchmarks.report import ROOT

PACKAGES = ("numba", "llvmlite")
IMPORT = "import time, torch; before = time.perf_counter(); import numba; print(time.perf_counter() - before)"
FIRST_SCAN = """
import time, torch
from fbrl.cores.feedback_scan import FastFeedbackTransformer
core = FastFeedbackTransformer(64, 2, 4, 32)
core.form = "compiled"
before = time.perf_counter(), time.process_time()
features, _ = core(torch.ones(4, 8, 64), core.initial_state(4), torch.zeros(4, 8, dtype=torch.bool))
features.sum().backward()
print(time.perf_counter() - before[0], time.process_time() - before[1])
"""


def compile_costs() -> dict[str, float]:
    """Seconds of the first scan forwards and backwards, without and with a cache; of the import; megabytes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        cold, cached = (seconds(FIRST_SCAN, FBRL_CACHE=folder) for _ in range(2))
    return {
        "cold_seconds": cold[0],
        "cold_cpu_seconds": cold[1],
        "cached_seconds": cached[0],
        "cached_cpu_seconds": cached[1],
        "import_seconds": seconds(IMPORT)[0],
        "installed_megabytes": sum(map(installed_bytes, PACKAGES)) / 1e6,
    }


def seconds(program: str, **environment: str) -> list[float]:
    """What a program in a process of its own prints."""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return [float(number) for number in found.stdout.split()]


def installed_bytes(package: str) -> int:
    """What an installed package takes on disk, as its own list of files has it."""
    return sum(file.size or 0 for file in metadata.files(package) or [])
