"""The spaces that policies with a memory take, and how their values become what networks read and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from torch import Tensor, nn

from fbrl.encoders import is_minigrid_space
from fbrl.finite import Observation, at, check_numbers

SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
ALLOWED = ", ".join(supported.__name__ for supported in SUPPORTED_SPACES)


class NestedSpaceError(ValueError, NotImplementedError):
    """A Dict or a Tuple inside a Dict; Stable-Baselines3 raises NotImplementedError there."""


def parts_of(space: spaces.Space[Any]) -> list[tuple[str, spaces.Space[Any]]]:
    """The spaces of a Dict with their keys; another space by itself, with an empty key."""
    return list(space.spaces.items()) if isinstance(space, spaces.Dict) else [("", space)]


def check_spaces(env: GymEnv, *, from_zero: bool = False) -> None:
    """Raises ValueError for an observation space that no encoder reads, and for an action space that PPO lacks.

    ``from_zero`` asks for what Stable-Baselines3's own PPO takes: Discrete and MultiDiscrete that start at 0.
    """
    parts = parts_of(env.observation_space)
    if not parts:
        raise ValueError("observation_space must hold something, got an empty Dict")
    for key, part in parts:
        where = f"observation_space[{key!r}]" if key else "observation_space"
        _check_kind(part, where, key)
        if key and (not isinstance(key, str) or "." in key or hasattr(nn.ModuleDict(), key)):
            raise ValueError(f"{where} must have a key that torch.nn.ModuleDict can hold; rename it, got {key!r}")
        if isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim != 1:
            raise ValueError(f"{where} must have one dimension, as a MultiDiscrete, got the shape {part.nvec.shape}")
        _check_size(part, where, from_zero)
    _check_actions(env.action_space)
    _check_size(env.action_space, "action_space", from_zero)


def _check_kind(part: spaces.Space[Any], where: str, key: str) -> None:
    if isinstance(part, SUPPORTED_SPACES):
        return
    given = type(part).__name__
    message = f"{where} must be one of {ALLOWED}, or a Dict of them"
    if key and isinstance(part, spaces.Dict | spaces.Tuple):
        nested = "Nested observation spaces are not supported (Tuple/Dict space inside Tuple/Dict space)"
        raise NestedSpaceError(f"{message}. {nested}, got {given}")
    if given == "MissionSpace":
        message += "; fbrl.symbolic.SymbolicObservation makes MiniGrid's observations such a Dict"
    raise ValueError(f"{message}, got {given}")


def _check_size(part: spaces.Space[Any], where: str, from_zero: bool) -> None:
    if 0 in (part.shape or ()):
        raise ValueError(f"{where} must hold at least one number, got the shape {part.shape}")
    if from_zero and start_of(part) is not None:
        raise ValueError(f"{where} must start at 0 for an agent without memory, got {part}")


def _check_actions(actions: spaces.Space[Any]) -> None:
    if not isinstance(actions, SUPPORTED_SPACES):
        raise ValueError(f"action_space must be one of {ALLOWED}, got {type(actions).__name__}")
    if isinstance(actions, spaces.MultiDiscrete | spaces.MultiBinary) and len(actions.shape) != 1:
        kind = type(actions).__name__
        raise ValueError(
            f"action_space must have one dimension, as a {kind}; flatten it, got the shape {actions.shape}"
        )
    if isinstance(actions, spaces.Box) and not np.isfinite([actions.low, actions.high]).all():
        raise ValueError(f"action_space must have finite bounds, got {actions.low.min()} to {actions.high.max()}")


def start_of(space: spaces.Space[Any]) -> np.ndarray[Any, Any] | None:
    """What a Discrete or a MultiDiscrete counts from; ``None`` where that is 0, and for other spaces."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return None
    start = np.asarray(space.start)
    return start if start.any() else None


class Reader:
    """What an observation space says of its values besides their shape.

    Args:
        space: the observations'.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.tables = {}  # of the parts that are looked up: the least and the largest value
        self.starts: dict[str, Tensor] = {}
        self.numbers = set()  # parts that are a single number
        symbols = ("image", "mission") if is_minigrid_space(space) else ()
        for key, part in parts_of(space):
            start = start_of(part)
            if start is not None:
                self.starts[key] = torch.as_tensor(start)
            if isinstance(part, spaces.Discrete | spaces.MultiDiscrete):
                least = np.asarray(part.start)
                self.tables[key] = least, least + (part.n if isinstance(part, spaces.Discrete) else part.nvec) - 1
            elif isinstance(part, spaces.Box) and key in symbols and part.high.max() < 255:
                self.tables[key] = part.low, part.high
            if isinstance(part, spaces.Box) and part.shape == ():
                self.numbers.add(key)

    def from_zero(self, obs: PyTorchObs) -> PyTorchObs:
        """Observations (N, ...) as Stable-Baselines3's ``preprocess_obs`` takes them: symbols count from 0."""
        if not self.starts and not self.numbers:
            return obs
        if isinstance(obs, dict):
            return {key: self._part(key, value) for key, value in obs.items()}
        return self._part("", obs)

    def _part(self, key: str, value: Tensor) -> Tensor:
        if key in self.starts:
            return value - self.starts[key].to(value.device)
        return value.reshape(len(value), 1) if key in self.numbers else value

    def check(self, observation: Observation, name: str, place: str = "") -> None:
        """Looks at an observation, or at those of n environments.

        Args:
            observation: as an environment gave it.
            name: what it is.
            place: where it is from; a "{}" in it is the first environment that is at fault.

        Raises:
            NotFiniteError: where a number is not finite, or too large for what is made of it to be.
            ValueError: where a symbol is outside of its space.
        """
        for key, value in observation.items() if isinstance(observation, dict) else [("", observation)]:
            array = np.asarray(value)
            if array.dtype.kind == "f":
                check_numbers(array, f"{name}[{key!r}]" if key else name, place)
            elif key in self.tables:
                self._check_table(key, array, f"{name}[{key!r}]" if key else name, place)

    def _check_table(self, key: str, array: np.ndarray[Any, Any], name: str, place: str) -> None:
        least, largest = self.tables[key]
        if array.shape[array.ndim - least.ndim :] != least.shape:
            return  # of another shape, such as an image that is still to be turned: others say so
        outside = (array < least) | (array > largest)
        if outside.any():
            alike = np.ptp(least) == 0 and np.ptp(largest) == 0
            bounds = f"{np.min(least)} to {np.max(largest)}" if alike else "its space"
            raise ValueError(f"{name}{at(place, outside)} must be in {bounds}, got {array[outside][0]}")


def to_env(actions: np.ndarray[Any, Any], space: spaces.Space[Any]) -> np.ndarray[Any, Any]:
    """Actions (n, ...) of a distribution, of the shape of the space, as values in it and of its type."""
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
        if space.dtype is not None and space.dtype.kind in "iu":
            actions = np.rint(actions)
    start = start_of(space)
    if start is not None:
        actions = actions + start
    return actions.astype(space.dtype, copy=False)  # Gymnasium's ``contains`` refuses wider numbers


def contiguous(obs: Any) -> Any:
    """Observations of any strides as torch takes them."""
    if isinstance(obs, dict):
        return {key: np.ascontiguousarray(value) for key, value in obs.items()}
    return np.ascontiguousarray(obs)


def as_numbers(values: Any, name: str, n: int, place: str) -> np.ndarray[Any, Any]:
    """Rewards or dones (n,), which other vectorized environments give as whole numbers or truth values too.

    Raises:
        ValueError: where they are something else.
        NotFiniteError: where they are not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.size != n:
        raise ValueError(f"{name}s must be {n} numbers, got {values!r}")
    array = array.reshape(n) if array.dtype.kind == "f" else array.reshape(n).astype(np.float32)
    check_numbers(array, name, place)
    return array
