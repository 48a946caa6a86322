"""Compares cores on tasks: trains what a suite names, records every run, never trains one twice.

    python -m benchmarks.compare run SUITE.yaml [--workers 2] [--ray [ADDRESS]] [--only WORD]
    python -m benchmarks.compare record SUITE.yaml [RUN ...]
    python -m benchmarks.compare list SUITE.yaml

``run`` trains what has no result yet, with one thread a run, and ``--workers`` runs at a time. Ctrl-C, or a SIGTERM,
lets every run save; the same command goes on. ``--ray`` hands the runs to a Ray cluster in the place of local
processes (``pip install fbrl[ray]``): without an address to one on this machine alone. There, ``--folder`` counts from
the repository's root.

``record`` writes down where runs stand that have not finished, and takes over the folders of runs that were trained by
hand, where their settings are those of a run of the suite.

A result is ``benchmarks/results/compare/SUITE/TASK_CORE_SEED.json``: how often the agent of the best evaluation
succeeds, the evaluations, all settings, the versions. ``python -m benchmarks.compare_report`` makes the tables and
pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.report import ROOT
from benchmarks.suite import RESULTS, RUNS, Run, Suite, identity, load_suite
from evaluate_agent import exhaustive
from fbrl.evaluation import Summary, load_agent, play, summarise
from fbrl.settings import Settings, SettingsError, fail, load_settings, one_line
from train_agent import evaluation_envs

EPISODES = 500  # of the final evaluation, where a task's start states cannot be listed
EVALUATION_SEED = 3_000_000  # apart from the levels of training and of its evaluations
TARGET = 0.95
SAVING = 120  # seconds that runs on a cluster get to save


def read_result(run: Run) -> dict[str, Any] | None:
    """The result, or None where there is none.

    Raises:
        SettingsError: where it was made with other settings than the suite's.
    """
    if not run.result_file.is_file():
        return None
    result: dict[str, Any] = json.loads(run.result_file.read_text())
    if differs := _differences(result["settings"], identity(run.settings)):
        raise SettingsError(
            f"{run.result_file}: made with other settings than {run.suite} says ({differs}); move it away"
        )
    return result


def _differences(made_with: dict[str, Any], asked: dict[str, Any]) -> str:
    found = [
        f"{group}.{key} {made_with[group].get(key)}, not {value}"
        for group, values in asked.items()
        for key, value in values.items()
        if made_with[group].get(key, value) != value
    ]
    return "; ".join(found)


def summary_of(agent: PPO, settings: Settings, zero_memory: bool = False) -> tuple[Summary, bool]:
    """How well an agent does with its most probable actions, and whether the numbers are exact."""
    try:
        return exhaustive(agent, settings.env, zero_memory), True
    except SettingsError:
        env = evaluation_envs(settings.env, EVALUATION_SEED + settings.run.seed, n_envs=50)
        played = play(agent, env, EPISODES, deterministic=True, zero_memory=zero_memory)
        env.close()
        return summarise(played), False


def make_result(run: Run, folder: Path) -> dict[str, Any]:
    """What a run's folder says, and how well the agent of its best evaluation does."""
    agent = load_agent(folder / "best.zip", "cpu")
    summary, exact = summary_of(agent, run.settings)
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    speeds = steps_per_second(folder)
    return {
        "suite": run.suite,
        "task": run.task,
        "core": run.core,
        "seed": run.seed,
        "finished": (folder / "finished").exists(),
        "steps": lines[-1]["timesteps"],
        "best_at": agent.num_timesteps,
        "success": summary.success and summary.success.value,
        "success_interval": summary.success and [summary.success.low, summary.success.high],
        "exact": exact,
        "episodes": summary.episodes,
        "return": summary.returns.value,
        "success_zero_memory": _without_memory(agent, run.settings),
        "steps_to_95": next((line["timesteps"] for line in lines if (line["success"] or 0) >= TARGET), None),
        "parameters": sum(parameter.numel() for parameter in agent.policy.parameters()),
        "steps_per_second": float(np.median(speeds)) if speeds else None,
        "evaluations": {key: [line[key] for line in lines] for key in ("timesteps", "success", "return", "length")},
        "settings": identity(run.settings),
        "versions": json.loads((folder / "versions.json").read_text()),
    }


def _without_memory(agent: PPO, settings: Settings) -> float | None:
    if settings.core.name in ("none", "memoryless"):
        return None
    success = summary_of(agent, settings, zero_memory=True)[0].success
    return success and success.value


def steps_per_second(folder: Path) -> list[float]:
    """What a run logged of its speed, rollout by rollout, in environment steps a second."""
    tag, events = "time/steps_per_second", EventAccumulator(str(folder)).Reload()
    return [event.value for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def write_result(run: Run, result: dict[str, Any]) -> None:
    """Keeps a result; one that is half written is never taken for one."""
    file = run.result_file
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, file)


class Trainer:
    """Trains runs in processes of their own, which it asks to save when it is asked to stop."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self._lock = threading.Lock()

    def train(self, run: Run) -> dict[str, Any] | None:
        """Trains a run from its start or its last checkpoint on; None where it was stopped.

        Raises:
            RuntimeError: where the training fails; the message names its log.
        """
        folder = run.folder
        if not (folder / "finished").exists():
            log = folder.with_name(f"{folder.name}.log")
            with self._lock:
                if self.stopped:
                    return None
                process = start(run, folder, log)
                self.running.add(process)
            code = process.wait()
            self.running.discard(process)
            if self.stopped:
                return None
            if code:
                lines = log.read_text().splitlines() or [f"exit code {code}"]
                raise RuntimeError(f"{run.suite} {run.name}: training failed, see {log}: {lines[-1]}")
        return make_result(run, folder)

    def stop(self) -> None:
        """Lets all runs save and end."""
        with self._lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signal.SIGINT)


def start(run: Run, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts ``train_agent.py`` on a run; what it prints is added to ``log``."""
    command = [sys.executable, str(ROOT / "train_agent.py")]
    if (folder / "resume.pkl").is_file():
        command += ["--resume", str(folder)]
    else:
        # killed before its first checkpoint: nothing of it can be taken up
        shutil.rmtree(folder, ignore_errors=True)
        config = folder.with_name(f"{folder.name}.yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        run.settings.save(config)
        command += ["--config", str(config)]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C reaches the trainer alone, which hands it on once
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )


def run_local(runs: Sequence[Run], workers: int) -> None:
    """Trains runs in processes on this machine, ``workers`` at a time."""
    trainer = Trainer()

    def one(run: Run) -> str | None:
        try:
            result = trainer.train(run)
        except (RuntimeError, OSError, ValueError) as error:  # the others go on
            print(f"error: {error}", file=sys.stderr, flush=True)
            return str(error)
        if result is not None:
            _keep(run, result)
        return None

    def stop(number: int, frame: object) -> None:
        print("\nsaving all runs ...", file=sys.stderr, flush=True)
        threading.Thread(target=trainer.stop).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(workers) as pool:
            failed = [error for error in pool.map(one, runs) if error]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if trainer.stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130)
    if failed:
        raise SettingsError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")


def run_ray(runs: Sequence[Run], address: str) -> None:
    """Trains runs on a Ray cluster, a processor each.

    This repository must lie at the same place on every machine. Run folders stay where a run was trained, so that a run
    goes on only there, or where machines share their disks.

    Raises:
        SettingsError: where Ray is not installed or cannot be reached, and where runs failed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise SettingsError("--ray: Ray is not installed: pip install fbrl[ray]") from None
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise SettingsError(f"--ray {address}: {error}") from None
    remote = ray.remote(num_cpus=1, max_retries=0)(_train_here).remote
    waiting = {remote(run): run for run in runs}
    failed = 0
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            run = waiting.pop(done)
            try:
                _keep(run, ray.get(done))
            except ray.exceptions.RayError as error:  # the others go on
                failed += 1
                print(f"error: {run.name}: {one_line(error)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("\nsaving all runs ...", file=sys.stderr, flush=True)
        for reference in waiting:
            ray.cancel(reference)
        ray.wait(list(waiting), num_returns=len(waiting), timeout=SAVING)
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        ray.shutdown()
    if failed:
        raise SettingsError(f"{failed} of {len(runs)} runs failed; the same command tries them again")


def _train_here(run: Run) -> dict[str, Any]:
    """In a Ray worker, which a cancelled task reaches as Ctrl-C."""
    os.chdir(ROOT)
    trainer = Trainer()
    try:
        result = trainer.train(run)
    except KeyboardInterrupt:
        trainer.stop()
        for process in trainer.running:
            process.wait()
        raise
    assert result is not None
    return result


def as_line(result: dict[str, Any]) -> str:
    """A result for people."""
    success = "-" if result["success"] is None else f"{result['success']:.3f}"
    at = "never" if result["steps_to_95"] is None else f"{result['steps_to_95']:,}"
    state = "" if result["finished"] else "  (not finished)"
    name = f"{result['task']:24} {result['core']:16} seed {result['seed']}"
    return f"{name}  success {success}  95 % at {at}  {result['steps']:,} steps{state}"


def record(suite: Suite, folders: Sequence[Path]) -> None:
    """Writes results of runs that have not finished, and of folders trained elsewhere with a run's settings.

    Raises:
        SettingsError: where no run of the suite has the settings of such a folder.
    """
    for folder in folders:
        settings = load_settings(folder / "config.yaml")
        twins = [run for run in suite.runs if not _differences(identity(settings), identity(run.settings))]
        if not twins:
            raise SettingsError(f"{folder}: no run of {suite.name} has its settings")
        _keep(twins[0], make_result(twins[0], folder))
    for run in [] if folders else suite.runs:
        old = read_result(run)
        if (old is None or not old["finished"]) and (run.folder / "best.zip").is_file():
            _keep(run, make_result(run, run.folder))


def _keep(run: Run, result: dict[str, Any]) -> None:
    write_result(run, result)
    print(as_line(result), flush=True)


def list_runs(suite: Suite) -> None:
    """What is done, what is not, and how many parameters each core has on each task."""
    for run in suite.runs:
        result = read_result(run)
        state = "to do" if result is None else as_line(result)
        print(state if result else f"{run.task:24} {run.core:16} seed {run.seed}  {state}")
    for (task, core), parameters in suite.parameters.items():
        print(f"{task:24} {core:16} {parameters:,} parameters")


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "record", "list"])
    parser.add_argument("suite", type=Path, help="YAML file, see benchmarks/suite.py")
    parser.add_argument("runs", type=Path, nargs="*", help="record: run folders to take over")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time (default: processors)")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="train on a Ray cluster")
    parser.add_argument("--folder", type=Path, default=RUNS, help=f"where runs go (default: {RUNS})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--only", default="", help="of the runs, those whose name (TASK_CORE_SEED) holds this")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise SettingsError(f"--workers must be at least 1, got {options.workers}")
    torch.set_num_threads(1)  # final evaluations run beside other runs, and would get in their way
    suite = load_suite(options.suite, options.folder, options.results)
    suite.check_parameters()
    if options.command == "list":
        list_runs(suite)
    elif options.command == "record":
        record(suite, options.runs)
    else:
        results = {run: read_result(run) for run in suite.runs if options.only in run.name}
        to_do = [run for run, result in results.items() if result is None or not result["finished"]]
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
