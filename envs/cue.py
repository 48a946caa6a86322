"""What there is to remember, told in ``info`` to those who look on; the agent never sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from minigrid.envs.memory import MemoryEnv

from envs.hidden_automaton import HiddenAutomatonEnv
from envs.tmaze import TMazeEnv


def with_cue(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """``env`` in a ``CueInInfo`` where its cue is known, else as it is."""
    known = isinstance(env.unwrapped, MemoryEnv | TMazeEnv | HiddenAutomatonEnv)
    return CueInInfo(env) if known else env


class CueInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to ``info``, for the observation that it comes with:

    - "cue" (str): what has to be known: MiniGrid's Memory tasks: the object in the first room, "key" or "ball"; the
      T-maze: "up" or "down"; the hidden automaton: the cup where the ball is now, "0", "1", ...
    - "cue_in_view" (bool): whether the observation shows it.
    - "decision" (bool): whether the next action takes it: at the junction, or where the automaton asks.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | self._cue()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info | self._cue()

    def _cue(self) -> dict[str, Any]:
        base = self.unwrapped
        if not isinstance(base, MemoryEnv):
            assert isinstance(base, TMazeEnv | HiddenAutomatonEnv)
            return base.cue_info()
        place = (1, base.height // 2 - 1)
        junction = (base.success_pos[0], base.height // 2)
        cue = base.grid.get(*place)
        return {
            "cue": "nothing" if cue is None else cue.type,  # an agent may have moved it
            "cue_in_view": bool(base.agent_sees(*place)),  # type: ignore[no-untyped-call]
            "decision": tuple(map(int, base.agent_pos)) == junction,
        }
