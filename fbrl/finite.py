"""What is not finite is refused before it can reach the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Observation = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]


class NotFiniteError(ValueError, FloatingPointError):
    """An observation, a reward, a return, a loss or a weight that is not finite; one line names it."""


def check_finite(observation: Observation, name: str) -> None:
    """Raises NotFiniteError naming the key where a floating-point observation holds NaN or infinity."""
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for key, value in parts:
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = f"{name}[{key!r}]" if key else name
            raise NotFiniteError(f"{where} must be finite, got {array[~np.isfinite(array)][0]}")


def refuse_non_finite_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """An optimiser hook: raises NotFiniteError before a loss that is not finite can reach the weights."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not torch.stack([gradient.sum() for gradient in gradients]).isfinite().all():
        raise NotFiniteError("the loss or its gradient is not finite; the weights are those before the update")
