"""The states of all random number generators that a training draws from, besides those of its environments."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed


def random_states() -> dict[str, Any]:
    """Where they stand."""
    return {
        "random": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Puts them where they stood."""
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def apart(seed: int) -> Iterator[None]:
    """Within it, random numbers are those of ``seed``; what follows goes on as if nothing had been drawn."""
    before = random_states()
    set_random_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)
