"""What a training in N processes can reach: bytes and operations, counted; times and memory, measured; and a model.

    python -m benchmarks.speed.scaling [--quick] [--repeats 5] [--json FILE]

Of configs/memory_s7_view3.yaml, one thread. ``counts`` of one process:

- ``parameters``, and ``gradient_bytes``: what every step of the optimiser adds up over all processes; in a ring each
  sends and receives 2 (N - 1) / N of it;
- ``rollout_bytes``: what the buffer holds of a step of one environment, and ``state_bytes``: of the core's state before
  each sequence. A process keeps them to itself;
- ``flops``: operations of matrix products a step of one environment (a multiplication and an addition are two): of the
  encoder, of the core while acting, and of all in one epoch of the update, backward included.

``memory``: a process ``held`` so many bytes with so many environments that have been stepped, and had ``peak`` bytes at
most in a training of 32 steps a rollout; ``microseconds`` of processor time go into a step of each environment alone.
``each``: by least squares, how many bytes one environment adds to the two.

``times``, processor seconds by least squares: a rollout's step takes rollout_fixed + rollout_each n_envs, a minibatch
update_fixed + update_each batch_size; and of the clock, between two processes of this machine, an all-reduce takes
latency + bytes / bandwidth. ``model`` is what follows for N processes, with totals ``growing``, where each has the
configuration's environments and minibatches, and the ``same``, where each has its share of them: steps a second, over
those of one process, and the share of the time that goes into ``talking``. Over a network, latency and bandwidth are
assumed, not measured. The model leaves out that processes wait for the slowest and for evaluations.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.report import ROOT, conditions, make_parser, parse, write
from benchmarks.speed.contenders import SIZES, settings_of
from benchmarks.speed.costs import agent_with, all_reduce, counts, hold, line, rollout, seconds
from experiment.distributed import process_group, say

PROCESSES = (1, 2, 4, 8, 16, 32, 64)
JOBS: dict[str, Callable[..., Any]] = {"hold": hold, "all_reduce": all_reduce}
MESSAGES = 3  # of a step of the optimiser: gradients, which of them there are, what normalises the advantages


class Plan(NamedTuple):
    """What is measured."""

    tasks: tuple[str, ...] = ("fbrl/TMaze-v0", "fbrl/HiddenAutomaton-v0", "fbrl/MemoryS7-View3-v0")
    environments: tuple[int, ...] = (1000, 2000, 4000)  # whose memory
    n_envs: tuple[int, ...] = (64, 256, 1024)  # of a rollout whose time
    batches: tuple[int, ...] = (512, 1024, 4096)  # steps in a minibatch whose time


class Link(NamedTuple):
    """What joins two processes."""

    latency: float  # seconds
    bandwidth: float  # bytes a second


NETWORKS = {"10 Gbit/s": Link(50e-6, 1.25e9), "1 Gbit/s": Link(100e-6, 1.25e8)}  # assumed


def job(name: str, *arguments: Any, processes: int = 1) -> Any:
    """What ``hold`` or ``all_reduce`` gives in fresh processes."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-W", "ignore", "-m", *launcher, "benchmarks.speed.scaling", "--one"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, json.dumps([name, *arguments])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise SystemExit(f"{name} {arguments}: {(found.stderr.strip().splitlines() or ['failed'])[-1]}")
    return json.loads(found.stdout.splitlines()[-1])


def times(gradient_bytes: int, plan: Plan, repeats: int) -> dict[str, float]:
    """The parameters of the model."""
    rollouts = []
    for number in plan.n_envs:
        agent = agent_with(number, 1024)
        rollouts.append((number, seconds(rollout(agent), repeats) / agent.n_steps))
    updates = []
    for batch in plan.batches:
        agent = agent_with(64, batch)
        rollout(agent)()
        minibatches = agent.n_epochs * agent.n_steps * agent.n_envs // batch
        updates.append((batch, seconds(agent.train, repeats) / minibatches))
    latency, each = line(job("all_reduce", [4, gradient_bytes, 16 * gradient_bytes], processes=2))
    names = ("rollout_fixed", "rollout_each", "update_fixed", "update_each")
    return dict(zip(names, (*line(rollouts), *line(updates)), strict=True)) | {
        "latency": latency,
        "bandwidth": 1 / each,
    }


def model(
    times: Mapping[str, float], counts: Mapping[str, Any], link: Link, processes: int, same_totals: bool = False
) -> dict[str, float]:
    """Environment steps a second of so many processes, and what limits them.

    Each has the configuration's environments and minibatches or, with ``same_totals``, its share of them.
    """
    settings, share = settings_of(SIZES[0]), processes if same_totals else 1
    n_envs, n_steps, batch = settings.env.n_envs / share, settings.ppo.n_steps, settings.ppo.batch_size / share
    updates = counts["optimiser_steps"]
    compute = n_steps * (times["rollout_fixed"] + times["rollout_each"] * n_envs)
    compute += updates * (times["update_fixed"] + times["update_each"] * batch)
    sent = 2 * (processes - 1) / processes * counts["gradient_bytes"]
    talk = updates * (sent / link.bandwidth + MESSAGES * math.log2(processes) * link.latency)
    return {
        "processes": processes,
        "steps_per_second": processes * n_envs * n_steps / (compute + talk),
        "talking": talk / (compute + talk),
        "megabytes_per_second": updates * sent / (compute + talk) / 1e6,  # of one process
    }


def models(times: Mapping[str, float], counts: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """By how the totals are, and by what joins the processes; ``over_one`` is the speed over that of one process."""
    settings = settings_of(SIZES[0])
    most = min(settings.env.n_envs, settings.ppo.batch_size // settings.ppo.seq_len)  # one environment, one sequence
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for totals in ("growing", "same"):
        for name, link in ({"this machine": Link(times["latency"], times["bandwidth"])} | NETWORKS).items():
            numbers = [n for n in PROCESSES if totals == "growing" or n <= most]
            rows = [model(times, counts, link, n, totals == "same") for n in numbers]
            one = rows[0]["steps_per_second"]
            found.setdefault(totals, {})[name] = [row | {"over_one": row["steps_per_second"] / one} for row in rows]
    return found


def each(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What one environment of each task adds."""
    return {
        task: {
            name: line([(row["n_envs"], row[name]) for row in rows if row["task"] == task])[1]
            for name in ("held", "peak")
        }
        for task in dict.fromkeys(row["task"] for row in rows)
    }


def tables(report: Mapping[str, Any]) -> str:
    """The report as docs/scaling.md shows it."""
    flops = " | ".join(f"{value / 1e3:.0f}" for value in report["counts"]["flops"].values())
    kept = ("parameters", "gradient_bytes", "optimiser_steps", "rollout_bytes", "state_bytes")
    lines = [
        "| parameters | bytes of gradients | optimiser's steps a rollout | buffer's bytes a step | bytes of a state |",
        "|---|---|---|---|---|",
        "| " + " | ".join(f"{report['counts'][name]:,.0f}" for name in kept) + " |",
        "",
        "| kFLOP a step: encoder | acting | update, one epoch |",
        "|---|---|---|",
        f"| {flops} |",
        "",
        "| task | environments | process holds, MB | at most in training, MB | µs a step of each |",
        "|---|---|---|---|---|",
    ]
    for row in report["memory"]:
        sizes = f"{row['held'] / 1e6:.0f} | {row['peak'] / 1e6:.0f} | {row['microseconds']:.1f}"
        lines.append(f"| {row['task']} | {row['n_envs']:,} | {sizes} |")
    lines += ["", "| task | kB an environment | kB in training |", "|---|---|---|"]
    lines += [f"| {task} | {one['held'] / 1e3:.1f} | {one['peak'] / 1e3:.1f} |" for task, one in report["each"].items()]
    for totals, networks in report["model"].items():
        lines += [
            "",
            f"| processes, {totals} totals | " + " | ".join(networks) + " |",
            "|---" * (1 + len(networks)) + "|",
        ]
        for rows in zip(*networks.values(), strict=True):
            cells = " | ".join(f"{row['steps_per_second']:,.0f} ({row['over_one']:.2f})" for row in rows)
            lines.append(f"| {rows[0]['processes']} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts, measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # what this process measures
    options = parse(parser, arguments)
    torch.set_num_threads(1)
    if options.one:
        with process_group():
            name, *given = options.one
            say(json.dumps(JOBS[name](*given)))
        return
    plan = Plan() if not options.quick else Plan(("fbrl/TMaze-v0",), (100, 200), (8, 16), (512, 1024))
    counted = counts()
    measured = times(counted["gradient_bytes"], plan, options.repeats)
    rows = [job("hold", task, number) for task in plan.tasks for number in plan.environments]
    model_of = models(measured, counted)
    report = {"counts": counted, "times": measured, "memory": rows, "each": each(rows), "model": model_of}
    print(tables(report))
    assumed = {name: link._asdict() for name, link in NETWORKS.items()}
    write(options.json, "scaling", conditions(threads=1) | {"assumed": assumed} | report)


if __name__ == "__main__":
    main()
