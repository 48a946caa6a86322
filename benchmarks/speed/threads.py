"""Why a second thread gains what it gains: the compiled scan with one thread and with two.

    python -m benchmarks.speed.threads [--quick] [--repeats 60] [--json FILE]

Threads share the kernels; what is outside of them (packing the weights, torch's own operations, autograd) is done by
one. torch's threads wait by spinning, unless ``OMP_WAIT_POLICY=passive`` stands in the environment before torch is
imported, and then take the second processor from the kernels. Of both ways of waiting, and of ``brief``, the scripts'
own, which spins a little (``GOMP_SPINCOUNT=2000``), measured in turns in processes of their own, by the medians over
the laps, of which one number of threads makes several before the other takes its turn:

- ``two_over_one``: forward and backward, the time with one thread over that with two;
- ``kernels_two_over_one``: the same of the kernels alone;
- ``outside``: the share of the time with one thread that is spent outside of the kernels;
- ``least_two_over_one``: ``two_over_one`` by the shortest laps, which other work on the machine delays least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.report import ROOT, conditions, make_parser, parse, print_row, write
from benchmarks.speed.forms import Size, make_case, make_cores
from fbrl.cores import compiled_scan

SIZES = [Size(64, 2, 4, 32, 32, 32), Size(128, 2, 4, 64, 32, 64)]
POLICIES = {
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "brief": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"},
}
ROUNDS = 3
IN_A_ROW = 5  # laps of one number of threads; before them one that makes the threads
COLUMNS = ["wait_policy", "two_over_one", "kernels_two_over_one", "outside", "least_two_over_one"]


def laps(size: Size, repeats: int) -> dict[str, list[list[float]]]:
    """Of one thread and of two, in turns: the seconds of forward and backward, and those in the kernels."""
    core, case = make_cores(size, torch.float32)["compiled"], make_case(size, torch.float32)
    in_threads, kernels = compiled_scan.in_threads, [0.0]

    def timed(function: Callable[[int], None], jobs: int) -> None:
        start = time.perf_counter()
        in_threads(function, jobs)
        kernels[0] += time.perf_counter() - start

    compiled_scan.in_threads = timed
    found: dict[str, list[list[float]]] = {"1": [], "2": []}
    for turn in range(1 + -(-repeats // IN_A_ROW)):  # the first to warm up
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for lap in range(1 + IN_A_ROW):
                kernels[0] = 0.0
                start = time.perf_counter()
                core(*case)[0].square().mean().backward()
                if turn and lap:
                    found[str(threads)].append([time.perf_counter() - start, kernels[0]])
    return found


def measure(policy: str, size: Size, repeats: int) -> dict[str, list[list[float]]]:
    """``laps`` in a process of its own, whose threads wait in this way."""
    command = [sys.executable, "-m", "benchmarks.speed.threads", "--one", json.dumps([list(size), repeats])]
    environment = {name: value for name, value in os.environ.items() if name not in POLICIES["brief"]}
    environment |= POLICIES[policy] | {"OMP_NUM_THREADS": "2"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr.splitlines()[-1])
    result: dict[str, list[list[float]]] = json.loads(found.stdout.splitlines()[-1])
    return result


def row(policy: str, size: Size, rounds: list[dict[str, list[list[float]]]]) -> dict[str, Any]:
    """A row of the report."""
    whole = {n: [lap[0] for found in rounds for lap in found[n]] for n in "12"}
    kernels = {n: statistics.median(lap[1] for found in rounds for lap in found[n]) for n in "12"}
    median = {n: statistics.median(seconds) for n, seconds in whole.items()}
    return size._asdict() | {
        "wait_policy": policy,
        "two_over_one": median["1"] / median["2"],
        "kernels_two_over_one": kernels["1"] / kernels["2"],
        "outside": 1 - kernels["1"] / median["1"],
        "least_two_over_one": min(whole["1"]) / min(whole["2"]),
        "laps": rounds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=60)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parse(parser, arguments)
    if options.one:
        print(json.dumps(laps(Size(*options.one[0]), options.one[1])))
        return
    repeats, rounds = (3, 1) if options.quick else (options.repeats, ROUNDS)
    print(*Size._fields, *COLUMNS, sep="\t")
    rows = []
    for size in SIZES[:1] if options.quick else SIZES:
        found: dict[str, list[dict[str, list[list[float]]]]] = {policy: [] for policy in POLICIES}
        for _ in range(rounds):
            for policy, results in found.items():
                results.append(measure(policy, size, repeats))
        for policy, results in found.items():
            rows.append(row(policy, size, results))
            print_row(rows[-1], [*Size._fields, *COLUMNS])
    write(options.json, "threads", conditions(None) | {"rows": rows})


if __name__ == "__main__":
    main()
