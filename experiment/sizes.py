"""Whether an agent and its rollouts fit into this machine's memory, reckoned before they are made.

An operating system grants more memory than there is, and ends the process that writes to it.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from experiment.settings import Settings, SettingsError
from fbrl.cores.names import CORES, core_kwargs
from fbrl.spaces import parts_of

SIZES = "core.d_model, core.window, core.n_layers, ppo.n_steps, env.n_envs"
TRAINED = 4  # a parameter, its gradient and Adam's two moments
NUMBERS = 28  # bytes of a step besides: an action, reward, return, advantage, value, log-probability, episode start
GIB = 2**30


def check_memory(settings: Settings, env: VecEnv) -> None:
    """Raises SettingsError where the agent and a rollout need more memory than this machine is known to have."""
    has, needs = memory_of_machine(), least_memory(settings, env)
    if has is not None and needs > has:
        raise SettingsError(
            f"the agent and its rollouts do not fit into memory: they take {needs / GIB:,.0f} GiB or more, and this "
            f"machine has {has / GIB:,.0f}; smaller ones of {SIZES} make it"
        )


def memory_of_machine() -> int | None:
    """Bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def least_memory(settings: Settings, env: VecEnv) -> int:
    """Bytes of the core in training, and of a rollout's observations and memories; encoder and heads come on top."""
    ppo, core = settings.ppo, settings.core
    parts = [part for _, part in parts_of(env.observation_space)]
    observation = sum(int(np.prod(part.shape or (), dtype=object)) * np.dtype(part.dtype).itemsize for part in parts)
    needs = (observation + NUMBERS) * ppo.n_steps * env.num_envs
    if core.name == "none":
        return needs
    with torch.device("meta"):  # sizes without contents
        made = CORES[core.name][0](**core_kwargs(core.name, dataclasses.asdict(core)))
        state = sum(part.nbytes for part in made.initial_state(1))
    on_cpu = settings.run.device == "cpu" or (settings.run.device == "auto" and not torch.cuda.is_available())
    parameters = sum(part.nbytes for part in made.parameters())
    return needs + on_cpu * (TRAINED * parameters + state * env.num_envs * (ppo.n_steps // ppo.seq_len))
