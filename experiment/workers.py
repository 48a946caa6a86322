"""Processes that train the trials of a study, one each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from experiment.distributed import say
from experiment.environments import ROOT
from experiment.interrupts import asked_to_stop
from experiment.study import Study

PAUSE = 0.2  # seconds between two looks at the processes
INTERRUPTED = 130
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Workers:
    """Up to ``most`` trials at a time, a process each.

    The processes hear no Ctrl-C: the first one here asks all of them to save, a second ends them at once.

    Args:
        study: the study.
        most: processes at a time.
        ended: called with the number of each trial that has ended.
    """

    def __init__(self, study: Study, most: int, ended: Callable[[int], None]) -> None:
        self.study, self.most, self.ended = study, most, ended
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.stopping = False
        self._asked: set[int] = set()  # trials that were asked to save and end

    def run(self, following: Callable[[], int | None]) -> int:
        """Trains trials until there is none; the exit code of a process that met an error, 130 if interrupted, else 0.

        Args:
            following: gives the number of the next trial.
        """
        code = 0
        try:
            with asked_to_stop(self._stop):
                while True:
                    while not self.stopping and len(self.running) < self.most and (number := following()) is not None:
                        self.running[number] = start(self.study, number)
                    if not self.running:
                        return code or (INTERRUPTED if self.stopping else 0)
                    code = code or self._collect()
                    if self.stopping or code:
                        self.stopping = True
                        self._ask()
                    time.sleep(PAUSE)
        finally:
            for process in self.running.values():
                process.kill()
                process.wait()

    def _collect(self) -> int:
        """Looks which processes have ended, and how; the exit code of one that met an error, which it said, or 0."""
        for number, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[number]
            told = number not in self.study.begun()
            if code < 0 and not told and not self.stopping:  # as by a system that is out of memory
                self.study.fail(number, f"its process was ended by signal {-code}")
                told = True
            if told:
                self.ended(number)
            elif code > 0 and not self.stopping:
                return code
        return 0

    def _stop(self) -> None:
        self.stopping = True
        say("\nsaving all trials (once more to stop at once) ...", file=sys.stderr)

    def _ask(self) -> None:
        """Asks the processes to save and end, each once."""
        for number in self.running.keys() - self._asked:
            self.running[number].terminate()
            self._asked.add(number)


def start(study: Study, number: int) -> subprocess.Popen[bytes]:
    """Starts a trial in a process of its own, with one thread."""
    command = [sys.executable, "-P", "-m", "experiment.trials", str(study.folder), str(number), str(os.getpid())]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # a session of its own, which a terminal's Ctrl-C does not reach
    return subprocess.Popen(command, env=os.environ | ONE_THREAD | {"PYTHONPATH": path}, start_new_session=True)
