"""What is kept of a run that a suite names: one JSON file, which is never made twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.learning.suite import Run, Suite, identity
from benchmarks.report import parameters
from experiment.environments import evaluation_envs
from experiment.parsing import load_settings
from experiment.playing import exhaustive
from experiment.settings import Settings, SettingsError
from fbrl.evaluation import Summary, load_agent, play, summarise

EPISODES = 500  # of the final evaluation, where a task's start states cannot be listed
EVALUATION_SEED = 3_000_000  # apart from the levels of training and of its evaluations
TARGET = 0.95


def read_result(run: Run) -> dict[str, Any] | None:
    """The result, or None where there is none.

    Raises:
        SettingsError: where it was made with other settings than the suite's.
    """
    if not run.result_file.is_file():
        return None
    result: dict[str, Any] = json.loads(run.result_file.read_text())
    if differs := differences(result["settings"], identity(run.settings)):
        raise SettingsError(
            f"{run.result_file}: made with other settings than {run.suite} says ({differs}); move it away"
        )
    return result


def differences(made_with: dict[str, Any], asked: dict[str, Any]) -> str:
    """The settings of ``asked`` that a result was made without, as text; empty where there is none."""
    defaults = identity(Settings())  # an older result lacks newer settings
    found = [
        f"{group}.{key} {made_with[group].get(key, defaults[group][key])}, not {value}"
        for group, values in asked.items()
        for key, value in values.items()
        if made_with[group].get(key, defaults[group][key]) != value
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


def check_folder(run: Run, folder: Path) -> None:
    """Raises SettingsError where a folder holds a run that was trained with other settings."""
    # no load_settings: its parser changes the working directory for a moment, which all threads share
    if found := differences(yaml.safe_load((folder / "config.yaml").read_text()), identity(run.settings)):
        raise SettingsError(f"{folder}: made with other settings than {run.name} ({found}); move it away")


def make_result(run: Run, folder: Path) -> dict[str, Any]:
    """What a run's folder says, and how well the agent of its best evaluation does.

    Raises:
        SettingsError: where the folder holds a run that was trained with other settings.
    """
    check_folder(run, folder)
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
        "parameters": parameters(agent.policy),
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
        twins = [run for run in suite.runs if not differences(identity(settings), identity(run.settings))]
        if not twins:
            raise SettingsError(f"{folder}: no run of {suite.name} has its settings")
        old, new = read_result(twins[0]), make_result(twins[0], folder)
        if old is not None and (old["finished"] or old["steps"] >= new["steps"]):
            held = "is finished" if old["finished"] else f"has {old['steps']:,} steps already, this {new['steps']:,}"
            raise SettingsError(f"{folder}: {twins[0].result_file} {held}")
        keep(twins[0], new)
    for run in [] if folders else suite.runs:
        old = read_result(run)
        if (old is None or not old["finished"]) and (run.folder / "best.zip").is_file():
            keep(run, make_result(run, run.folder))


def take_over(run: Run) -> bool:
    """Writes down the finished result of another suite's run that has the same settings, if there is one."""
    for file in sorted(run.result_file.parents[1].glob("*/*.json")):
        result = json.loads(file.read_text())
        if result["finished"] and not differences(result["settings"], identity(run.settings)):
            names = {"suite": run.suite, "task": run.task, "core": run.core, "seed": run.seed}
            keep(run, result | names | {"taken_from": result.get("taken_from") or result["suite"]})
            return True
    return False


def keep(run: Run, result: dict[str, Any]) -> None:
    """Writes a result and prints it; one that is finished stays as it is."""
    old = read_result(run)
    if old is None or not old["finished"]:
        write_result(run, result)
    print(as_line(result), flush=True)
