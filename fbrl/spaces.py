"""The spaces that policies with a memory take, and how their values become what networks read and back."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv


class NestedSpaceError(ValueError, NotImplementedError):
    """A Dict or a Tuple inside a Dict; Stable-Baselines3 raises NotImplementedError there."""


SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(env: GymEnv) -> None:
    """Raises ValueError for an observation space that no encoder reads, and for an action space that PPO lacks."""
    allowed = ", ".join(supported.__name__ for supported in SUPPORTED_SPACES)
    space = env.observation_space
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    for key, part in parts:
        if not isinstance(part, SUPPORTED_SPACES):
            where = f"observation_space[{key!r}]" if key else "observation_space"
            message = f"{where} must be one of {allowed}, or a Dict of them, got {type(part).__name__}"
            if key and isinstance(part, spaces.Dict | spaces.Tuple):
                nested = "Nested observation spaces are not supported (Tuple/Dict space inside Tuple/Dict space)"
                raise NestedSpaceError(message.replace(", got", f". {nested}, got"))
            raise ValueError(message)
    actions = env.action_space
    if not isinstance(actions, SUPPORTED_SPACES):
        raise ValueError(f"action_space must be one of {allowed}, got {type(actions).__name__}")
    if isinstance(actions, spaces.Box) and not np.isfinite([actions.low, actions.high]).all():
        raise ValueError(f"action_space must have finite bounds, got {actions.low.min()} to {actions.high.max()}")
