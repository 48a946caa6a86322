"""What ``MemoryPPO`` and its policies may be given, and what is said where it is something else."""

from __future__ import annotations

import numbers
import sys
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

SET_BY_PPO = ("buffer_size", "observation_space", "action_space", "device", "gamma", "gae_lambda", "n_envs")
SET_BY_US = ("seq_len", "passes")


class MaskError(ValueError):
    """An action mask that cannot be acted under; the message is one line."""


class NoMemoryError(ValueError):
    """A policy without memory where one with memory is needed; the message is one line."""


def check_sizes(seq_len: Any, passes: Any, **multiples: Any) -> None:
    """Raises ValueError where a size is not a whole number, or ``multiples`` are not those of ``seq_len``."""
    for name, value in {"seq_len": seq_len, **multiples}.items():
        if not _is_whole(value):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if passes is not None and not (_is_whole(passes) and passes >= 1):
        raise ValueError(f"passes must be a whole number of at least 1, or None for the scan, got {passes!r}")
    for name, value in multiples.items():
        if value % seq_len:
            raise ValueError(f"{name} must be a multiple of seq_len, got {name}={value} and seq_len={seq_len}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_policy(policy: Any, with_memory: type[nn.Module]) -> None:
    """Raises ``NoMemoryError`` where a policy is a class that does not remember; names are looked up elsewhere."""
    if isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, with_memory)):
        return
    given = policy.__name__ if isinstance(policy, type) else repr(policy)
    raise NoMemoryError(f"policy must be a name or a subclass of {with_memory.__name__}, which remembers, got {given}")


def check_classes(core_class: Any, of_cores: type[nn.Module], activation_fn: Any = nn.Tanh) -> None:
    """Raises ValueError where a policy is given something else than classes for its core and its activation."""
    for name, given, wanted in (("core_class", core_class, of_cores), ("activation_fn", activation_fn, nn.Module)):
        if not (isinstance(given, type) and issubclass(given, wanted)):
            given = given.__name__ if isinstance(given, type) else repr(given)
            raise ValueError(f"{name} must be a subclass of {wanted.__name__}, got {given}")


def fused(optimizer_class: type[Optimizer], given: dict[str, Any] | None) -> dict[str, Any] | None:
    """``optimizer_kwargs`` with which Adam's step is one operation for all parameters: the same, three times as fast.

    What is given stays as it is, and Stable-Baselines3's epsilon where nothing is; other optimisers too.
    """
    if optimizer_class not in (Adam, AdamW) or (given or {}).get("foreach") is not None:
        return given
    if given is None:
        given = {"eps": 1e-5} if optimizer_class is Adam else {}
    return {"fused": True} | given


def check_buffer_kwargs(kwargs: dict[str, Any] | None) -> None:
    """Raises ValueError where ``rollout_buffer_kwargs`` holds what the algorithm sets itself."""
    for name in kwargs or {}:
        if name in SET_BY_PPO + SET_BY_US:
            hint = f"give {name} to MemoryPPO itself" if name in SET_BY_US else "which PPO sets"
            raise ValueError(f"rollout_buffer_kwargs must not hold {name}: {hint}")


def refuse_other_algorithms(policy: nn.Module) -> None:
    """To be called while a policy is made. Raises ValueError where an algorithm makes it that gives it no memory.

    ``PPO.load`` takes the policy's class from the file, asks nothing, and has an agent that breaks when it learns.
    There is no hook but the policy's own constructor, which is not told who calls it.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is policy:
        frame = frame.f_back
    algorithm = frame.f_locals.get("self")
    if isinstance(algorithm, BaseAlgorithm) and not getattr(algorithm, "gives_memory", False):
        given, name = type(algorithm).__name__, type(policy).__name__
        raise ValueError(
            f"{name} remembers, and {given} gives it no memory: make and load such agents by fbrl.MemoryPPO"
        )


def needs_memory(method: str) -> TypeError:
    """What is raised where a policy's method is called as PPO's is, with observations alone."""
    return TypeError(
        f"{method} of a policy that remembers takes (obs, state, episode_start); the state before the first step is "
        "policy.initial_state(n), and episode_start a tensor (n,) of bool"
    )
