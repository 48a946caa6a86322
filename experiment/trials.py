"""One trial of a study: a run like any other, whose evaluations are reported to Optuna's pruner.

What is reported is the success rate of each evaluation, or the mean return where the task reports no success. Trials
of other rollout lengths evaluate at other steps, so that a value counts for the step that its evaluation was due at:
a multiple of ``run.eval_every``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from experiment.evaluating import read_lines
from experiment.interrupts import Interrupted
from experiment.output import reporting
from experiment.parsing import one_line
from experiment.runs import run_path
from experiment.settings import Settings, SettingsError
from experiment.study import Study
from experiment.training import train
from fbrl.finite import NotFiniteError
from fbrl.novelty import NoveltyError

if TYPE_CHECKING:
    import optuna

# what is the fault of the values: the study notes it and goes on
FAILURES = (SettingsError, NotFiniteError, NoveltyError, MemoryError, torch.OutOfMemoryError)
SUCCESS_COUNTS = 0.9  # of a trial's value; the rest is how soon it came


class Score(NamedTuple):
    """How good a training was.

    ``best`` is the success rate of the best evaluation, which is that of best.zip; ``mean`` is the area under the
    learning curve over the whole of ``ppo.timesteps``, as a share of what success from the first step on would be.
    For a task that reports no success both are of the return.
    """

    measure: str  # "success" or "return"
    best: float
    mean: float

    @property
    def value(self) -> float:
        """What the study makes as large as it can: success counts for nine tenths, how soon it comes for one."""
        return SUCCESS_COUNTS * self.best + (1 - SUCCESS_COUNTS) * self.mean


def score(lines: Sequence[dict[str, Any]], timesteps: int) -> Score:
    """The score of a training by its evaluations, of which there is one at least.

    An evaluation counts for the steps since the one before; the last also for those that a training which was stopped
    at its success did not need.
    """
    measure = "success" if any(line["success"] is not None for line in lines) else "return"
    values = [float(line[measure] or 0.0) for line in lines]
    ends = [min(line["timesteps"], timesteps) for line in lines]
    ends[-1] = timesteps
    starts = [0, *ends[:-1]]
    area = sum(value * (end - start) for value, start, end in zip(values, starts, ends, strict=True))
    return Score(measure, max(values), area / timesteps)


class Reports:
    """Reports a training's evaluations, and says whether it is to be pruned.

    Args:
        trial: the trial.
        settings: its run's.
        known: the steps that it has reported before.
    """

    def __init__(self, trial: optuna.Trial, settings: Settings, known: Iterable[int] = ()) -> None:
        self.trial, self.settings, self.pruned = trial, settings, False
        self._known = set(known)

    def __call__(self, line: dict[str, Any]) -> bool:
        """Reports an evaluation; true where the training is to end, which a last one never is."""
        run, ppo = self.settings.run, self.settings.ppo
        value = line["return"] if line["success"] is None else line["success"]
        enough = run.stop_at_success is not None and line["success"] is not None and value >= run.stop_at_success
        last = enough or line["timesteps"] >= ppo.timesteps
        # what was stopped at its success would have gone on with it
        upto = ppo.timesteps if last else line["timesteps"]
        for step in range(run.eval_every, upto + 1, run.eval_every):
            if step not in self._known:  # a run that goes on may make an evaluation again
                self.trial.report(value, step)
                self._known.add(step)
        self.pruned = bool(self._known) and not last and self.trial.should_prune()
        return self.pruned


def run_trial(study: Study, number: int) -> bool:
    """Trains a trial, from its start or its last checkpoint, and tells the study; false where it was interrupted.

    What is the fault of the values makes it a trial that failed. Any other error is raised, and leaves it as it is: the
    study goes on with it.
    """
    try:
        settings = study.settings_of(number)
        reports = Reports(study.trial(number), settings, study.frozen(number).intermediate_values)
        folder = run_path(settings)
        if not (folder / "finished").exists():
            train(settings, folder if (folder / "last.zip").is_file() else None, reports)
    except Interrupted:
        if not reports.pruned:
            return False
        _note(study, number, settings)
        study.prune(number)
        return True
    except FAILURES as error:
        study.fail(number, one_line(error) or type(error).__name__)
        return True
    study.finish(number, _note(study, number, settings).value)
    return True


def _note(study: Study, number: int, settings: Settings) -> Score:
    """Writes down beside the trial how good it was."""
    lines = read_lines(run_path(settings) / "evaluations.jsonl")
    found, trial = score(lines, settings.ppo.timesteps), study.trial(number)
    for name, value in (*found._asdict().items(), ("timesteps", lines[-1]["timesteps"])):
        trial.set_user_attr(name, value)
    return found


def said_of(study: Study, number: int) -> str:
    """What became of a trial, in one line."""
    trial = study.frozen(number)
    noted = trial.user_attrs
    if trial.state.name == "FAIL":
        return f"trial {number}: failed: {noted.get('why', 'for no known reason')}"
    if trial.state.name == "PRUNED":
        return f"trial {number}: pruned after {noted['timesteps']:,} steps, best {noted['measure']} {noted['best']:.3f}"
    first = study.optuna.best_trial.number == number
    good = f"{noted['measure']} {noted['best']:.3f}, mean {noted['mean']:.3f}, value {trial.value:.4f}"
    return f"trial {number}: {good}, after {noted['timesteps']:,} steps{'; the best so far' if first else ''}"


def end_with(parent: int) -> None:
    """Asks this process to save and end once its parent is gone, as after a kill."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> None:
    """A worker's process: ``python -m experiment.trials FOLDER NUMBER PARENT``; exit code 130 after an interrupt."""
    folder, number, parent = sys.argv[1:] if arguments is None else arguments
    end_with(int(parent))
    with reporting():
        if not run_trial(Study(Path(folder)), int(number)):
            raise SystemExit(130)


if __name__ == "__main__":
    main()
