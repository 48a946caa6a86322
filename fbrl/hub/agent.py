"""An agent's folder, read without unpickling, and its weights in a file that holds no pickle."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

AGENTS = ("best.zip", "last.zip")  # the first that there is
REPLAYS = ("replay.gif", "replay.mp4")
WEIGHTS = "model.safetensors"
FILES = ("config.yaml", *AGENTS, WEIGHTS, "README.md", "evaluation.json", "versions.json", *REPLAYS)
MEMBERS = ("data", "policy.pth")  # of an agent's file
RESUME = "resume.pkl"  # what a run is gone on with; a pickle, and large
MOST_BYTES = 1_000_000  # of a text file


def one_line(error: Exception) -> str:
    """An error's message, folded."""
    return " ".join(str(error).split())[:300]


class HubError(ValueError):
    """What cannot be pushed or pulled; the message is one line."""


class Agent(NamedTuple):
    """An agent's folder, read without unpickling."""

    file: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    steps: int  # environment steps that it has learned from


def read_agent(folder: Path) -> Agent:
    """The agent in a folder; raises HubError, which names the file, where it holds none."""
    file = next((folder / name for name in AGENTS if (folder / name).is_file()), None)
    if file is None:
        raise HubError(f"holds neither {' nor '.join(AGENTS)}")
    config = _read_config(folder / "config.yaml")
    try:
        with zipfile.ZipFile(file) as archive:
            if missing := [name for name in MEMBERS if name not in archive.namelist()]:
                raise HubError(f"{file.name}: holds no agent: it has no member {missing[0]}")
            steps = json.loads(archive.read("data"))["num_timesteps"]
            if damaged := archive.testzip():
                raise HubError(f"{file.name}: its member {damaged} is damaged")
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except HubError:
        raise
    except Exception as error:  # whatever a broken file makes its readers raise
        raise HubError(f"{file.name}: holds no agent ({type(error).__name__}: {one_line(error)})") from error
    if not (isinstance(steps, int) and isinstance(weights, dict) and weights):
        raise HubError(f"{file.name}: holds no agent: there are no weights, or no count of steps")
    if not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()):
        raise HubError(f"{file.name}: holds no agent: its weights must be tensors by their names")
    return Agent(file, config, weights, steps)


def _read_config(file: Path) -> dict[str, Any]:
    import yaml  # what the Hub's own library brings

    text = read_text(file)
    if text is None:
        raise HubError(f"{file.name}: no such file, and without the settings an agent cannot be rebuilt")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HubError(f"{file.name}: no YAML: {one_line(error)}") from None
    groups = [config.get(name) for name in ("env", "core")] if isinstance(config, dict) else [None]
    if not all(isinstance(group, dict) for group in groups) or not isinstance(config["env"].get("id"), str):
        raise HubError(f"{file.name}: must hold the groups env, with an id, and core")
    found: dict[str, Any] = config
    return found


def read_text(file: Path) -> str | None:
    """What a file says; None where there is none."""
    if not file.is_file():
        return None
    if file.stat().st_size > MOST_BYTES:
        raise HubError(f"{file.name}: must be at most {MOST_BYTES:,} bytes, got {file.stat().st_size:,}")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HubError(f"{file.name}: cannot be read: {error}") from None


def as_safetensors(weights: dict[str, Tensor]) -> bytes:
    """The weights as a safetensors file; of names for one and the same tensor the first, the others as its metadata.

    So does ``safetensors.torch.save_model``, whose ``load_model`` puts them back.
    """
    from safetensors.torch import save

    first: dict[Any, str] = {}
    kept, same = {}, {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape, weight.stride()) if weight.numel() else name
        if place in first:
            same[name] = first[place]
        else:
            first[place] = name
            kept[name] = weight.clone(memory_format=torch.contiguous_format)
    return save(kept, metadata={"format": "pt"} | same)


def check_same_weights(agent: Agent, file: Path) -> None:
    """Raises HubError where the second file of weights says something else than the agent's."""
    if not file.is_file():
        return
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        second = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise HubError(f"{file.name}: no safetensors file ({one_line(error)})") from None
    for name, weight in second.items():
        if name not in agent.weights or not torch.equal(weight, agent.weights[name]):
            raise HubError(f"{file.name}: holds other weights than {agent.file.name}: {name!r}")
