"""Plays an episode and keeps what there is to see at each step."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space

from fbrl.encoders import is_minigrid_space
from fbrl.insight.seen import ArrayState, Floats, Seen, attends, look
from fbrl.policy import MemoryPolicy

Picture = NDArray[np.uint8]
"""(height, width, 3)"""


class Step(NamedTuple):
    """One step of an episode."""

    frame: Picture | None  # what the environment draws; None where it draws nothing
    observation: dict[str, NDArray[Any]]  # its parts by their keys; one without keys is "observation"
    views: dict[str, Picture]  # those parts that are pictures, or can be drawn as one
    seen: Seen  # B = 1
    action: NDArray[Any]
    reward: float  # what the action brought
    marks: dict[str, float | str]  # numbers, truths and words that ``info`` held beside the observation
    memory: ArrayState = None  # before the step, B = 1; kept where that is asked for

    @property
    def reads(self) -> Floats | None:
        """(L, H, 1 + M), as ``Core.attention``; NaN where a slot cannot be read."""
        return None if self.seen.attention is None else self.seen.attention[0]


@dataclass(frozen=True)
class Episode:
    """What was kept of an episode.

    Attributes:
        steps: those that were kept: the first ones.
        last_frame: what the environment drew after the last step, where that was kept.
        ended: whether the last step kept is the last of the episode.
        success: ``info["is_success"]``; None where the environment does not say.
        returns: the sum of the rewards, not discounted.
        length: steps, whether kept or not.
        mission: what the task says in words; empty where it says nothing.
        emptied: whether the memory was emptied before every step.
    """

    steps: tuple[Step, ...]
    last_frame: Picture | None
    ended: bool
    success: bool | None
    returns: float
    length: int
    mission: str = ""
    emptied: bool = False

    @property
    def outcome(self) -> str:
        """In one word."""
        return {None: "ended", True: "success", False: "failure"}[self.success]


def record(
    agent: PPO,
    env: gym.Env[Any, Any],
    *,
    deterministic: bool = False,
    zero_memory: bool = False,
    max_steps: int = 300,
    keep_memory: bool = False,
) -> Episode:
    """Plays one episode to its end and keeps its first ``max_steps`` steps.

    Args:
        agent: with or without memory.
        env: one environment; its pictures are kept where it was made with ``render_mode="rgb_array"``.
        deterministic: the most probable action instead of a sampled one.
        zero_memory: empty the memory before every step.
        max_steps: steps that are kept.
        keep_memory: keep the memory before each step, in the place of pictures of the observation.
    """
    draws = env.render_mode == "rgb_array"
    within = getattr(agent, "within", None)  # an agent that asks the environment for masks
    player: Any = within(env) if within else agent
    masked = player.masked if within else contextlib.nullcontext
    steps: list[Step] = []
    state, ended, total, length, last = None, False, 0.0, 0, None
    observation, info = env.reset()
    mission = str(getattr(env.unwrapped, "mission", ""))
    while not ended:
        kept = length < max_steps
        if kept:
            parts = _parts(observation)
            frame = _draw(env) if draws else None
            with masked():
                seen, before = look(agent.policy, observation, state), state
            if keep_memory and before is None and isinstance(agent.policy, MemoryPolicy):
                before = tuple(part.numpy(force=True) for part in agent.policy.initial_state(1))
            views = {} if keep_memory else _views(env.observation_space, parts)
            step = Step(frame, parts, views, seen, np.empty(0), 0.0, marks(info), before if keep_memory else None)
        action, after = player.predict(observation, state, np.zeros(1, dtype=bool), deterministic)
        state = None if zero_memory else after
        observation, reward, terminated, truncated, info = env.step(action)
        if kept:
            steps.append(step._replace(action=np.asarray(action), reward=float(reward)))
        total, length, ended = total + float(reward), length + 1, bool(terminated or truncated)
    if kept and draws:
        last = _draw(env)
    success = info.get("is_success")
    success = None if success is None else bool(success)
    return Episode(tuple(steps), last, kept, success, total, length, mission, zero_memory)


def choose(
    episodes: Iterable[Episode], each: int, most_steps: int | None = None
) -> tuple[list[Episode], list[Episode]]:
    """Takes episodes until there are ``each`` successes and as many failures, or no more episodes.

    Args:
        episodes: as they are played.
        each: how many to keep.
        most_steps: take no more once so many steps were played; ``None`` takes all episodes, whatever they are.

    Returns:
        at most ``each`` successes followed by as many failures, in which what does not say goes before all; and every
        episode that was taken, without its pictures.
    """
    kept: dict[bool | None, list[Episode]] = {None: [], True: [], False: []}
    taken: list[Episode] = []
    for episode in episodes:
        if len(kept[episode.success]) < each:
            kept[episode.success].append(episode)
        taken.append(_without_pictures(episode))
        enough = len(kept[None]) == each or len(kept[True]) == len(kept[False]) == each
        if most_steps is not None and (enough or sum(one.length for one in taken) >= most_steps):
            break
    return [episode for outcome in (None, True, False) for episode in kept[outcome]], taken


def marks(info: Mapping[str, Any]) -> dict[str, float | str]:
    """What ``info`` says of a step in a number, a truth or a word."""
    found: dict[str, float | str] = {}
    for key, value in info.items():
        if isinstance(value, str):
            found[key] = value
        elif isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            found[key] = float(value)
    return found


def landmarks(episode: Episode) -> dict[str, list[int]]:
    """By their names, the marks of ``info`` that are true at some steps and not at others, with those steps."""
    keys = {key for step in episode.steps for key in step.marks}
    found = {}
    for key in sorted(keys):
        values = [step.marks.get(key, 0.0) for step in episode.steps]
        if set(values) == {0.0, 1.0}:
            found[key] = [t for t, value in enumerate(values) if value == 1.0]
    return found


def action_names(env: gym.Env[Any, Any], space: spaces.Space[Any]) -> dict[int, str]:
    """The names of ``Discrete`` actions in their order; MiniGrid's own where the environment has them, else numbers."""
    if not isinstance(space, spaces.Discrete):
        return {}
    named = getattr(env.unwrapped, "actions", None)
    if isinstance(named, type) and issubclass(named, enum.IntEnum) and len(named) == space.n:
        return {int(action): action.name for action in named}
    return {action: str(action) for action in range(int(space.start), int(space.start + space.n))}


def can_show_attention(agent: PPO) -> bool:
    """Whether its core reads past steps one by one."""
    return attends(getattr(agent.policy, "actor_core", None))


def by_step(reads: Floats, t: int) -> Floats:
    """What step ``t`` reads, by the steps of the episode: (L, H, 1 + M) -> (L, H, t), zeros where nothing is read."""
    window = reads.shape[-1] - 1
    readable = min(t, window)
    found = np.zeros((*reads.shape[:2], t))
    found[..., t - readable :] = np.nan_to_num(reads[..., 1 + window - readable :])
    return found


def _parts(observation: Any) -> dict[str, NDArray[Any]]:
    named = observation if isinstance(observation, Mapping) else {"observation": observation}
    return {key: np.array(part) for key, part in named.items()}


def _views(space: spaces.Space[Any], parts: dict[str, NDArray[Any]]) -> dict[str, Picture]:
    """The pictures among the parts of an observation, and MiniGrid's symbols drawn."""
    inner = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    views = {key: _upright(parts[key]) for key, part in inner.items() if is_image_space(part)}
    if is_minigrid_space(space) and "image" not in views:
        drawn = _draw_symbols(parts["image"])
        views |= {} if drawn is None else {"image": drawn}
    return views


def _draw_symbols(image: NDArray[np.uint8]) -> Picture | None:
    """A view as MiniGrid draws it, from the symbols (V, V, 3) alone; None where it does not know one of them.

    Where the symbols do not say where the agent is, it stands in the middle of the last row and looks up. Cells that
    it does not see are darker.
    """
    from minigrid.core.constants import OBJECT_TO_IDX  # whoever has such observations has minigrid
    from minigrid.core.grid import Grid

    try:
        grid, seen = Grid.decode(image)
    except (AssertionError, KeyError):
        return None
    place, direction = (image.shape[0] // 2, image.shape[1] - 1), 3
    for column, row in np.argwhere(image[..., 0] == OBJECT_TO_IDX["agent"]):
        place, direction = (int(column), int(row)), int(image[column, row, 2])
    picture: Picture = grid.render(24, place, agent_dir=direction, highlight_mask=seen)
    return picture


def _upright(picture: NDArray[Any]) -> Picture:
    """The last channels of an image, channels last, three of them."""
    if picture.shape[0] < picture.shape[-1]:  # as Stable-Baselines3 tells channels that come first
        picture = picture.transpose(1, 2, 0)
    channels = 3 if picture.shape[-1] % 3 == 0 else 1
    return np.broadcast_to(picture[..., -channels:], (*picture.shape[:2], 3)).astype(np.uint8)


def _draw(env: gym.Env[Any, Any]) -> Picture:
    return np.asarray(env.render(), dtype=np.uint8)


def _without_pictures(episode: Episode) -> Episode:
    steps = tuple(step._replace(frame=None, views={}) for step in episode.steps)
    return replace(episode, steps=steps, last_frame=None)
