"""A suite: which cores are compared on which tasks, with which seeds, for how many steps. One YAML file says it.

    about: one line, for the tables
    tasks:
      MemoryS9-View3:                            # any name
        config: configs/memory_s9_view3.yaml     # what the settings start from
        ppo: {timesteps: 2000000}                # what differs, in the groups of train_agent.py
    cores:
      feedback: {}                               # a name of core.name, or any name beside core: {name: ...}
      lstm: {core: {d_model: 84}}
    seeds: [0, 1, 2, 3, 4]

All cores of a task have as many parameters, within 10 % of the smallest, or the suite is refused. ``parameters: free``
lifts that, for suites that vary one core.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import ROOT, parameters
from experiment.agents import make_model
from experiment.environments import evaluation_envs
from experiment.parsing import load_settings, one_line, settings_from
from experiment.settings import GROUPS, Settings, SettingsError

SUITES = ROOT / "benchmarks" / "suites"
RESULTS = ROOT / "benchmarks" / "results" / "compare"
RUNS = Path("runs") / "compare"
KEYS = {"about", "tasks", "cores", "seeds", "parameters"}
NAME = r"[A-Za-z0-9_.-]+"
TOLERANCE = 0.10  # of the number of parameters, between the cores of a task


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a task, a core, a seed, and all settings that follow."""

    suite: str
    task: str
    core: str
    seed: int
    settings: Settings
    result_file: Path

    @property
    def name(self) -> str:
        """What its folder and its result are called."""
        return f"{self.task}_{self.core}_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it trains."""
        return Path(self.settings.run.folder) / self.name


@dataclass(frozen=True)
class Suite:
    """What a suite file says."""

    name: str
    about: str
    tasks: tuple[str, ...]
    cores: tuple[str, ...]
    runs: tuple[Run, ...]  # seeds outermost, so that a suite that is not finished has as many of each
    equal_parameters: bool

    @cached_property
    def parameters(self) -> dict[tuple[str, str], int]:
        """Of each (task, core), the number of trained parameters of the whole agent."""
        return {
            (run.task, run.core): count_parameters(run.settings) for run in self.runs if run.seed == self.runs[0].seed
        }

    def check_parameters(self) -> None:
        """Raises SettingsError where an agent cannot be made, or the largest of a task is 10 % above the smallest."""
        sizes = self.parameters  # makes every agent, whether their sizes are to be equal or not
        for task in self.tasks if self.equal_parameters else ():
            by_size = sorted(self.cores, key=lambda core: sizes[task, core])
            least, most = sizes[task, by_size[0]], sizes[task, by_size[-1]]
            if most > least * (1 + TOLERANCE):
                raise SettingsError(
                    f"{self.name}: on {task}, all cores must have as many parameters within 10 %, "
                    f"got {least:,} of {by_size[0]} and {most:,} of {by_size[-1]}"
                )


def identity(settings: Settings) -> dict[str, Any]:
    """The settings that decide a result: all but those of the folder, the device and what is saved or shown."""
    groups = asdict(settings)
    kept = ("seed", "start_from", "eval_every", "eval_episodes", "eval_max_steps", "eval_deterministic")
    groups["run"] = {key: groups["run"][key] for key in (*kept, "stop_at_success")}
    return groups


def count_parameters(settings: Settings) -> int:
    """The trained parameters of the agent that these settings make."""
    env = evaluation_envs(settings.env, seed=0, n_envs=1)
    ppo = replace(settings.ppo, batch_size=settings.ppo.n_steps)  # of one environment: a rollout is no larger
    model = make_model(replace(settings, ppo=ppo), env)
    env.close()
    return parameters(model.policy)


def load_suite(path: Path, runs: Path = RUNS, results: Path = RESULTS) -> Suite:
    """The suite in a file, whose runs and results go into these folders.

    Raises:
        SettingsError: where the file is missing or holds something else; the message names the file and the key.
    """
    if not os.path.isfile(path):
        known = ", ".join(sorted(str(file.relative_to(ROOT)) for file in SUITES.glob("*.yaml")))
        raise SettingsError(f"{path}: no such file; the suites are {known}")
    try:
        said = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {one_line(error)}") from None
    _check_keys(path, said)
    name, tasks, cores = path.stem, tuple(said["tasks"]), tuple(said["cores"])
    all_runs = []
    for seed, task, core in itertools.product(said["seeds"], tasks, cores):
        settings = _settings(path, said, task, core, seed, runs)
        all_runs.append(Run(name, task, core, seed, settings, results / name / f"{settings.run.name}.json"))
    return Suite(name, said["about"], tasks, cores, tuple(all_runs), said.get("parameters", "equal") == "equal")


def _check_keys(path: Path, said: Any) -> None:
    if not isinstance(said, dict) or set(said) | {"parameters"} != KEYS:
        got = ", ".join(map(str, said)) if isinstance(said, dict) else type(said).__name__
        raise SettingsError(f"{path}: must hold about, tasks, cores and seeds, and parameters or not; got {got}")
    for key in ("tasks", "cores"):
        names = said[key] if isinstance(said[key], dict) else {}
        if not names or not all(re.fullmatch(NAME, str(name)) for name in names):
            raise SettingsError(f"{path}: {key} must map names of letters, digits, _, . and - to settings, got {names}")
        for name, differs in names.items():
            allowed = set(GROUPS) - {"run"} | ({"config", "run"} if key == "tasks" else set())
            if not isinstance(differs, dict) or not set(differs) <= allowed:
                groups = ", ".join(sorted(allowed))
                raise SettingsError(f"{path}: {key}.{name} must hold any of {groups}, got {differs}")
            for group, values in differs.items():
                if not isinstance(values, str if group == "config" else dict):
                    kind = "a file" if group == "config" else "a mapping of settings"
                    raise SettingsError(f"{path}: {key}.{name}.{group} must be {kind}, got {values}")
    seeds = said["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise SettingsError(f"{path}: seeds must be a list of whole numbers from 0 on, got {seeds}")
    names = [f"{task}_{core}_{seed}" for task, core, seed in itertools.product(said["tasks"], said["cores"], seeds)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"{path}: every run must have a name of its own, got {', '.join(twice)} twice")
    if said.get("parameters", "equal") not in ("equal", "free"):
        raise SettingsError(f"{path}: parameters must be equal or free, got {said['parameters']}")


def _settings(path: Path, said: dict[str, Any], task: str, core: str, seed: int, runs: Path) -> Settings:
    on_task, with_core = said["tasks"][task], said["cores"][core]
    merged: dict[str, Any] = {group: {} for group in GROUPS}
    config = ROOT / on_task.get("config", "")
    if "config" in on_task:
        try:
            _merge(merged, asdict(load_settings(config)))
        except SettingsError as error:
            raise SettingsError(f"{path}: tasks.{task}.config: {error}") from None
    _merge(merged, {key: group for key, group in on_task.items() if key != "config"})
    _merge(merged, {"core": {"name": core}} if "name" not in with_core.get("core", {}) else {})
    _merge(merged, with_core)
    run = {"seed": seed, "name": f"{task}_{core}_{seed}", "folder": str(runs / path.stem)}
    _merge(merged, {"run": run | {"threads": 1, "device": "cpu", "progress_bar": False, "control": False}})
    try:
        return settings_from(merged)
    except SettingsError as error:
        raise SettingsError(f"{path}: {task} with {core}: {error}") from None


def _merge(into: dict[str, Any], groups: dict[str, Any]) -> None:
    """Sets what ``groups`` say; ``into`` has every group, and a group's values are taken as they are."""
    for group, values in groups.items():
        into.setdefault(group, {}).update(values)
