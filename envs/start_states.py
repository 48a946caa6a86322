"""Every start state of a task that has few, with its exact probability, so that an evaluation can be exhaustive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium as gym

from envs.registry import make


class StartStatesError(ValueError):
    """The start states cannot be listed, or the draws given do not lead to one."""


@dataclass(frozen=True)
class StartState:
    """One way in which ``reset`` can go.

    ``draws`` are the random numbers that ``reset`` draws, in order, without those that have one possible value only.
    ``probability`` is that of drawing them.
    """

    draws: tuple[int, ...]
    probability: float


def start_states(env_id: str, limit: int = 1000, **kwargs: Any) -> list[StartState]:
    """All start states of ``make(env_id, **kwargs)``: walks the whole tree of draws in ``reset``, depth first.

    The probabilities sum to one and need not be equal. Two ways to the same state count as two start states. The
    task must draw from its ``np_random`` only.

    Raises ``StartStatesError`` when there are more than ``limit``, as in any task that places objects by drawing again
    until they fit, and when ``reset`` draws anything else than single integers.
    """
    env = make(env_id, **kwargs)
    env.reset(seed=0)  # uses up a seed that waits for the first reset and would replace the scripted draws
    too_many = StartStatesError(f"{env_id} has more than {limit} start states; they cannot all be listed")
    states: list[StartState] = []
    draws: tuple[int, ...] | None = ()
    while draws is not None:
        script = _Script(env_id, draws, max_draws=limit)  # n draws with a choice mean more than n start states
        try:
            script.reset(env)
        except _TooManyDrawsError:
            raise too_many from None
        except RecursionError:  # what MiniGrid raises when it has drawn a place too often
            raise StartStatesError(f"{env_id} draws places until one fits; its start states are endless") from None
        if len(states) == limit:
            raise too_many
        states.append(StartState(tuple(script.drawn), 1 / math.prod(script.choices)))
        draws = script.next_draws()
    env.close()
    return states


class FixedStart(gym.Wrapper[Any, Any, Any, Any]):
    """Starts every episode in the state that ``draws``, from a ``StartState``, lead to; seeds have no effect.

    ``draws`` may be set between episodes. ``reset`` raises ``StartStatesError`` if they do not lead to a start state
    of this environment, and ``step`` if the environment draws a random number, because then the start state does not
    decide how an episode goes.
    """

    def __init__(self, env: gym.Env[Any, Any], draws: Sequence[int]) -> None:
        super().__init__(env)
        self.draws = tuple(draws)
        env.reset(seed=0)  # uses up a seed that waits for the first reset and would replace the scripted draws

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in the fixed state."""
        spec = self.unwrapped.spec
        name = spec.id if spec else type(self.unwrapped).__name__
        script = _Script(name, self.draws, max_draws=len(self.draws))
        try:
            observation, info = script.reset(self.env, options)
        except _TooManyDrawsError:
            raise StartStatesError(f"{self.draws} is too short for a start state of {name}") from None
        if len(script.drawn) < len(self.draws):
            raise StartStatesError(f"{self.draws} is too long for a start state of {name}")
        return observation, info


class _TooManyDrawsError(Exception):
    pass


class _Script:
    """Stands in for an environment's ``np_random``: gives the scripted draws, then the lowest value possible.

    ``drawn`` and ``choices`` note each draw and how many values it could have had, ``choices`` > 1.
    """

    def __init__(self, env_id: str, draws: Sequence[int], max_draws: int) -> None:
        self.drawn: list[int] = []
        self.choices: list[int] = []
        self._highest: list[int] = []
        self._env_id = env_id
        self._draws = draws
        self._max_draws = max_draws
        self._in_reset = True

    def reset(self, env: gym.Env[Any, Any], options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets ``env`` by the script."""
        env.unwrapped.np_random = self  # type: ignore[assignment]
        result = env.reset(options=options)
        self._in_reset = False
        return result

    def integers(
        self, low: int, high: int | None = None, size: None = None, dtype: Any = int, endpoint: bool = False
    ) -> int:
        """The next draw from low..high-1, as ``numpy.random.Generator.integers`` without a size."""
        if not self._in_reset:
            raise StartStatesError(
                f"{self._env_id} draws random numbers after its reset: no start state decides an episode"
            )
        if size is not None:
            self._refuse("integers of a size")
        low, high = (0, low) if high is None else (low, high)
        highest = int(high) - (not endpoint)
        if highest == low:
            return int(low)
        if len(self.drawn) == self._max_draws:
            raise _TooManyDrawsError
        draw = self._draws[len(self.drawn)] if len(self.drawn) < len(self._draws) else int(low)
        if not low <= draw <= highest:
            raise StartStatesError(
                f"{tuple(self._draws)} does not fit {self._env_id}: {draw} is not in {low}..{highest}"
            )
        self.drawn.append(draw)
        self.choices.append(highest - int(low) + 1)
        self._highest.append(highest)
        return draw

    def next_draws(self) -> tuple[int, ...] | None:
        """The draws that lead to the next branch of the tree, None after the last."""
        for i in reversed(range(len(self.drawn))):
            if self.drawn[i] < self._highest[i]:
                return (*self.drawn[:i], self.drawn[i] + 1)
        return None

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(name)

    def _refuse(self, what: str) -> NoReturn:
        raise StartStatesError(f"{self._env_id} draws random numbers by {what}; only single integers can be listed")
