"""What is not finite is refused before it can reach the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e15
"""The size up to which a float32 observation or reward has squares, and sums of them, that float32 holds."""

LARGEST_VALUE = 1e18
"""The size up to which a value or a return has a square that float32 holds."""

Observation = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]


class NotFiniteError(ValueError, FloatingPointError):
    """An observation, a reward, a return, a loss or a weight that is not finite; one line names it."""


def check_finite(observation: Observation, name: str, place: str = "") -> None:
    """``check_numbers`` of an observation's floating-point parts, naming the key."""
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for key, value in parts:
        array = np.asarray(value)
        if array.dtype.kind == "f":
            check_numbers(array, f"{name}[{key!r}]" if key else name, place)


def check_numbers(array: np.ndarray[Any, Any], name: str, place: str = "") -> None:
    """Raises NotFiniteError where a number is not finite, or so large that what is made of it would not be.

    ``place`` says where the array is from; a "{}" in it is the first row that is at fault.
    """
    if not array.size or float(np.abs(array).max()) <= LARGEST:
        return
    bad = ~np.isfinite(array)
    if bad.any():
        raise NotFiniteError(f"{name}{at(place, bad)} must be finite, got {array[bad][0]}")
    bad = np.abs(array) > LARGEST
    allowed = f"at most {LARGEST:g} in size, or what is made of it is not finite"
    raise NotFiniteError(f"{name}{at(place, bad)} must be {allowed}, got {array[bad][0]}")


def at(place: str, bad: np.ndarray[Any, Any]) -> str:
    """The place with the first row that is bad."""
    return " " + place.format(np.argwhere(bad)[0][0]) if place else ""


def check_values(values: Tensor) -> None:
    """Raises NotFiniteError where the value loss of what is learned from could not be finite.

    Its square would be infinite while its gradient is not: the norm of that then is, and clipping by it makes all
    gradients zero without a word.
    """
    if values.is_meta:
        return
    largest = values.detach().abs().max()
    if not largest <= LARGEST_VALUE:
        raise NotFiniteError(f"the value loss is not finite: values are as large as {largest.item():g}")


def refuse_non_finite_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """An optimiser hook: raises NotFiniteError before a loss that is not finite can reach the weights."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not torch.stack([gradient.sum() for gradient in gradients]).isfinite().all():
        raise NotFiniteError("the loss or its gradient is not finite; the weights are those before the update")
