"""Training, end to end: environment steps a second of MemoryPPO beside sb3-contrib's RecurrentPPO.

    python -m benchmarks.speed.throughput [--quick] [--device cuda] [--repeats 5] [--engine envpool] [--width 64]
        [--json FILE]

``contenders.py`` says how the two are made alike. Every measurement is a fresh process, which makes the agent,
learns from two rollouts to warm up, and times the ``--rollouts`` rollouts and updates that follow; the contenders take
turns. Reports nothing where an update of ours does not start at a ratio of one, or where the numbers of parameters
differ by more than a tenth. Agents are new, whose episodes are long on MemoryS7; where episodes are short, as on
Counting, the loops over padded sequences of RecurrentPPO are shorter too, and ours are not. On a GPU ours is
measured without CUDA graphs and by two parallel passes, too, and everything in one process. Of each size (D, L, H, M),
number of environments, minibatch, engine, ``task`` and contender, by the medians over the repeats:

- ``agent``, ``processes`` (which train one agent on the same totals, as ``torchrun train_agent.py`` does), ``threads``
  of each process, ``parameters``;
- ``steps_per_second``: environment steps by the clock, updates included;
- ``over_recurrent_ppo``: this contender's over RecurrentPPO's, with one thread or two, whichever it is faster with;
- ``over_recurrent_ppo_shared``: the same over it where actor and critic share one LSTM;
- ``over_one_process``: over ours with one process of one thread;
- ``shares``: of the first process's time, as ``experiment.timing`` takes it: stepping the environments, acting, the
  update (with waiting for the other process) and other.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from benchmarks.report import ROOT, add_device, conditions, in_turns, make_parser, parameters, parse, print_row, write
from benchmarks.speed.contenders import (
    EAGER,
    LONG,
    OURS,
    PASSES,
    RIVAL,
    SHARED,
    SHORT,
    SIZES,
    Engine,
    Size,
    Task,
    check_first_ratio,
    check_parameters,
    make_agent,
    settings_of,
)
from experiment.distributed import Together, in_parallel, process_group, say, share, size
from experiment.timing import TimeShares
from fbrl import MemoryPPO


class Contender(NamedTuple):
    """What is measured."""

    agent: str
    processes: int
    threads: int  # of each process


BASE = Contender(OURS, 1, 1)
CONTENDERS = [BASE, Contender(OURS, 1, 2), Contender(OURS, 2, 1)]
CONTENDERS += [Contender(agent, 1, threads) for agent in (RIVAL, SHARED) for threads in (1, 2)]
QUICK_CONTENDERS = [BASE, Contender(RIVAL, 1, 1)]
GPU_CONTENDERS = [Contender(agent, 1, 1) for agent in (OURS, EAGER, PASSES, RIVAL, SHARED)]
QUICK_GPU_CONTENDERS = [Contender(agent, 1, 1) for agent in (OURS, PASSES, RIVAL)]
SHARES = ("environment", "acting", "update", "other")
COLUMNS = ["agent", "processes", "threads", "parameters", "steps_per_second", "over_recurrent_ppo"]
COLUMNS += ["over_recurrent_ppo_shared", "over_one_process"]


class Setup(NamedTuple):
    """Under what the contenders are compared."""

    size: Size
    n_envs: int
    batch_size: int  # steps in a minibatch
    engine: Engine = "minigrid"
    device: str = "cpu"
    task: Task = LONG


# the configuration's own environments and minibatches, and those that RecurrentPPO is often run with
SETUPS = [*(Setup(size, 64, 1024) for size in SIZES), Setup(SIZES[1], 16, 512)]
SETUPS += [Setup(SIZES[0], 64, 1024, task=SHORT)]
QUICK_SETUPS = [Setup(SIZES[0], 8, 1024)]


class Job(NamedTuple):
    """One measurement; travels to its process as JSON."""

    agent: str
    threads: int
    size: list[int]
    n_envs: int
    batch_size: int
    engine: Engine
    device: str
    task: Task
    rollouts: int


class Keep(BaseCallback):
    """Keeps what ``TimeShares`` logs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        logged = self.logger.name_to_value
        if "time/steps_per_second" in logged:
            self.kept.append({key[5:]: value for key, value in logged.items() if key.startswith("time/")})


def run(job: Job) -> dict[str, Any]:
    """Measures, in this process or, started by ``torchrun``, in this and the others."""
    torch.set_num_threads(job.threads)
    settings = settings_of(Size(*job.size), job.n_envs, job.batch_size, job.engine, job.device, job.task)
    agent = make_agent(job.agent, share(settings))
    agent.set_logger(Logger(folder=None, output_formats=[]))
    keep = Keep()
    rollout = agent.n_steps * agent.n_envs * size()
    with in_parallel(agent) if isinstance(agent, MemoryPPO) else contextlib.nullcontext():
        # two to warm up: the first rollout is logged without an update, the second with the first update
        agent.learn((2 + job.rollouts) * rollout, TimeShares([Together(lambda: False), keep]))
    return {"parameters": parameters(agent.policy)} | total(keep.kept[1:], rollout)


def total(laps: list[dict[str, float]], rollout: int) -> dict[str, Any]:
    """Speed and shares over some rollouts of as many steps."""
    seconds = [rollout / lap["steps_per_second"] for lap in laps]
    shares = {
        name: sum(lap[name] * spent for lap, spent in zip(laps, seconds, strict=True)) / sum(seconds) for name in SHARES
    }
    return {"steps_per_second": len(laps) * rollout / sum(seconds), "shares": shares}


def measure(contender: Contender, setup: Setup, rollouts: int) -> dict[str, Any]:
    """``run`` in a process of its own; exits with its last line where it fails."""
    job = Job(contender.agent, contender.threads, list(setup.size), *setup[1:], rollouts)
    together = ["torch.distributed.run", "--standalone", f"--nproc-per-node={contender.processes}", "-m"]
    launcher = together if contender.processes > 1 else []
    command = [sys.executable, "-m", *launcher, "benchmarks.speed.throughput", "--one", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(contender.threads)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{contender.agent}: {reason(found.stderr)}")
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def reason(stderr: str) -> str:
    """The line that says why a process failed; ``torchrun`` writes a report of its own after it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip(" =")] or ["failed"]
    telling = [line for line in lines if "parity is red" in line or "rror: " in line]
    return (telling or lines)[-1]


def make_rows(setup: Setup, found: dict[Contender, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each contender; exits where an agent is much smaller or larger than ours."""
    check_parameters({contender.agent: results[0]["parameters"] for contender, results in found.items()})
    speeds = {
        contender: statistics.median(result["steps_per_second"] for result in results)
        for contender, results in found.items()
    }
    best = {agent: max(speeds[c] for c in found if c.agent == agent) for agent in {c.agent for c in found}}
    return [
        {**setup.size._asdict(), **dict(zip(Setup._fields[1:], setup[1:], strict=True))}
        | {**contender._asdict(), "parameters": results[0]["parameters"]}
        | {"steps_per_second": speeds[contender]}
        | {f"over_{rival}": speeds[contender] / best[rival] if rival in best else None for rival in (RIVAL, SHARED)}
        | {"over_one_process": speeds[contender] / speeds[BASE] if contender.agent == OURS else None}
        | {"shares": {name: statistics.median(result["shares"][name] for result in results) for name in SHARES}}
        | {"measured": results}
        for contender, results in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--rollouts", type=int, default=2, help="that a measurement times (default: 2)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a job: measure in this process
    parser.add_argument("--engine", choices=get_args(Engine), default="minigrid", help="that steps the environments")
    parser.add_argument("--width", type=int, choices=[size.D for size in SIZES], help="D: of this size only")
    add_device(parser)
    options = parse(parser, arguments)
    if options.one:
        with process_group():
            say(json.dumps(run(Job(*options.one))))
        return
    setups, contenders = (QUICK_SETUPS, QUICK_CONTENDERS) if options.quick else (SETUPS, CONTENDERS)
    if options.device != "cpu":
        contenders = QUICK_GPU_CONTENDERS if options.quick else GPU_CONTENDERS
    repeats, rollouts = (3, 1) if options.quick else (options.repeats, options.rollouts)
    columns = [*Size._fields, *Setup._fields[1:], *COLUMNS]
    print(*columns, sep="\t")
    rows = []
    setups = [setup for setup in setups if setup.task == LONG or options.engine == "minigrid"]
    setups = [setup for setup in setups if options.width in (None, setup.size.D)]
    for setup in [setup._replace(engine=options.engine, device=options.device) for setup in setups]:
        check_first_ratio(make_agent(OURS, settings_of(*setup)))
        functions = {contender: partial(measure, contender, setup, rollouts) for contender in contenders}
        for row in make_rows(setup, in_turns(functions, repeats, warm_up=0)):
            rows.append(row)
            print_row(row, columns)
    settings = dataclasses.asdict(settings_of(*setups[0]._replace(engine=options.engine, device=options.device)))
    write(options.json, "throughput", conditions(None, options.device) | {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
