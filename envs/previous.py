"""The previous action and reward as part of the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PreviousStep(gym.Wrapper[dict[str, Any], Any, Any, Any]):
    """Adds what the agent did and got one step ago to the observation.

    With ``action``, the key "previous_action" is ``Discrete(n + 1)``: 0 right after a reset, else 1 + the action.
    With ``reward``, the key "previous_reward" is a float32 box (1,): 0 right after a reset.
    An observation that is not a dict is put under the key "observation".

    What tasks say of agents without memory does not hold with ``action``: an agent can write what it would have to
    remember into an action that has no effect, and read it in the next step. ``Counting``, ``HiddenAutomaton`` and
    ``GridWalk`` are solved in this way without memory.

    Raises ``ValueError`` when ``action`` is asked for and the actions are not ``Discrete`` from 0.
    """

    def __init__(self, env: gym.Env[Any, Any], *, action: bool = True, reward: bool = True) -> None:
        super().__init__(env)
        self._is_dict = isinstance(env.observation_space, spaces.Dict)
        self._with_action = action
        self._with_reward = reward
        entries = dict(env.observation_space) if isinstance(env.observation_space, spaces.Dict) else {}
        if not self._is_dict:
            entries["observation"] = env.observation_space
        if action:
            if not isinstance(env.action_space, spaces.Discrete) or env.action_space.start != 0:
                raise ValueError(f"the previous action needs Discrete actions that start at 0, not {env.action_space}")
            entries["previous_action"] = spaces.Discrete(int(env.action_space.n) + 1)
        if reward:
            entries["previous_reward"] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict(entries)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode: no action yet, no reward yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._extend(observation, 0, 0.0), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Takes the action and shows it, with the reward it brought, in the observation that follows."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        code = 1 + int(action) if self._with_action else 0
        return self._extend(observation, code, reward), reward, terminated, truncated, info

    def _extend(self, observation: Any, code: int, reward: Any) -> dict[str, Any]:
        extended: dict[str, Any] = dict(observation) if self._is_dict else {"observation": observation}
        if self._with_action:
            extended["previous_action"] = code
        if self._with_reward:
            extended["previous_reward"] = np.array([reward], dtype=np.float32)
        return extended
