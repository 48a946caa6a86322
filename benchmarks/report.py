"""What the speed benchmarks share: measuring in turns, the conditions, the file that holds both."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from experiment.runs import PACKAGES

ROOT = Path(__file__).parents[1]
SEED = 0
RIVALS = ("sb3-contrib", "feedback-transformer-pytorch")

Name = TypeVar("Name")
Result = TypeVar("Result")
Lap = tuple[float, float]  # seconds by the clock, and of all this process's processors


def lap(function: Callable[[], object]) -> Lap:
    """What one call takes. Processor time does not count what other processes take."""
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu_start


def in_turns(
    functions: Mapping[Name, Callable[[], Result]], repeats: int, warm_up: int = 1
) -> dict[Name, list[Result]]:
    """Calls every function once a round, so that what slows the machine down for a while slows all of them.

    Returns:
        of each function ``repeats`` results; those of ``warm_up`` rounds before are thrown away.
    """
    results: dict[Name, list[Result]] = {name: [] for name in functions}
    for _ in range(warm_up + repeats):
        for name, function in functions.items():
            results[name].append(function())
    return {name: found[warm_up:] for name, found in results.items()}


def laps_in_turns(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Lap]]:
    """The laps of every function, measured in turns."""
    return in_turns({name: partial(lap, function) for name, function in functions.items()}, repeats)


def medians(laps: Mapping[str, list[Lap]], clock: int = 0) -> dict[str, float]:
    """The median seconds of every function; ``clock`` 1 is processor time."""
    return {name: statistics.median(found[clock] for found in all_found) for name, all_found in laps.items()}


def ratio(seconds: Mapping[str, float], slow: str, fast: str) -> float | None:
    """How many times as long ``slow`` takes; ``None`` where one of them was not measured."""
    return seconds[slow] / seconds[fast] if slow in seconds and fast in seconds else None


def make_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of it, in less than two minutes")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds (default: {repeats}, at least 3)")
    parser.add_argument("--json", type=Path, help="where to write the report")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a ``--json`` that cannot be written is refused before anything is measured."""
    options = parser.parse_args(arguments)
    if options.repeats < 3:
        parser.error(f"--repeats must be at least 3, got {options.repeats}")
    for name in ("threads", "rollouts"):
        if (number := getattr(options, name, 1)) < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: {options.json.parent} is no folder")
    if options.json and options.json.is_dir():
        parser.error(f"--json {options.json}: a folder, expected a file")
    return options


def print_row(row: Mapping[str, Any], columns: Iterable[str]) -> None:
    """One line of the table."""
    values = [row[column] for column in columns]
    print(*(f"{value:.3g}" if isinstance(value, float) else value for value in values), sep="\t", flush=True)


def conditions(threads: int | None) -> dict[str, Any]:
    """Under what the numbers hold. ``load_average`` shows whether the machine did anything else."""
    changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "machine": {
            "cpu": cpu_name(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load_average": os.getloadavg(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in (*PACKAGES, *RIVALS)},
        "threads": threads,
        "seeds": [SEED],
        "commit": git("rev-parse", "HEAD") or None,
        "uncommitted_changes": bool(changes),
    }


def write(path: Path | None, benchmark: str, report: dict[str, Any]) -> None:
    """Writes the report, if asked to; ``python -m benchmarks.speed.draw`` draws it."""
    if path:
        path.write_text(json.dumps({"benchmark": benchmark} | report, indent=1) + "\n")


def version(package: str) -> str | None:
    """The installed version, or ``None``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """As the kernel gives it, where it does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def git(*args: str) -> str:
    """What git answers, or nothing where there is no git or no repository."""
    try:
        found = subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
