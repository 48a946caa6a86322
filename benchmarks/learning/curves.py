"""The runs of before there were suites: their curves and their table.

    python -m benchmarks.learning.curves benchmarks/results/memory_s7_view3.json [PICTURE.png]
    python -m benchmarks.learning.tables           # puts the table into RESULTS.md

Each file holds runs on one task with their evaluations, settings, versions, and the exact success of the agent of the
best evaluation. Runs of today are trained and told by ``benchmarks.learning.compare``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report import ROOT
from experiment.parsing import fail
from experiment.settings import PPOSettings

FOLDER = ROOT / "benchmarks" / "results"
NAMES = ["memory_s7_view3", "memory_s7_view3_larger_step", "memory_s9_view3", "memory_s9_view3_fresh_seeds"]
FILES = [FOLDER / f"{name}.json" for name in (*NAMES, "memory_s9_view3_seq16", "tmaze")]
CONTROL = "memoryless control"


def kind_of(run: dict[str, Any]) -> str:
    """What runs of one task are told apart by."""
    if run["core"] == "none":
        return CONTROL
    ppo = run["settings"]["ppo"]
    passes = ppo.get("passes")
    if passes is None:
        kind = "Feedback Transformer" + (", plain form" if run["core"] == "feedback_plain" else "")
    else:
        kind = f"{passes} parallel pass{'es' if passes > 1 else ''}"
    return kind if ppo["seq_len"] == PPOSettings.seq_len else f"{kind}, seq_len {ppo['seq_len']}"


def table(files: Iterable[Path] = FILES) -> str:
    """A row for each kind of run in each file, in Markdown; of all seeds, in their order."""
    head = ["task", "agent", "seeds", "exact success", "with its memory emptied before every step"]
    head += ["environment steps", "file"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for path in files:
        data = json.loads(path.read_text())
        for kind, group in groupby(data["runs"], kind_of):
            runs = list(group)
            emptied = [run.get("exhaustive_success_zero_memory") for run in runs]
            cells = [
                ", ".join(str(run["seed"]) for run in runs),
                ", ".join(f"{run['exhaustive_success']:.2f}" for run in runs),
                ", ".join(f"{value:.2f}" for value in emptied if value is not None),
                ", ".join(_steps(run) for run in runs),
                f"[{path.name}](benchmarks/results/{path.name})",
            ]
            lines.append(f"| {data['task']} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps(run: dict[str, Any]) -> str:
    steps = f"{run['evaluations']['timesteps'][-1] / 1e6:.2f} M"
    return steps if run["finished"] else f"{steps} (stopped)"


def draw(source: Path, target: Path) -> None:
    """Draws every run's evaluations, and the mean of the runs of each kind on a common grid of steps."""
    data = json.loads(source.read_text())
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for number, kind in enumerate(dict.fromkeys(kind_of(run) for run in data["runs"])):
        runs = [run for run in data["runs"] if kind_of(run) == kind]
        colour = "tab:gray" if kind == CONTROL else f"C{number}"
        # before the first step nothing was measured: a curve begins with its first evaluation
        curves = [
            (np.array(run["evaluations"]["timesteps"]), np.array(run["evaluations"]["success"], dtype=float))
            for run in runs
        ]
        for steps, success in curves:
            axes.plot(steps / 1e6, success, color=colour, alpha=0.3, linewidth=1)
        # a run that stopped because it had succeeded keeps its last value
        grid = np.linspace(0, max(steps[-1] for steps, _ in curves), 200)
        mean = np.mean([np.interp(grid, steps, success, left=np.nan) for steps, success in curves], axis=0)
        label = f"{kind} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        axes.plot(grid / 1e6, mean, color=colour, linewidth=2.5, label=label)
    if "Memory" in data["task"] or "TMaze" in data["task"]:
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="guessing")
    axes.set(xlabel="environment steps (millions)", ylabel="success, most probable action", ylim=(0, 1.03))
    axes.set_title(data["task"])
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(target)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path, nargs="?", help="default: beside the JSON")
    args = parser.parse_args()
    try:
        draw(args.json, args.png or args.json.with_suffix(".png"))
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
