"""Compares cores on tasks: trains what a suite names, records every run, never trains one twice.

    python -m benchmarks.learning.compare run SUITE.yaml [--workers 2] [--ray [ADDRESS]] [--only WORD]
    python -m benchmarks.learning.compare record SUITE.yaml [RUN ...]
    python -m benchmarks.learning.compare list SUITE.yaml

``run`` trains what has no result yet, in this suite or, with the same settings, in another, with one thread a run, and
``--workers`` runs at a time. Ctrl-C, or a SIGTERM, lets every run save; the same command goes on. ``--ray`` hands the
runs to a Ray cluster in the place of local processes (``pip install fbrl[ray]``): without an address to one on this
machine alone. There, ``--folder`` counts from the repository's root.

``record`` writes down where runs stand that have not finished, and takes over the folders of runs that were trained by
hand, where their settings are those of a run of the suite.

A result is ``benchmarks/results/compare/SUITE/TASK_CORE_SEED.json``: how often the agent of the best evaluation
succeeds, the evaluations, all settings, the versions. ``python -m benchmarks.learning.tables`` makes the tables and
pictures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.learning.results import as_line, read_result, record, take_over
from benchmarks.learning.suite import RESULTS, RUNS, Suite, load_suite
from benchmarks.learning.train import run_local, run_ray
from experiment.parsing import fail
from experiment.settings import SettingsError


def list_runs(suite: Suite) -> None:
    """What is done, what is not, and how many parameters each core has on each task."""
    for run in suite.runs:
        result = read_result(run)
        print(as_line(result) if result else f"{run.task:24} {run.core:16} seed {run.seed}  to do")
    for (task, core), parameters in suite.parameters.items():
        print(f"{task:24} {core:16} {parameters:,} parameters")


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "record", "list"])
    parser.add_argument("suite", type=Path, help="YAML file, see benchmarks/learning/suite.py")
    parser.add_argument("runs", type=Path, nargs="*", help="record: run folders to take over")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time (default: processors)")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="train on a Ray cluster")
    parser.add_argument("--folder", type=Path, default=RUNS, help=f"where runs go (default: {RUNS})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--only", default="", help="of the runs, those whose name (TASK_CORE_SEED) holds this")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise SettingsError(f"--workers must be at least 1, got {options.workers}")
    if options.runs and options.command != "record":
        raise SettingsError(f"{options.command} takes no run folders, got {options.runs[0]}; --only chooses runs")
    torch.set_num_threads(1)  # final evaluations run beside other runs, and would get in their way
    suite = load_suite(options.suite, options.folder, options.results)
    suite.check_parameters()
    if options.command == "list":
        list_runs(suite)
    elif options.command == "record":
        record(suite, options.runs)
    else:
        results = {run: read_result(run) for run in suite.runs if options.only in run.name}
        if not results:
            raise SettingsError(f"--only {options.only}: no run of {suite.name}; such as {suite.runs[0].name}")
        to_do = [run for run, result in results.items() if result is None or not result["finished"]]
        to_do = [run for run in to_do if not take_over(run)]
        print(f"{suite.name}: {len(to_do)} of {len(results)} runs to do", flush=True)
        if options.ray is None:
            run_local(to_do, options.workers)
        else:
            run_ray(to_do, options.ray)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
