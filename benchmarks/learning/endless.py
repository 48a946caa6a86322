"""Agents that were trained on five T-mazes in a row, on more of them.

    python -m benchmarks.learning.compare run benchmarks/suites/endless_tmaze.yaml
    python -m benchmarks.learning.endless [--folder runs/compare]     # plays, writes results/endless_tmaze.json
    python -m benchmarks.learning.tables                              # puts the table into RESULTS.md

The agent of the best evaluation of every finished run plays 500 episodes with its most probable actions. Rows of runs
whose folders are not here stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.results import summary_of
from benchmarks.learning.suite import RUNS, SUITES, load_suite
from benchmarks.report import ROOT, conditions
from experiment.parsing import fail
from fbrl.evaluation import load_agent

RESULT = ROOT / "benchmarks" / "results" / "endless_tmaze.json"
CORRIDORS = (5, 10, 20)


def play_all(folder: Path) -> list[dict[str, Any]]:
    """A row for each finished run and number of corridors."""
    rows = []
    for run in load_suite(SUITES / "endless_tmaze.yaml", runs=folder).runs:
        if not (run.folder / "finished").exists():
            continue
        agent = load_agent(run.folder / "best.zip", "cpu")
        for corridors in CORRIDORS:
            env = dataclasses.replace(run.settings.env, kwargs={"corridors": corridors})
            played, _ = summary_of(agent, dataclasses.replace(run.settings, env=env))
            assert played.success is not None
            row = {"core": run.core, "seed": run.seed, "corridors": corridors, "episodes": played.episodes}
            rows.append(row | {"success": played.success.value, "right_turns": played.returns.value})
            print(rows[-1], flush=True)
    return rows


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new rows and those of the old ones whose runs were not played again, by seed."""
    played = {(row["core"], row["seed"]) for row in new}
    kept = [row for row in old if (row["core"], row["seed"]) not in played]
    return sorted([*kept, *new], key=lambda row: (row["core"], row["seed"], row["corridors"]))


def table(path: Path = RESULT) -> str:
    """Success and the share of right turns, a number for each seed, in Markdown."""
    lines = ["| core | corridors | success of each seed | right turns of each seed | mean |", "|---|---|---|---|---|"]
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for core in dict.fromkeys(row["core"] for row in rows):
        for corridors in CORRIDORS:
            found = [row for row in rows if (row["core"], row["corridors"]) == (core, corridors)]
            success, right = ([row[key] for row in found] for key in ("success", "right_turns"))
            cells = [", ".join(f"{value:.2f}" for value in values) for values in (success, right)]
            lines.append(f"| {core} | {corridors} | {cells[0]} | {cells[1]} | {np.mean(success):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RUNS, help=f"where the runs are (default: {RUNS})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    rows = merged(old, play_all(options.folder))
    report = {"benchmark": "endless_tmaze"} | conditions(threads=1) | {"rows": rows}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
