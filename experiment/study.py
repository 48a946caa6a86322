"""A study of Optuna's in its folder: which configuration is to be trained next, and what became of it.

The folder holds ``study.db`` (SQLite), ``space.yaml`` (what is searched), a run's folder for each trial, and in the end
``best.yaml`` and plots. One process asks for trials; each may be trained and told by another.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from experiment import files
from experiment.parsing import settings_from
from experiment.runs import run_path
from experiment.settings import Settings, SettingsError
from experiment.space import Space, Values, distributions, from_optuna, own_values, to_optuna, with_values
from experiment.typed import shown

if TYPE_CHECKING:
    import optuna

DATABASE, NAME = "study.db", "fbrl"
PATIENCE = 60  # seconds that a process waits for another to have written
# what may differ when a study goes on: where it trains, what it shows and saves
FREE = ("folder", "name", "device", "threads", "cuda_graphs", "eval_pictures", "checkpoint_every", "control",
        "progress_bar", "callbacks")  # fmt: skip


def study_folder(settings: Settings) -> Path:
    """Where the study of a configuration goes: beside its run."""
    folder = run_path(settings)
    return folder.with_name(f"{folder.name}_study")


class Study:
    """A study that was begun.

    Args:
        folder: its folder.

    Raises:
        SettingsError: where there is none, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / DATABASE).is_file():
            raise SettingsError(f"{folder} holds no study: {DATABASE} is missing")
        self.folder = folder
        with readable(folder, RuntimeError):  # of another version of Optuna's
            self.optuna = _open(folder)
            said = self.optuna.user_attrs
            self.settings, self.space = settings_from(said["settings"]), Space(said["space"])
            self.startup, self.warmup = int(said["startup"]), int(said["warmup"])
            self.optuna.pruner = _pruner(self.startup, self.warmup)

    def ask(self, most: int) -> int | None:
        """The number of the next trial, the configuration's own first; None where there are ``most`` already.

        What the sampler draws depends on the seed, the trial's number and what became of those before it.
        """
        trials = self.optuna.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state.name == "WAITING"]
        if len(trials) - len(waiting) >= most:
            return None
        self._sample_for(min(waiting, default=len(trials)))
        return self.optuna.ask(distributions(self.space)).number

    def _sample_for(self, number: int) -> None:
        self.optuna.sampler = _sampler(self.settings.run.seed, number, self.startup)

    def complete(self) -> None:
        """Draws the rest of the values of trials whose process was killed while they were drawn."""
        for number in self.begun():
            self._sample_for(number)
            trial = self.trial(number)
            for name, distribution in distributions(self.space).items():  # as ``ask`` does
                trial._suggest(name, distribution)

    def begun(self) -> list[int]:
        """The numbers of the trials that began and did not end."""
        return [trial.number for trial in self.optuna.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]

    def trial(self, number: int) -> optuna.Trial:
        """A trial that began, to report to."""
        import optuna

        return optuna.Trial(self.optuna, self.frozen(number)._trial_id)

    def frozen(self, number: int) -> optuna.trial.FrozenTrial:
        """What is known of a trial."""
        return self.optuna.get_trials(deepcopy=False)[number]

    def values(self, number: int) -> Values:
        """What a trial says of the settings that are searched."""
        return from_optuna(self.space, self.frozen(number).params)

    def settings_of(self, number: int) -> Settings:
        """A trial's configuration, whose run is in the study's folder and takes one thread.

        Raises:
            SettingsError: where its values cannot be used together.
        """
        shared: Values = {"run.threads": 1, "run.progress_bar": False, "run.control": False}
        run = {"run.folder": str(self.folder), "run.name": f"trial_{number:04}"}
        return with_values(self.settings, shared | run | self.values(number))

    def fail(self, number: int, why: str) -> None:
        """Notes that a trial failed."""
        self.trial(number).set_user_attr("why", why)
        self.optuna.tell(number, state=_state("FAIL"))

    def prune(self, number: int) -> None:
        """Notes that a trial was ended before its time."""
        self.optuna.tell(number, state=_state("PRUNED"))

    def finish(self, number: int, value: float) -> None:
        """Notes what a trial is worth."""
        self.optuna.tell(number, value)


def begin(folder: Path, settings: Settings, space: Space, startup: int, warmup: int) -> Study:
    """Makes the study, or goes on with it; its first trial is the configuration itself, if that is in the space.

    Raises:
        SettingsError: where the study in the folder is one of another configuration or space.
    """
    check_same(folder, settings, space)
    with readable(folder, RuntimeError):  # of another version of Optuna's
        study = _open(folder)
        new = "settings" not in study.user_attrs
        said = {"space": space, "startup": startup, "warmup": warmup, "settings": asdict(settings)}
        own = own_values(space, settings)
        if new and own is not None:
            study.enqueue_trial(to_optuna(own), skip_if_exists=True)
        for name, value in said.items():
            study.set_user_attr(name, value)
    files.write(folder / "space.yaml", yaml.safe_dump(space, sort_keys=False, default_flow_style=None))
    return Study(folder)


def check_same(folder: Path, settings: Settings, space: Space) -> None:
    """Raises SettingsError where a folder holds something else than a study of this configuration and space."""
    if not os.path.isfile(folder / DATABASE):
        if os.path.exists(folder) and not (folder.is_dir() and all(files.left_over(path) for path in folder.iterdir())):
            raise SettingsError(f"{folder} already holds something that is no study; choose another run.name")
        return
    with readable(folder, RuntimeError):  # of another version of Optuna's
        said = _open(folder).user_attrs
        if "settings" not in said:  # killed before it began
            return
        before = settings_from(said["settings"])  # with the defaults of what is newer
    for group, values in asdict(before).items():
        for key, value in values.items():
            now = getattr(getattr(settings, group), key)
            if value != now and not (group == "run" and key in FREE):
                differs = f"{group}.{key} {shown(value)}, got {shown(now)}"
                raise SettingsError(f"{folder}: this study was begun with {differs}; another run.name begins a new one")
    if said["space"] != json.loads(json.dumps(space)):
        names = [name for name in {**said["space"], **space} if said["space"].get(name) != space.get(name)]
        was, now = (shown(of[names[0]]) if names[0] in of else "not at all" for of in (said["space"], space))
        differs = f"{names[0]} {was}, got {now}"
        raise SettingsError(f"{folder}: this study searches {differs}; another run.name begins a new one")


@contextlib.contextmanager
def readable(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Raises SettingsError in the place of what is raised where a database is broken or its disk is full.

    ``others`` are errors that mean it too.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    errors: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *others)
    try:
        yield
    except errors as error:
        raise SettingsError(f"{folder / DATABASE} cannot be used as a study: {error.__cause__ or error}") from error


def _open(folder: Path) -> optuna.Study:
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what is to be said of a trial is said elsewhere
    url = URL.create("sqlite", database=str(folder / DATABASE)).render_as_string()
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE}})
    return optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)


def _sampler(seed: int, number: int, startup: int) -> optuna.samplers.BaseSampler:
    import optuna

    # of its own for each trial: one that a resumed study starts anew with the same seed would draw the same again
    seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)


def _pruner(startup: int, warmup: int) -> optuna.pruners.BasePruner:
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)


def _state(name: str) -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState[name]
