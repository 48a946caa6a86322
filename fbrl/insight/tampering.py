"""Agents whose memory is tampered with before every step: how well they then do says what they use it for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PolicyPredictor

State = tuple[NDArray[Any], ...]


class Tampered:
    """An agent that is given another memory than it wrote.

    Args:
        agent: anything with Stable-Baselines3's ``predict``.
        tamper: makes of a state (``predict``'s, B rows) the one that the agent is given.
    """

    def __init__(self, agent: PolicyPredictor, tamper: Callable[[State], State]) -> None:
        self.agent, self.tamper = agent, tamper

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State | None]:
        """As the agent's own; the state that comes back is what the agent made of the other memory."""
        given = None if state is None else self.tamper(state)
        return self.agent.predict(observation, given, episode_start, deterministic)


def shuffled(rng: np.random.Generator) -> Callable[[State], State]:
    """Puts the readable slots of every row in another order, drawn anew at each step."""

    def tamper(state: State) -> State:
        return _by_window(state, lambda slots, length: (_permuted(slots, length, rng), length))

    return tamper


def cut_to(window: int) -> Callable[[State], State]:
    """Leaves the newest ``window`` slots readable and no others."""
    return lambda state: _by_window(state, lambda slots, length: (slots, np.minimum(length, window)))


def _by_window(state: State, change: Callable[[NDArray[Any], NDArray[Any]], State]) -> State:
    """Changes each (slots, length) of a state: the core's, or the actor's and the critic's cores'."""
    pairs = [change(slots, length) for slots, length in zip(state[::2], state[1::2], strict=True)]
    return tuple(part for pair in pairs for part in pair)


def _permuted(slots: NDArray[Any], length: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    slots, window = slots.copy(), slots.shape[1]
    for row, readable in enumerate(length):
        slots[row, window - readable :] = rng.permutation(slots[row, window - readable :])
    return slots
