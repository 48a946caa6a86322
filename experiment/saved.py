"""Saved agents, rebuilt from config.yaml, their sizes and their weights: nothing that their file holds is run.

A file of Stable-Baselines3 holds its arguments as pickles, and unpickling runs whatever they say. Here they are read
without importing or calling what they name: numbers are taken as they are, and classes only where they are networks
of this library, of Stable-Baselines3 or of torch. Spaces are those of config.yaml's task, and the weights are read by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pkgutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from experiment import unpickled
from experiment.agents import check_core, find_agent
from experiment.environments import closed_after, evaluation_envs
from experiment.masking import maskable, takes_masks
from experiment.settings import Settings, SettingsError
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.evaluation import AgentError, load_agent
from fbrl.normalizing import read_statistics, restore, take_raw
from fbrl.policy import MemoryPolicy
from fbrl.ppo import MemoryPPO

KNOWN = ("fbrl.", "stable_baselines3.common.", "torch.nn.", "torch.optim.")
TRUST = "with --trust the file's own code is run: look first at where it comes from"


class Saved(NamedTuple):
    """What a saved agent's file says without being unpickled."""

    weights: dict[str, Tensor]
    num_timesteps: int
    policy: type[nn.Module]
    policy_kwargs: dict[str, Any]
    use_sde: bool


def read_saved(path: Path, device: str = "cpu") -> Saved:
    """Reads a saved agent; raises AgentError where the file is none, or its network has classes of its own."""
    with _no_agent(path), zipfile.ZipFile(path) as file:
        said = json.loads(file.read("data"))
        if "clip_range" not in said:
            raise AgentError("holds an agent of another algorithm, not PPO")
        weights = torch.load(io.BytesIO(file.read("policy.pth")), map_location=device, weights_only=True)
        policy, policy_kwargs = (_known(_value(said[name])) for name in ("policy_class", "policy_kwargs"))
        if issubclass(policy, MemoryPolicy) and "normalize_values" not in said:  # see MemoryPPO._setup_model
            policy_kwargs = {"net_arch": []} | policy_kwargs
        return Saved(weights, int(said["num_timesteps"]), policy, policy_kwargs, bool(said["use_sde"]))


def _value(entry: Any) -> Any:
    """An entry of the file's JSON: what does not fit JSON is a pickle in base64."""
    is_pickle = isinstance(entry, dict) and ":serialized:" in entry
    return unpickled.read(base64.b64decode(entry[":serialized:"])) if is_pickle else entry


def _known(value: Any) -> Any:
    """The value with the networks that it names; raises AgentError where it names, or would call, anything else."""
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_known, value))
    named = value if isinstance(value, type) else type(value)
    if not issubclass(named, unpickled.Named):
        return value
    found = pkgutil.resolve_name(named.name) if named is value and named.name.startswith(KNOWN) else None
    if isinstance(found, type) and issubclass(found, nn.Module | torch.optim.Optimizer):
        return found
    raise AgentError(f"made with {named.describe(value)}, which is rebuilt by the file's own code only; {TRUST}")


@contextlib.contextmanager
def _no_agent(path: Path) -> Iterator[None]:
    try:
        yield
    except AgentError as error:
        raise AgentError(f"{path}: {error}") from None
    except Exception as error:  # whatever a broken file makes its readers raise
        raise AgentError(f"{path}: holds no agent that can be loaded ({type(error).__name__}: {error})") from error


def load(
    checkpoint: Path, settings: Settings, device: str = "auto", *, trust: bool = False, env: VecEnv | None = None
) -> PPO:
    """The agent in a file, for playing.

    Args:
        checkpoint: the .zip file.
        settings: what config.yaml beside it says.
        device: where the agent is to be.
        trust: unpickle the file, which runs the code that it holds. For agents with classes of their own.
        env: environments of the settings' task, where there are any; otherwise one is made and closed.

    Raises:
        AgentError: where the file holds no agent, or one with classes of its own.
        SettingsError: where the settings do not describe the agent.
    """
    if trust:
        return load_agent(checkpoint, device)
    saved = read_saved(checkpoint)
    if not issubclass(saved.policy, MemoryPolicy):
        check_core(checkpoint, None, {}, settings)
    else:
        core, sizes = (saved.policy_kwargs.get(name) for name in ("core_class", "core_kwargs"))
        check_core(checkpoint, core or FastFeedbackTransformer, sizes or {}, settings)
    with contextlib.ExitStack() as stack:
        if env is None:
            env = stack.enter_context(closed_after(evaluation_envs(settings.env, settings.run.seed, n_envs=1)))
        agent = _make(saved, env, device)
    try:
        agent.policy.load_state_dict(saved.weights)
    except RuntimeError as error:  # the first line only says that there are others
        what = str(error).splitlines()[1].strip()
        raise SettingsError(f"{checkpoint}: its weights do not fit what config.yaml describes: {what}") from None
    agent.num_timesteps = saved.num_timesteps
    return take_raw(agent, read_statistics(checkpoint))


def _make(saved: Saved, env: VecEnv, device: str) -> PPO:
    """An agent with that policy, for playing: its rollouts are as small as they can be."""
    kwargs: dict[str, Any] = {"policy_kwargs": saved.policy_kwargs, "use_sde": saved.use_sde, "device": device}
    if issubclass(saved.policy, MemoryPolicy):
        algorithm = maskable() if takes_masks(saved.policy) else MemoryPPO
        agent: PPO = algorithm(saved.policy, env, n_steps=2, batch_size=2, seq_len=2, **kwargs)
    else:
        agent = PPO(saved.policy, env, n_steps=2, batch_size=2, **kwargs)  # type: ignore[arg-type]
    agent.env = None
    return agent


def start_from(model: PPO, settings: Settings) -> None:
    """Gives a new agent the weights of ``run.start_from``, where that is set; of a task with the same spaces.

    Its optimiser and its counters stay those of a new agent.

    Raises:
        AgentError: where there is no agent.
        SettingsError: where its core or its spaces are others.
    """
    if settings.run.start_from is None:
        return
    try:
        checkpoint, theirs = find_agent(settings.run.start_from)
    except AgentError as error:
        raise AgentError(f"run.start_from: {error}") from None
    where = f"run.start_from {checkpoint}"
    for key, value in asdict(settings.core).items():
        if key != "form" and (made_with := getattr(theirs.core, key)) != value:
            raise SettingsError(f"{where}: core.{key} must be {made_with}, as of that agent, got {value}")
    if (made_with := theirs.env.normalize_observations) != settings.env.normalize_observations:  # other units
        wanted = str(made_with).lower()
        raise SettingsError(f"{where}: env.normalize_observations must be {wanted}, as of that agent")
    saved, mine = read_saved(checkpoint).weights, model.policy.state_dict()
    others = f"{where}: the agent is of other observations, actions or layers"
    for name in sorted(saved.keys() ^ mine.keys()):
        raise SettingsError(f"{others}: only {'it' if name in saved else 'the new agent'} has {name}")
    for name, weight in saved.items():
        if weight.shape != mine[name].shape:
            shapes = f"{name} is {tuple(weight.shape)} there and {tuple(mine[name].shape)} here"
            raise SettingsError(f"{others}: {shapes}")
    if (statistics := read_statistics(checkpoint)) is not None and (env := model.get_vec_normalize_env()) is not None:
        restore(env, statistics)
    model.policy.load_state_dict(saved)
