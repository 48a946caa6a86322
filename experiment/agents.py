"""The agent of an experiment: made from settings, found on disk, held against what its settings say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from experiment.distributed import size
from experiment.environments import closed_after, evaluation_envs
from experiment.masking import algorithm, check_masking, takes_masks
from experiment.parsing import load_settings
from experiment.settings import PPOSettings, Settings, SettingsError
from experiment.sizes import SIZES, check_memory
from fbrl.cores.core import Core
from fbrl.cores.names import CORES, core_kwargs
from fbrl.encoders import MiniGridEncoder, is_minigrid_space
from fbrl.evaluation import agent_file
from fbrl.policy import MemoryPolicy
from fbrl.spaces import check_spaces

ACTIVATIONS: dict[str, type[nn.Module]] = {
    **{"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}
}


def make_model(settings: Settings, env: VecEnv) -> PPO:
    """The agent: PPO with the core of ``core.name``, or Stable-Baselines3's own PPO with the same encoder."""
    ppo, core, space = settings.ppo, settings.core, env.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    policy_kwargs: dict[str, Any] = {}
    if ppo.net_arch:
        policy_kwargs |= {"net_arch": list(ppo.net_arch), "activation_fn": ACTIVATIONS[ppo.activation]}
    if not ppo.ortho_init:
        policy_kwargs["ortho_init"] = False
    if ppo.log_std_init != PPOSettings.log_std_init:
        policy_kwargs["log_std_init"] = ppo.log_std_init
    if is_minigrid_space(space):
        policy_kwargs["features_extractor_class"] = MiniGridEncoder
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": core.d_model}
    clip_end = ppo.clip_range_end
    kwargs: dict[str, Any] = {
        "learning_rate": LinearSchedule(ppo.learning_rate, ppo.learning_rate_end, end_fraction=1.0),
        "n_steps": ppo.n_steps,
        "batch_size": ppo.batch_size,
        "n_epochs": ppo.n_epochs,
        "gamma": ppo.gamma,
        "gae_lambda": ppo.gae_lambda,
        "clip_range": ppo.clip_range
        if clip_end is None
        else LinearSchedule(ppo.clip_range, clip_end, end_fraction=1.0),
        "ent_coef": ppo.ent_coef,
        "vf_coef": ppo.vf_coef,
        "max_grad_norm": ppo.max_grad_norm,
        "target_kl": ppo.target_kl,
        "use_sde": ppo.use_sde,
        "sde_sample_freq": ppo.sde_sample_freq,
        "seed": settings.run.seed,
        "device": settings.run.device,
    }
    if ppo.use_sde and not isinstance(env.action_space, spaces.Box):
        raise SettingsError(f"ppo.use_sde must be false for actions that are not in a Box, got {env.action_space}")
    check_masking(settings, env, size())
    check_memory(settings, env)
    if core.name == "none" or settings.run.control:  # refused now and not after the training
        _check_from_zero("core.name: none" if core.name == "none" else "run.control: true", env)
    if core.name == "none":
        return _made(PPO, policy, env, policy_kwargs=policy_kwargs, **kwargs)
    policy_kwargs.setdefault("net_arch", [])
    sizes = dataclasses.asdict(core)
    policy_kwargs |= {"core_class": CORES[core.name][0], "core_kwargs": core_kwargs(core.name, sizes)}
    kwargs |= {"seq_len": ppo.seq_len, "passes": ppo.passes}
    return _made(algorithm(settings), policy, env, policy_kwargs=policy_kwargs, **kwargs)


def _check_from_zero(setting: str, env: VecEnv) -> None:
    """Raises SettingsError where a space does not start at 0, which Stable-Baselines3's own PPO passes over."""
    try:
        check_spaces(env, from_zero=True)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from error


def _made(kind: type[PPO], *args: Any, **kwargs: Any) -> PPO:
    """The agent; raises SettingsError where sizes do not fit each other, or the memory of this machine."""
    try:
        return kind(*args, **kwargs)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not re.search("alloc|out of memory", str(error)):
            raise
        raise SettingsError(
            f"the agent and its rollouts do not fit into memory; smaller ones of {SIZES} make it"
        ) from error


def find_agent(given: str) -> tuple[Path, Settings]:
    """The checkpoint, and the settings it was trained with; raises AgentError or SettingsError where one is missing."""
    checkpoint = agent_file(given)
    config = checkpoint.parent / "config.yaml"
    if not config.is_file():
        raise SettingsError(f"{config}: no such file, and without the settings an agent cannot be rebuilt")
    return checkpoint, load_settings(config)


def check_agent(path: Path, agent: PPO, settings: Settings, env: VecEnv | None = None) -> None:
    """Raises SettingsError where the agent is not the one that config.yaml describes, or cannot play the task.

    The task is that of ``env``, or of one that is made and closed again.
    """
    if isinstance(agent.policy, MemoryPolicy):
        check_core(path, agent.policy.core_class, agent.policy.core_kwargs, settings)
    else:
        check_core(path, None, {}, settings)
    _check_same_masks(path, agent.policy, settings)
    if env is None:
        with closed_after(evaluation_envs(settings.env, 0, 1)) as made:
            _check_spaces(path, agent, settings, made)
    else:
        _check_spaces(path, agent, settings, env)


def _check_same_masks(path: Path, policy: Any, settings: Settings) -> None:
    """Raises SettingsError where a policy takes action masks and config.yaml has none, or the other way round."""
    if takes_masks(policy) != settings.env.action_masks:
        found = "was trained with" if takes_masks(policy) else "does not take"
        said = str(settings.env.action_masks).lower()
        raise SettingsError(f"{path}: the agent {found} action masks, but env.action_masks is {said}")


def _check_spaces(path: Path, agent: PPO, settings: Settings, env: VecEnv) -> None:
    check_masking(settings, env, size())
    wrapped = agent._wrap_env(env)  # turns pictures as Stable-Baselines3 does before training
    for name, saved, given in (
        ("observations", agent.observation_space, wrapped.observation_space),
        ("actions", agent.action_space, wrapped.action_space),
    ):
        if saved != given:
            what = f"the agent's {name} are {describe(saved)}"
            raise SettingsError(f"{path}: {what}, but those of {settings.env.id} are {describe(given)}")


def check_core(path: Path, core_class: type[Core] | None, sizes: Mapping[str, Any], settings: Settings) -> None:
    """Raises SettingsError where an agent has another core than config.yaml says; ``None`` for one without memory."""
    config = path.with_name("config.yaml")
    if (core_class is not None) != (settings.core.name != "none"):
        found = "no memory" if core_class is None else "a memory"
        raise SettingsError(f"{path}: the agent has {found}, but core.name is {settings.core.name} in {config}")
    if core_class is None:
        return
    described, options = CORES[settings.core.name]
    made_with = {name: value for name, value in sizes.items() if name in options}
    if not issubclass(core_class, described) or made_with != options:
        found = f"{core_class.__name__} {made_with or ''}".strip()
        raise SettingsError(f"{path}: the agent's core is {found}, but core.name is {settings.core.name} in {config}")
    asked = dataclasses.asdict(settings.core)
    for name, found_size in sizes.items():
        if name in asked and asked[name] != found_size:
            raise SettingsError(f"{path}: core.{name} is {found_size}, but {asked[name]} in {config}")


def describe(space: spaces.Space[Any] | None) -> str:
    """A space in a few words: kind, and shape or size."""
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in space.items()) + "}"
    return f"Box{space.shape} up to {space.high.max():g}" if isinstance(space, spaces.Box) else str(space)
