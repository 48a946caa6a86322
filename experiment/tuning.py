"""Tuning: a study of Optuna's over a configuration, each of whose trials is a run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from experiment import files
from experiment.agents import make_model
from experiment.distributed import say
from experiment.environments import closed_after, make_envs, training_envs
from experiment.findings import write_findings
from experiment.guests import find
from experiment.insight import check_recordable
from experiment.parsing import one_line
from experiment.rules import check_device
from experiment.saved import start_from
from experiment.settings import Settings, SettingsError
from experiment.space import Space, check_space, default_space, read_space
from experiment.study import Study, begin, check_same, readable, study_folder
from experiment.trials import run_trial, said_of
from experiment.workers import INTERRUPTED, Workers

STEPS = 50  # that the observations are looked at
NEEDS = ("optuna", "matplotlib")


@dataclass
class How:
    """How a study is made.

    Args:
        trials: Trials in all, whatever becomes of them.
        space: YAML file with what is searched; None means the settings that matter, around the configuration.
        workers: Trials at a time, a process and a thread each; None means as many as there are cores.
        startup: Trials that are drawn at random, and that have to finish before any is pruned.
        warmup: Share of ppo.timesteps before which none is pruned.
    """

    trials: int
    space: Path | None = None
    workers: int | None = None
    startup: int = 10
    warmup: float = 0.25


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_installed() -> None:
    """Raises SettingsError where what tuning takes is not installed."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(f"tuning needs pip install fbrl[tune] ({', '.join(missing)} is missing)")


def space_of(settings: Settings, file: Path | None) -> Space:
    """What is searched, which can be used; says so where much of it cannot be trained.

    Raises:
        SettingsError: where the configuration itself cannot be trained, or a file holds no space for it.
    """
    check_device("run.device", settings.run.device)
    for path in settings.run.callbacks:
        find(path)
    if settings.run.eval_pictures:
        check_recordable(settings.env, "run.eval_pictures: true")
    with closed_after(training_envs(settings)) as env:
        start_from(make_model(settings, env), settings)
    space = default_space(settings, pays_novelty(settings)) if file is None else read_space(file)
    try:
        said = check_space(space, settings)
    except SettingsError as error:
        raise SettingsError(f"{file or 'the space'}: {error}") from None
    if said:
        say(f"{file or 'the space'}: {said}")
    return space


def pays_novelty(settings: Settings) -> bool:
    """Whether the task can pay the bonus for new observations, as far as some steps show."""
    try:
        with closed_after(make_envs(replace(settings.env, novelty=1.0), settings.run.seed, 1)) as env:
            env.reset()
            env.action_space.seed(settings.run.seed)
            for _ in range(0 if settings.env.action_masks else STEPS):  # else not every action is allowed
                env.step(np.array([env.action_space.sample()]))
    except ValueError:  # SettingsError and NoveltyError
        return False
    return True


def tune(settings: Settings, how: How, again: str) -> None:
    """Trains the trials, or what is left of them, and writes what was found.

    Args:
        settings: the configuration.
        how: how the study is made.
        again: what a user types to go on with it.

    Raises:
        SettingsError: where something cannot be used; nothing is made then. And where no trial has finished.
        SystemExit: after an interrupt, with code 130; after an error in a worker's process, with its code.
    """
    check_installed()
    folder, space = study_folder(settings), space_of(settings, how.space)
    check_same(folder, settings, space)
    with files.held(folder):
        study = begin(folder, settings, space, how.startup, int(how.warmup * settings.ppo.timesteps))
        workers = cores() if how.workers is None else how.workers
        say(f"{folder}: up to {how.trials} trials of {settings.env.id}, {workers} at a time, over {', '.join(space)}")
        if settings.run.eval_every >= settings.ppo.timesteps:
            say("no trial can be pruned: run.eval_every is no less than ppo.timesteps")
        try:
            with readable(folder):
                code = train_all(study, how.trials, workers)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            error.add_note(f"the study goes on with: {again}")
            raise
        if code not in (0, INTERRUPTED):
            say(f"stopped by the error above; go on with: {again}", file=sys.stderr)
            raise SystemExit(code)
        try:
            say(write_findings(study))
        except SettingsError as error:
            if code == 0:
                raise
            say(str(error))
        if code:
            say(f"stopped; go on with: {again}")
            raise SystemExit(code)


def train_all(study: Study, trials: int, workers: int) -> int:
    """Trains what began and did not end, then new trials; 0, or 130 after an interrupt, or a process's exit code."""
    study.complete()
    unfinished = study.begun()
    following = partial(_following, study, trials, unfinished)
    if workers > 1:
        return Workers(study, workers, partial(_say, study)).run(following)
    while (number := following()) is not None:
        if not run_trial(study, number):
            return INTERRUPTED
        _say(study, number)
    return 0


def _following(study: Study, trials: int, unfinished: list[int]) -> int | None:
    """The number of the next trial to train; those that cannot be trained fail at once, and count."""
    if unfinished:
        return unfinished.pop(0)
    while (number := study.ask(trials)) is not None:
        try:
            study.settings_of(number)
        except SettingsError as error:
            study.fail(number, one_line(error))
            _say(study, number)
        else:
            return number
    return None


def _say(study: Study, number: int) -> None:
    say(said_of(study, number))
