"""Run folders: what a training run leaves behind.

A run folder holds ``config.yaml`` (all settings), ``versions.json``, TensorBoard events, ``evaluations.jsonl`` (a line
for each evaluation), ``best.zip`` (the agent of the best evaluation) and ``last.zip`` (the last checkpoint: an agent,
and what going on from there takes); in the end ``finished``, which is empty.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from experiment import files
from experiment.distributed import size
from experiment.rules import FORBIDDEN
from experiment.settings import Settings, SettingsError

PACKAGES = ("fbrl", "torch", "stable-baselines3", "gymnasium", "minigrid", "envpool", "numpy")


def run_path(settings: Settings) -> Path:
    """The folder of a run, whatever is there."""
    task = FORBIDDEN.sub("_", settings.env.id.split("/")[-1])
    name = settings.run.name or f"{task}_{settings.core.name}_{settings.run.seed}"
    return Path(settings.run.folder) / name


def run_folder(settings: Settings) -> Path:
    """Where a new run goes.

    Raises:
        SettingsError: where there already is something.
    """
    folder = run_path(settings)
    if not is_free(folder):
        ways = ["choose another run.name", "delete the folder"]
        if (folder / "finished").exists():
            ways.append(f"play it with evaluate_agent.py {folder}")
        elif (folder / "last.zip").is_file():
            ways.append(f"--resume {folder}")
        raise SettingsError(f"{folder} already holds a run; {', '.join(ways[:-1])}, or {ways[-1]}")
    return folder


def is_free(folder: Path) -> bool:
    """Whether a run can start in a folder: there is none, or nothing in it, or a run that ended before it began."""
    if not os.path.isdir(folder):  # nor where there can be none, which ``files.held`` says
        return not os.path.exists(folder)
    return not _names(folder) or never_began(folder)


def never_began(folder: Path) -> bool:
    """Whether a run's process ended before the first checkpoint, which is written before the first step."""
    return {"versions.json"} <= _names(folder) <= {"versions.json", "config.yaml"}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not files.left_over(path)}


def create_run(settings: Settings, folder: Path | None = None) -> Path:
    """Makes the folder of a new run and writes what it was started with.

    Args:
        settings: the run's.
        folder: where a run never began; None means where ``run_folder`` says.

    Raises:
        SettingsError: as ``run_folder``.
        FileError: where it cannot be written.
    """
    folder = run_folder(settings) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    settings.save(folder / "config.yaml")
    return folder


def note_resumed(folder: Path, timesteps: int) -> None:
    """Adds to a run's ``versions.json`` where it is taken up again, and in what it then differs from its start."""
    file, now = folder / "versions.json", versions()
    try:
        start = json.loads(file.read_text())
    except (OSError, ValueError):  # deleted, or cut off while an earlier version wrote it
        start = {}
    resumed = {"timesteps": timesteps} | {key: value for key, value in now.items() if start.get(key) != value}
    start["resumed"] = [*start.get("resumed", []), resumed]
    files.write(file, json.dumps(start, indent=2) + "\n")


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
