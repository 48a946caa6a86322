"""MiniGrid's observations in a form that Stable-Baselines3 takes, and success in ``info``."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from minigrid.core.mission import MissionSpace
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv

from fbrl.mission import BABYAI_LENGTH, UNKNOWN, WORDS, longest_mission, split, tokenize
from fbrl.shown import CELL_HIGH, image_space

__all__ = ["CELL_HIGH", "Success", "SymbolicObservation", "is_symbolic"]

PROBES = 8  # episodes of a copy that tell whether a task which is not MiniGrid's own changes its mission


class Success(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Sets ``info["is_success"]`` on the last step of an episode: it terminates with a positive reward.

    It stands inside of wrappers that change rewards.
    """

    reports_success = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info["is_success"] = bool(terminated and float(reward) > 0)
        return observation, reward, terminated, truncated, info


class SymbolicObservation(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """MiniGrid's observation without text, and ``info["is_success"]`` on the last step of every episode.

    - "image" (V, V, 3) uint8: object, colour and state of each visible cell. The tight bound of each channel
      (``CELL_HIGH``) keeps Stable-Baselines3 from taking the symbols for a picture, which it would transpose and
      divide by 255. Under wrappers of MiniGrid's it is what they show, see ``fbrl.shown``.
    - "direction" ``Discrete(4)``: where the agent faces, 0 is right, 1 down.
    - "mission" (length,) uint8, only where the task varies its mission: tokens as in ``fbrl.mission``. A task that is
      not MiniGrid's own may do so without declaring it, and with any words: a copy of it plays ``PROBES`` episodes
      that tell.
    - whatever else wrappers have added, as it is.

    An observation that is an image only, MiniGrid's ``ImgObsWrapper``, is the "image" of such a Dict; a picture stays
    alone. An episode is a success when it terminates with a positive reward, before wrappers that change rewards where
    ``Success`` stands inside them. What BabyAI prints when it has to draw a level again is swallowed.

    Raises ``ValueError`` on an image that cannot be told, on one with values outside of its space, on a mission with an
    unknown word where MiniGrid's own tasks have none, and on one that changes where it was taken for one that does not.
    """

    reports_success = True
    _high: Any = None  # of an environment that was saved before there were wrappers
    _alone = _counts = False
    _unknown: int | None = None
    _only: str | None = None

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base, space = env.unwrapped, env.observation_space
        if not isinstance(base, MiniGridEnv):
            raise ValueError(f"SymbolicObservation needs a MiniGrid environment, got {type(base).__name__}")
        image = image_space(env)
        self._prints = isinstance(base, RoomGridLevel)
        self._counts = not _has(env, Success)  # successes
        self._high = None if (image.high == 255).all() else image.high
        self._alone = not isinstance(space, spaces.Dict)
        entries: dict[str, spaces.Space[Any]] = {"image": image}
        if isinstance(space, spaces.Dict):
            entries = {key: image if key == "image" else part for key, part in space.spaces.items()}
        mission = entries.pop("mission", None)
        if mission is not None:
            mission = self._mission_space(mission)
            entries |= {} if mission is None else {"mission": mission}
        self._length = 0 if mission is None else int(np.prod(mission.shape or ()))
        self._mission = ""
        self._tokens = np.zeros(self._length, dtype=np.uint8)
        is_picture = self._alone and self._high is None
        self.observation_space = image if is_picture else spaces.Dict(entries)

    def _mission_space(self, space: spaces.Space[Any]) -> spaces.Space[Any] | None:
        """The space of the tokens; ``None`` where the mission never changes and so tells nothing."""
        if isinstance(space, spaces.MultiDiscrete):  # MiniGrid's DictObservationSpaceWrapper
            return spaces.Box(0, int(space.nvec.max()) - 1, space.nvec.shape, np.uint8)
        if not isinstance(space, MissionSpace):
            return space
        length, high = longest_mission(space), len(WORDS)
        if not type(self.unwrapped).__module__.startswith("minigrid."):
            seen, high = self._probe(), UNKNOWN
            if length or len(seen) > 1:
                length = max(length or BABYAI_LENGTH, *(len(split(mission)) for mission in seen))
            self._unknown = UNKNOWN
        return spaces.Box(0, high, (length,), np.uint8) if length else None

    def _probe(self) -> set[str]:
        """The missions of some episodes of a copy; none where the task cannot be copied."""
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            twin = copy.deepcopy(self.env)
            return {twin.reset(seed=seed)[0]["mission"] for seed in range(PROBES)}
        return {""}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        with contextlib.redirect_stdout(io.StringIO()) if self._prints else contextlib.nullcontext():
            observation, info = self.env.reset(seed=seed, options=options)
        return self._symbols(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes one step; ``info["is_success"]`` (bool) is set when the episode ends."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._counts and (terminated or truncated):
            info["is_success"] = bool(terminated and float(reward) > 0)
        return self._symbols(observation), reward, terminated, truncated, info

    def _symbols(self, observation: Any) -> Any:
        if self._alone:
            observation = {"image": observation}
        if self._high is not None:
            self._check(observation["image"])
        elif self._alone:
            return observation["image"]
        # MiniGrid builds a new dict each step, so that nobody else misses it
        mission = observation.pop("mission", None)
        if isinstance(mission, str):
            if mission is not self._mission:
                self._renew(mission)
            if self._length:
                observation["mission"] = self._tokens.copy()
        elif mission is not None:
            observation["mission"] = np.asarray(mission, dtype=np.uint8)
        return observation

    def _renew(self, mission: str) -> None:
        self._mission = mission
        if self._length:
            self._tokens = tokenize(mission, self._length, self._unknown)
        elif self._only is None:
            self._only = mission
        elif mission != self._only:
            name = type(self.unwrapped).__name__
            raise ValueError(
                f"the mission of {name} changes, from {self._only!r} to {mission!r}, though its mission_space holds "
                "one only and its first episodes showed one: its mission_space must hold them all"
            )

    def _check(self, image: np.ndarray[Any, Any]) -> None:
        """Symbols have tables of their own: one outside of its space would be read as another, or as none."""
        outside = image > self._high
        if outside.any():
            raise ValueError(
                f"the image of {type(self.unwrapped).__name__} must hold values up to "
                f"{self._high[tuple(index[0] for index in outside.nonzero())]}, got {image[outside][0]}"
            )


def is_symbolic(env: gym.Env[Any, Any]) -> bool:
    """Whether a ``SymbolicObservation`` is among the wrappers."""
    return _has(env, SymbolicObservation)


def _has(env: gym.Env[Any, Any], kind: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, kind):
            return True
        env = env.env
    return False
