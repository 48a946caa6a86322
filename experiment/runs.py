"""Run folders: what a training run leaves behind, and how it is taken up again exactly where it was.

A run folder holds ``config.yaml`` (all settings), ``versions.json``, TensorBoard events, ``evaluations.jsonl`` (a line
for each evaluation), ``best.zip`` (the agent of the best evaluation), ``last.zip`` (the agent of the last checkpoint)
and ``resume.pkl`` (everything else that going on from there needs, of all processes).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import platform
import random
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_wrapper

from experiment.distributed import gather, of_first, rank, say, share, size
from experiment.settings import Settings, SettingsError
from fbrl.novelty import EpisodicNovelty
from fbrl.ppo import MemoryPPO

PACKAGES = ("fbrl", "torch", "stable-baselines3", "gymnasium", "minigrid", "envpool", "numpy")
NOT_SAVED = ["_last_obs", "_last_episode_starts", "tensorboard_log"]  # what an agent on disk does without
CARRIED = ("_last_obs", "_last_episode_starts")  # where the environments stand
MOVED = {"envs.symbolic": "fbrl.symbolic"}  # modules whose classes stand in the environments of older checkpoints


class _Unpickler(pickle.Unpickler):
    """Finds classes where they are now."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(MOVED.get(module, module), name)


def _unpickle(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


def run_folder(settings: Settings) -> Path:
    """Where a new run goes.

    Raises:
        SettingsError: where there already is something.
    """
    name = settings.run.name or f"{settings.env.id.split('/')[-1]}_{settings.core.name}_{settings.run.seed}"
    folder = Path(settings.run.folder) / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        way = f"play it with evaluate_agent.py {folder}" if (folder / "finished").exists() else f"--resume {folder}"
        raise SettingsError(f"{folder} already holds a run; choose another run.name, delete the folder, or {way}")
    return folder


def create_run(settings: Settings) -> Path:
    """Makes the folder of a new run and writes what it was started with; raises SettingsError as ``run_folder``."""
    folder = run_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder / "config.yaml")
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
    return folder


def note_resumed(folder: Path, timesteps: int) -> None:
    """Adds to a run's ``versions.json`` where it is taken up again, and in what it then differs from its start."""
    file = folder / "versions.json"
    start, now = json.loads(file.read_text()), versions()
    resumed = {"timesteps": timesteps} | {key: value for key, value in now.items() if start.get(key) != value}
    start["resumed"] = [*start.get("resumed", []), resumed]
    file.write_text(json.dumps(start, indent=2) + "\n")


def versions() -> dict[str, str | int | None]:
    """The versions of what a result depends on, the git commit (with "+" where files were changed), the machine."""
    found: dict[str, str | int | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {
        "commit": _git_commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": size(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def save_checkpoint(model: PPO, folder: Path, settings: Settings) -> None:
    """Replaces the run's checkpoint; at every moment the folder holds a whole one.

    To be called between two updates, and in all processes: a rollout that is under way is not kept. The first process
    writes what all of them hold.

    Raises:
        FloatingPointError: where a weight is not finite; the checkpoint before stays.
    """
    if not all(weight.isfinite().all() for weight in model.policy.parameters()):
        raise FloatingPointError(f"the weights are not finite after {model.num_timesteps} steps; nothing was saved")
    memory = getattr(model, "_last_state", None)
    state = {
        "settings": asdict(settings),
        "num_timesteps": model.num_timesteps,
        "env": _pickle_or_none(model.env),
        **{name: getattr(model, name) for name in CARRIED},
        "memory": None if memory is None else tuple(part.cpu().clone() for part in memory),
        "random": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
    }
    states = gather(state)
    if rank() > 0:
        return
    model.save(folder / "last.tmp.zip", exclude=NOT_SAVED)
    (folder / "resume.tmp.pkl").write_bytes(cloudpickle.dumps(states[0] | {"others": states[1:]}))
    # should the process die between the two, the steps differ and `load_checkpoint` starts new episodes
    os.replace(folder / "last.tmp.zip", folder / "last.zip")
    os.replace(folder / "resume.tmp.pkl", folder / "resume.pkl")


def _check_unchanged(folder: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises SettingsError where config.yaml is not what made the checkpoint; ``run`` and the length may differ."""
    defaults = asdict(Settings())
    for group in ("env", "core", "ppo"):
        for key, value in given[group].items():
            made_with = saved[group].get(key, defaults[group][key])  # an older checkpoint lacks newer settings
            if made_with != value and (group, key) != ("ppo", "timesteps"):
                where = f"{group}.{key} in {folder / 'config.yaml'}"
                raise SettingsError(f"{where} must be {made_with}, which the checkpoint was made with, got {value}")


def _pickle_or_none(env: VecEnv | None) -> bytes | None:
    """The environments with everything in them, or None where they cannot be pickled (an open window, a simulator)."""
    try:
        return cloudpickle.dumps(env)  # type: ignore[no-any-return]
    except Exception:  # whatever an environment's attributes raise
        return None


def _read_checkpoint(folder: Path, settings: Settings) -> tuple[bytes, list[dict[str, Any]]]:
    """The saved agent, and what each of the processes held beside it; raises as ``load_checkpoint``."""
    for name in ("last.zip", "resume.pkl"):
        if not (folder / name).is_file():
            raise SettingsError(f"{folder} holds no checkpoint to resume: {name} is missing")
    with _readable(folder):
        state = _unpickle((folder / "resume.pkl").read_bytes())
        _check_unchanged(folder, state["settings"], asdict(settings))
        # a checkpoint of an earlier version has no others
        return (folder / "last.zip").read_bytes(), [state, *state.get("others", [])]


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:  # unpickling raises whatever a broken file makes it raise
        raise SettingsError(f"{folder}: the checkpoint cannot be read ({type(error).__name__}: {error})") from error


def load_checkpoint(folder: Path, settings: Settings, env: VecEnv) -> PPO:
    """The model of a run's last checkpoint, with its optimiser, counters, schedules, environments and random states.

    Learning goes on as if it had never stopped, bit for bit, where the environments can be pickled and the processes
    are as many as before. Otherwise it goes on in ``env`` with new episodes.

    Raises:
        SettingsError: where there is no checkpoint, or one that other settings made.
    """
    agent, states = of_first(partial(_read_checkpoint, folder, settings))
    as_before, mine = len(states) == size(), share(settings)
    if not as_before:
        say(f"{folder}: saved by {len(states)} processes, not {size()}; goes on with new episodes and random numbers")
    state = states[rank()] if as_before else states[0] | {"env": None}
    algorithm = PPO if settings.core.name == "none" else MemoryPPO
    with _readable(folder):
        saved_env = _unpickle(state["env"]) if state["env"] is not None else None
        model = algorithm.load(
            io.BytesIO(agent), env=saved_env or env, device=mine.run.device, custom_objects={"seed": mine.run.seed}
        )
    model.batch_size = mine.ppo.batch_size  # the file holds the first process's share, as it does of the seed
    if saved_env is not None and state["num_timesteps"] == model.num_timesteps:
        for name in CARRIED:
            setattr(model, name, state[name])
        if state["memory"] is not None:
            model._last_state = tuple(part.to(model.device) for part in state["memory"])  # type: ignore[attr-defined]
    elif model.env is not None:
        model.env.seed(mine.run.seed + model.num_timesteps)  # new episodes, and not those of the run's start again
        if (novelty := unwrap_vec_wrapper(model.env, EpisodicNovelty)) is not None:
            novelty.steps_done = model.num_timesteps // size()
    if as_before:
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
    return model
