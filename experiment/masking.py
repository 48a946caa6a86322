"""Action masks in an experiment: which algorithm learns with them, and what they do not go with."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from experiment.settings import Settings, SettingsError
from fbrl.ppo import MemoryPPO


def algorithm(settings: Settings) -> type[PPO]:
    """What learns: with masks or without them, or Stable-Baselines3's own PPO.

    Raises:
        SettingsError: where masks are asked for, and what they need is not installed.
    """
    if settings.core.name == "none":
        return PPO
    return maskable() if settings.env.action_masks else MemoryPPO


def maskable() -> type[MemoryPPO]:
    """``MaskableMemoryPPO``; raises SettingsError where the extra ``masks`` is not installed."""
    try:
        from fbrl.masks import MaskableMemoryPPO
    except ModuleNotFoundError as error:
        raise SettingsError(f"env.action_masks: true needs pip install fbrl[masks] ({error})") from error
    return MaskableMemoryPPO


def takes_masks(policy: Any) -> bool:
    """Whether a policy is one of ``fbrl.masks``."""
    return hasattr(policy, "masked")


def check_masking(settings: Settings, env: VecEnv, processes: int) -> None:
    """Raises SettingsError where masks are asked for and cannot be had."""
    if not settings.env.action_masks:
        return
    if settings.core.name == "none" or settings.run.control:
        what = "core.name is none" if settings.core.name == "none" else "run.control is true"
        raise SettingsError(
            f"env.action_masks must be false where {what}: Stable-Baselines3's own PPO takes no masks; core.name "
            "memoryless does, and remembers nothing"
        )
    if processes > 1:
        raise SettingsError(f"env.action_masks must be false where several processes train, got {processes} of them")
    maskable()
    from sb3_contrib.common.maskable.utils import is_masking_supported

    from fbrl.masks import choices

    if not is_masking_supported(env):
        raise SettingsError(
            f"env.action_masks: true, but {settings.env.id} has no action_masks(): env.wrappers can put sb3-contrib's "
            "ActionMasker around it"
        )
    try:
        choices(env.action_space)
    except ValueError as error:
        raise SettingsError(f"env.action_masks: {error}") from error
