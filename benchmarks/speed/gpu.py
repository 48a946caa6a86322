"""Everything that waits for a GPU, in nine minutes: ``make gpu``, on a machine with torch >= 2.8 and no network.

    python -m benchmarks.speed.gpu [--device cuda] [--minutes 9] [--json FILE] [--config FILE] [--commit HASH]

The wheels, which ``make gpu-wheels`` fetches elsewhere, are unpacked into .gpu/site. The parts, one after the other:

- ``tests``: every test that is marked ``gpu``, but for those that are marked ``slow``, too;
- ``training``: ``--config``, configs/memory_s7_view3.yaml if not given, until an evaluation succeeds always; then
  ``evaluation``: all of its start states, exactly, by the best agent so far;
- ``scan``, ``throughput``, ``latency``: the benchmarks, ``--quick``.

Each has a share of the minutes. One that fails or takes longer is ended and reported, and the others run all the same.
Writes one JSON, after every part anew, and beside it a table (.md). Exits with 1 where a part is not ok. With
``--device cpu`` it shows that all of it works, but for the tests, which are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SITE = ROOT / ".gpu/site"
NEEDED = ("gymnasium", "minigrid", "numpy", "pytest", "sb3_contrib", "scipy", "stable_baselines3", "torch", "xdist")
GRACE = 8.0  # seconds, at most, of a part's time between asking it to end and ending it
LAST_LINES = 15  # of what a part prints, kept where it is not ok

COLUMNS = {  # of the benchmarks' rows, in the table
    "scan": ("D", "B", "fast_over_plain", "graphs_over_fast", "triton_over_fast", "fast_over_passes_2"),
    "throughput": ("agent", "steps_per_second", "over_recurrent_ppo"),
    "latency": ("batch", "milliseconds", "over_recurrent_ppo"),
}

Report = dict[str, Any]


class Part(NamedTuple):
    """One process of its own."""

    name: str
    share: float  # of the minutes
    command: Callable[[str, Path], list[str]]  # for a device, and a folder that is the part's and the next ones'
    figures: Callable[[Path, str], Report]  # of what it left in the folder, and what it printed


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu (default: cuda)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together (default: 9)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/gpu.json", help="the report")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/memory_s7_view3.yaml", help="to train")
    parser.add_argument("--commit", help="that this is, where git cannot tell")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu/wheels", help="to unpack (default: .gpu/wheels)")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes}")
    if not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: {options.json.parent} is no folder")
    if not options.config.is_file():
        parser.error(f"--config {options.config}: no such file")
    start = time.monotonic()
    end = start + 60 * options.minutes
    unpack(options.wheels)
    report = conditions_of(options.device, options.commit)
    report["seconds_unpacking"] = round(time.monotonic() - start, 1)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(options.config, Path(folder) / "given.yaml")
        for part in PARTS:
            limit = max(1.0, min(60 * options.minutes * part.share, end - time.monotonic()))
            report["parts"][part.name] = run(part, options.device, Path(folder), limit)
            write(options.json, report)
            print(row(part.name, report["parts"][part.name]), flush=True)
    if any(found["result"] != "ok" for found in report["parts"].values()):
        raise SystemExit(1)


def unpack(wheels: Path) -> None:
    """Puts the wheels into a folder of this repository, where Python looks first."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if files:
        shutil.rmtree(SITE, ignore_errors=True)
        command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(SITE)]
        subprocess.run([sys.executable, *command, *files], check=True)
    check = f"import importlib.util as u; print(*(n for n in {NEEDED} if not u.find_spec(n)))"
    found = subprocess.run([sys.executable, "-c", check], env=environment(), capture_output=True, text=True, check=True)
    if missing := found.stdout.strip():
        raise SystemExit(f"error: missing here: {missing}; bring wheels of them, see make gpu-wheels")


def environment() -> dict[str, str]:
    """Of every part."""
    path = os.pathsep.join([str(SITE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def conditions_of(device: str, commit: str | None) -> Report:
    """Machine, versions, commit and seeds, as every benchmark gives them; exits where there is no such device."""
    code = f"import json; from benchmarks.report import conditions; print(json.dumps(conditions(None, {device!r})))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"error: --device {device}: {found.stderr.strip().splitlines()[-1]}")
    report: Report = {"benchmark": "gpu"} | json.loads(found.stdout) | {"parts": {}}
    return report | ({"commit": commit} if commit else {})


def run(part: Part, device: str, folder: Path, limit: float) -> Report:
    """What came of a part: its result, seconds and figures."""
    command, start = [sys.executable, *part.command(device, folder)], time.monotonic()
    output = folder / f"{part.name}.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = ended(process, limit)
    printed = output.read_text(errors="replace")
    result = "out of time" if code is None else "ok" if code == 0 else f"failed ({code})"
    report: Report = {"result": result, "seconds": round(time.monotonic() - start, 1), "limit": round(limit, 1)}
    try:
        report["figures"] = part.figures(folder, printed)
    except (OSError, ValueError, LookupError) as error:  # what a part that was ended has not left
        report["figures"] = {}
        if result == "ok":
            report["result"] = f"without its figures: {error!r}"
    if report["result"] != "ok":
        report["last_lines"] = printed.splitlines()[-LAST_LINES:]
    return report


def ended(process: subprocess.Popen[Any], limit: float) -> int | None:
    """The exit code; shortly before ``limit`` seconds it is asked to end, then ended with all that it started: None."""
    grace = min(GRACE, limit / 5)
    for seconds, number in ((limit - grace, signal.SIGTERM), (grace, signal.SIGKILL)):
        try:
            code = process.wait(seconds)
            return code if number == signal.SIGTERM else None
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
    process.wait()
    return None


def tests_command(device: str, folder: Path) -> list[str]:
    """pytest over the files that have such tests."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    # of other versions' warnings the tests make no errors here, and the pages' code is not among them
    few = ["-m", "gpu and not slow", "-W", "default", "-p", "no:cacheprovider", "--confcutdir", str(ROOT / "tests")]
    processes = str(min(6, os.cpu_count() or 1))  # compiling takes most of the time
    return ["-m", "pytest", "-q", "--numprocesses", processes, *few, *files]


def tests_figures(folder: Path, printed: str) -> Report:
    """How many passed, failed, were skipped."""
    last = printed.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}


def training_command(device: str, folder: Path) -> list[str]:
    """train_agent.py into the folder."""
    where = (f"--run.device={device}", f"--run.folder={folder}", "--run.name=agent", "--run.progress_bar=false")
    return ["train_agent.py", "--config", str(folder / "given.yaml"), *where]


def training_figures(folder: Path, printed: str) -> Report:
    """Steps and success of the last evaluation before the final one, and of all of them."""
    lines = [json.loads(line) for line in (folder / "agent/evaluations.jsonl").read_text().splitlines()]
    solved = next((line["timesteps"] for line in lines if line["success"] == 1.0), None)
    return {
        "solved_at_steps": solved,
        "steps": lines[-1]["timesteps"],
        "success": lines[-1]["success"],
        "evaluations": [[line["timesteps"], line["success"]] for line in lines],
    }


def evaluation_command(device: str, folder: Path) -> list[str]:
    """evaluate_agent.py over all start states."""
    agent, result = str(folder / "agent"), str(folder / "evaluation.json")
    return ["evaluate_agent.py", agent, "--exhaustive", "--device", device, "--json", result]


def evaluation_figures(folder: Path, printed: str) -> Report:
    """What it wrote."""
    found: Report = json.loads((folder / "evaluation.json").read_text())
    return found


def benchmark(name: str, share: float, *arguments: str) -> Part:
    """One of the benchmarks of this folder."""

    def command(device: str, folder: Path) -> list[str]:
        where = ["--quick", "--device", device, "--json", str(folder / f"{name}.json")]
        return ["-m", f"benchmarks.speed.{name}", *where, *arguments]

    def figures(folder: Path, printed: str) -> Report:
        return {"rows": json.loads((folder / f"{name}.json").read_text())["rows"]}

    return Part(name, share, command, figures)


PARTS = [
    Part("tests", 0.2, tests_command, tests_figures),
    Part("training", 0.4, training_command, training_figures),
    Part("evaluation", 0.06, evaluation_command, evaluation_figures),
    benchmark("scan", 0.14, "--repeats", "5"),
    benchmark("throughput", 0.2),
    benchmark("latency", 0.08, "--repeats", "5"),
]


def write(path: Path, report: Report) -> None:
    """The JSON, and beside it the table."""
    path.write_text(json.dumps(report, indent=1) + "\n")
    machine, versions = report["machine"], report["versions"]
    device = f"{machine['gpu'] or machine['cpu']} ({machine['device']})"
    on = f"{device}, torch {versions['torch']}, commit {report['commit']}"
    rows = [row(name, found) for name, found in report["parts"].items()]
    table = ["| part | result | seconds | figures |", "|---|---|---|---|", *rows]
    path.with_suffix(".md").write_text("\n".join([on, "", *table]) + "\n")


def row(name: str, found: Report) -> str:
    """A part's line of the table."""
    return f"| {name} | {found['result']} | {found['seconds']:.0f} | {summary(name, found['figures'])} |"


def summary(name: str, figures: Report) -> str:
    """The figures that the table shows."""
    if name in COLUMNS:
        rows = [{column: line[column] for column in COLUMNS[name]} for line in figures.get("rows", [])]
    else:
        rows = [{key: value for key, value in figures.items() if isinstance(value, int | float)}]
    return "; ".join(", ".join(shown(column, value) for column, value in line.items()) for line in rows)


def shown(name: str, value: Any) -> str:
    """One figure with its name."""
    if isinstance(value, dict):
        return f"{name} " + ", ".join(shown(key, part) for key, part in value.items())
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


if __name__ == "__main__":
    main()
