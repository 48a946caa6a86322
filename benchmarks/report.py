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

import torch
from stable_baselines3.common.utils import get_device
from torch import nn

from experiment.rules import check_device
from experiment.runs import PACKAGES
from experiment.settings import SettingsError

ROOT = Path(__file__).parents[1]
SEED = 0
RIVALS = ("sb3-contrib", "feedback-transformer-pytorch")

Name = TypeVar("Name")
Result = TypeVar("Result")
Lap = tuple[float, float]  # seconds by the clock, and of all this process's processors


def lap(function: Callable[[], object], device: str = "cpu") -> Lap:
    """What one call takes, to the end of all that it asks of a GPU. Processor time does not count other processes'."""
    wait_for(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    wait_for(device)
    return time.perf_counter() - start, time.process_time() - cpu_start


def wait_for(device: str) -> None:
    """Returns when the device has done what was asked of it; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


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


def laps_in_turns(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[Lap]]:
    """The laps of every function, measured in turns."""
    laps = {name: partial(lap, function, device) for name, function in functions.items()}
    return in_turns(laps, repeats, warm_up)


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


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of the benchmarks that run on a GPU, too."""
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, ... (default: cpu)")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a ``--json`` that cannot be written is refused before anything is measured."""
    options = parser.parse_args(arguments)
    if options.repeats < 3:
        parser.error(f"--repeats must be at least 3, got {options.repeats}")
    for name in ("threads", "rollouts"):
        if (number := getattr(options, name, 1)) < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    if "device" in options:
        try:
            check_device("--device", options.device)
            options.device = str(get_device("auto")) if options.device == "auto" else options.device
        except SettingsError as error:
            parser.error(str(error))
    try:
        check_json(options.json)
    except SettingsError as error:
        parser.error(str(error))
    return options


def check_json(file: Path | None) -> None:
    """Raises SettingsError where ``--json`` can be no file."""
    if file is None:
        return
    if not str(file).isprintable():
        raise SettingsError(f"--json must be the name of a file, got {str(file)!r}")
    if not os.path.isdir(file.parent):
        raise SettingsError(f"--json {file}: {file.parent} is no folder")
    if os.path.isdir(file):
        raise SettingsError(f"--json {file}: a folder, expected a file")


def print_row(row: Mapping[str, Any], columns: Iterable[str]) -> None:
    """One line of the table."""
    values = [row[column] for column in columns]
    print(*(f"{value:.3g}" if isinstance(value, float) else value for value in values), sep="\t", flush=True)


def conditions(threads: int | None, device: str = "cpu") -> dict[str, Any]:
    """Under what the numbers hold. ``load_average`` shows whether the machine did anything else."""
    changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "machine": {
            "cpu": cpu_name(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load_average": os.getloadavg(),
            "device": device,
            "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
        },
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: version(name) for name in (*PACKAGES, *RIVALS, "triton")},
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
