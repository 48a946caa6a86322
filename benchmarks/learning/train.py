"""Trains the runs that a suite names, in processes of their own, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from benchmarks.learning.results import check_folder, keep, make_result, read_result
from benchmarks.learning.suite import Run
from benchmarks.report import ROOT
from experiment.parsing import one_line
from experiment.settings import SettingsError

SAVING = 120  # seconds that runs on a cluster get to save
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a terminal that is closed


class Trainer:
    """Trains runs in processes of their own, which it asks to save when it is asked to stop."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self._lock = threading.Lock()

    def train(self, run: Run) -> dict[str, Any] | None:
        """Trains a run from its start or its last checkpoint on; None where it was stopped.

        Raises:
            RuntimeError: where the training fails, the message names its log; and where another process trains it.
            SettingsError: where its folder holds a run that was trained with other settings.
        """
        folder = run.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"{run.suite} {run.name}: another process trains it in {folder}") from None
            return self._train(run, folder, lock)

    def _train(self, run: Run, folder: Path, lock: IO[str]) -> dict[str, Any] | None:
        result = read_result(run)  # another process may have finished it since
        if result is not None and result["finished"]:
            return result
        if (folder / "config.yaml").is_file():
            check_folder(run, folder)
        if not (folder / "finished").exists():
            log = folder.with_name(f"{folder.name}.log")
            with self._lock:
                if self.stopped:
                    return None
                process = start(run, folder, log, lock)
                self.running.add(process)
            code = wait(process)
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
            for process in list(self.running):  # others take theirs out meanwhile
                process.terminate()  # and no Ctrl-C, which processes that Ray starts do not hear


def wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for the exit code, in steps: a wait in one go keeps Ray from stopping it."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)


def start(run: Run, folder: Path, log: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Starts ``train_agent.py`` on a run, which holds ``lock`` too; what it prints is added to ``log``."""
    command = [sys.executable, str(ROOT / "train_agent.py")]
    if (folder / "last.zip").is_file():
        command += ["--resume", str(folder)]
    else:
        # killed before its first checkpoint: nothing of it can be taken up
        shutil.rmtree(folder, ignore_errors=True)
        config = folder.with_name(f"{folder.name}.yaml")
        run.settings.save(config)
        command += ["--config", str(config)]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C reaches the trainer alone, which hands it on once; should the trainer be killed,
        # the run trains on, and holds its lock
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def run_local(runs: Sequence[Run], workers: int) -> None:
    """Trains runs in processes on this machine, ``workers`` at a time."""
    trainer = Trainer()

    def one(run: Run) -> str | None:
        try:
            result = trainer.train(run)
        except Exception as error:  # whatever a training or an evaluation raises: the others go on
            print(f"error: {run.name}: {one_line(error)}", file=sys.stderr, flush=True)
            return str(error)
        if result is not None:
            keep(run, result)
        return None

    def stop(number: int, frame: object) -> None:
        if not trainer.stopped:  # once more would end the runs without saving
            print("\nsaving all runs ...", file=sys.stderr, flush=True)
            threading.Thread(target=trainer.stop).start()

    before = {number: signal.signal(number, stop) for number in ENDS}
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
        ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise SettingsError(f"--ray {address}: {error}") from None
    for number in ENDS[1:]:  # as Ctrl-C; Ray has set handlers of its own
        signal.signal(number, signal.default_int_handler)
    remote = ray.remote(num_cpus=1, max_retries=0)(_train_here).remote
    waiting = {remote(run): run for run in runs}
    failed = 0
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            run = waiting.pop(done)
            try:
                keep(run, ray.get(done))
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
            wait(process)
        raise
    assert result is not None
    return result
