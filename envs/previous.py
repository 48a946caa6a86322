"""The previous action and reward as part of the observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Code = Callable[[Any], Any]


class PreviousStep(gym.Wrapper[dict[str, Any], Any, Any, Any]):
    """Adds what the agent did and got one step ago to the observation.

    With ``action``, the key "previous_action" is, by the actions' space:

    - ``Discrete(n)``: ``Discrete(n + 1)``, 0 right after a reset, else 1 + the action counted from the space's start.
    - ``MultiDiscrete``, of any shape: the same of each number, in a flat ``MultiDiscrete``.
    - ``MultiBinary``, of any shape: a flat ``MultiDiscrete`` of threes, 0 right after a reset, else 1 or 2.
    - ``Box``: a flat float32 ``Box``, the action, zeros right after a reset; at its end 0 right after a reset, else 1.

    With ``reward``, the key "previous_reward" is a float32 box (1,): 0 right after a reset.
    An observation that is not a dict is put under the key "observation".

    What tasks say of agents without memory does not hold with ``action``: an agent can write what it would have to
    remember into an action that has no effect, and read it in the next step. ``Counting``, ``HiddenAutomaton`` and
    ``GridWalk`` are solved in this way without memory.

    Raises ``ValueError`` when ``action`` is asked for and the actions are of another space, or when the observation has
    such a key already.
    """

    def __init__(self, env: gym.Env[Any, Any], *, action: bool = True, reward: bool = True) -> None:
        super().__init__(env)
        self._is_dict = isinstance(env.observation_space, spaces.Dict)
        self._with_action = action
        self._with_reward = reward
        entries = dict(env.observation_space) if isinstance(env.observation_space, spaces.Dict) else {}
        if not self._is_dict:
            entries["observation"] = env.observation_space
        for key, wanted in (("previous_action", action), ("previous_reward", reward)):
            if wanted and key in entries:
                raise ValueError(f"the observation of {env.unwrapped} has a {key!r} of its own")
        if action:
            entries["previous_action"], self._code = code_of(env.action_space)
        if reward:
            entries["previous_reward"] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict(entries)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode: no action yet, no reward yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._extend(observation, None, 0.0), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Takes the action and shows it, with the reward it brought, in the observation that follows."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._extend(observation, action, reward), reward, terminated, truncated, info

    def _extend(self, observation: Any, action: Any, reward: Any) -> dict[str, Any]:
        extended: dict[str, Any] = dict(observation) if self._is_dict else {"observation": observation}
        if self._with_action:
            extended["previous_action"] = self._code(action)
        if self._with_reward:
            extended["previous_reward"] = np.array([reward], dtype=np.float32)
        return extended


def code_of(space: spaces.Space[Any]) -> tuple[spaces.Space[Any], Code]:
    """The space of a previous action, and what makes its value of an action, or of ``None`` where there was none.

    Raises ``ValueError`` for spaces that ``PreviousStep`` does not list.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n) + 1), _Number(int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel() + 1), _Numbers(space.start.ravel())
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return spaces.MultiDiscrete([3] * size), _Numbers(np.zeros(size, dtype=np.int64))
    if isinstance(space, spaces.Box):
        low, high = (bound.astype(np.float32).ravel() for bound in (space.low, space.high))
        low, high = np.append(low, np.float32(0)), np.append(high, np.float32(1))
        return spaces.Box(np.minimum(low, 0), np.maximum(high, 0), dtype=np.float32), _Vector(low.size - 1)
    raise ValueError(
        f"the previous action needs Discrete, MultiDiscrete, MultiBinary or Box actions, not {type(space).__name__}"
    )


class _Number:
    """Of a ``Discrete``."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, action: Any) -> int:
        return 0 if action is None else 1 + int(action) - self.start


class _Numbers:
    """Of a ``MultiDiscrete`` or ``MultiBinary``."""

    def __init__(self, start: NDArray[np.int64]) -> None:
        self.start = start

    def __call__(self, action: Any) -> NDArray[np.int64]:
        if action is None:
            return np.zeros(len(self.start), dtype=np.int64)
        return 1 + np.asarray(action, dtype=np.int64).ravel() - self.start


class _Vector:
    """Of a ``Box``."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, action: Any) -> NDArray[np.float32]:
        if action is None:
            return np.zeros(self.size + 1, dtype=np.float32)
        return np.append(np.asarray(action, dtype=np.float32).ravel(), np.float32(1))
