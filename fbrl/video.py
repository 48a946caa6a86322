"""Draws an agent at work: the environment's picture above the attention that each layer pays to each memory slot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.memory import Memory
from fbrl.policy import MemoryPolicy

if TYPE_CHECKING:  # pillow is of the extra ``train``: the library alone does without
    from PIL import Image, ImageDraw

WIDTH = 400  # pixels that a narrow picture is enlarged to, by a whole factor, and a wide one reduced to
BORDER, MARGIN, ROW, LINE = 6, 8, 22, 16  # pixels
LABEL = 46  # pixels left of the slots, for the layers' names
STEP_MS, END_MS = 250, 1500  # how long a step and the end of an episode are shown
COLOURS = 64

BACKGROUND, TEXT = (24, 24, 28), (225, 225, 225)
UNREADABLE, NOTHING, EVERYTHING = (42, 42, 48), (74, 74, 84), (255, 210, 70)  # slots, by the attention paid to them
BORDERS = {None: (90, 90, 100), True: (60, 170, 75), False: (220, 50, 40)}


class Step(NamedTuple):
    """One picture of the video. The last of an episode shows the attention of the step that led there."""

    frame: NDArray[np.uint8]  # (height, width, 3)
    attention: NDArray[np.float64] | None  # as from ``attention``; None where the agent has no such memory
    caption: str
    success: bool | None  # None before the end of an episode, and where the environment does not say
    ended: bool


def attention(policy: MemoryPolicy, observation: Any, state: tuple[NDArray[Any], ...] | None) -> NDArray[np.float64]:
    """What each layer of a ``FeedbackTransformer`` looks at, on average over its heads.

    Args:
        policy: whose core, or actor's core, is a ``FeedbackTransformer``.
        observation: one observation.
        state: the memory before the step, as ``predict`` returns it; ``None`` means empty.

    Returns:
        (L, 1 + M), rows that sum to one: the null slot, then the memory slots, oldest first; NaN where a slot
        cannot be read.
    """
    core = policy.actor_core
    assert isinstance(core, FeedbackTransformer)
    memory = core.initial_state(1)
    if state is not None:
        memory = Memory(*(torch.tensor(part, device=policy.device) for part in state[:2]))
    policy.set_training_mode(False)
    with torch.no_grad():
        obs, _ = policy.obs_to_tensor(observation)
        _, weights = core.read(policy.encode(obs)[:, : core.d_model], memory)
    mean: NDArray[np.float64] = weights[0].mean(dim=1).double().cpu().numpy()
    mean[:, 1:][:, ~memory.readable[0].cpu().numpy()] = np.nan
    return mean


def record(
    agent: PPO,
    env: gym.Env[Any, Any],
    n_episodes: int,
    *,
    deterministic: bool = False,
    zero_memory: bool = False,
    max_steps: int = 300,
) -> list[Step]:
    """Plays ``n_episodes`` and keeps every step, ``max_steps`` at most.

    Args:
        agent: with or without memory; its attention is kept where its core is a ``FeedbackTransformer``.
        env: one environment, made with ``render_mode="rgb_array"``.
        n_episodes: episodes in all.
        deterministic: the most probable action instead of a sampled one.
        zero_memory: empty the memory before every step.
        max_steps: steps in all; what comes after them is left out.

    Raises:
        ValueError: where the environment draws no pictures.
    """
    if env.render_mode != "rgb_array":
        raise ValueError(f"render_mode must be 'rgb_array', got {env.render_mode!r}")
    steps: list[Step] = []
    for episode in range(1, n_episodes + 1):
        left = max_steps - len(steps)
        if left < 1:
            break
        steps += _episode(agent, env, f"episode {episode}", deterministic, zero_memory, left)
    return steps


def _episode(
    agent: PPO, env: gym.Env[Any, Any], title: str, deterministic: bool, zero_memory: bool, max_steps: int
) -> list[Step]:
    policy: Any = agent.policy
    shows = isinstance(policy, MemoryPolicy) and isinstance(policy.actor_core, FeedbackTransformer)
    steps: list[Step] = []
    observation, _ = env.reset()
    state, ended, total = None, False, 0.0
    while not ended and len(steps) < max_steps:
        seen = attention(policy, observation, state) if shows else None
        steps.append(Step(_picture(env), seen, f"{title}   step {len(steps)}", None, False))
        action, state = agent.predict(observation, state, np.zeros(1, dtype=bool), deterministic)
        if zero_memory:
            state = None
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        ended = terminated or truncated
    if ended:
        success = info.get("is_success")
        word = {None: "end", True: "success", False: "failure"}[success]
        steps.append(Step(_picture(env), seen, f"{title}   {word}, return {total:.2f}", success, True))
    return steps


def _picture(env: gym.Env[Any, Any]) -> NDArray[np.uint8]:
    return np.asarray(env.render(), dtype=np.uint8)


def draw(step: Step) -> Image.Image:
    """One picture: the frame, the caption, the slots of each layer; a border in green or red once the episode ended."""
    from PIL import Image, ImageDraw

    height, width = step.frame.shape[:2]
    scale = WIDTH // width or WIDTH / width
    frame = Image.fromarray(step.frame).resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX,
    )
    edge = BORDER + MARGIN
    rows = 0 if step.attention is None else len(step.attention)
    total_height = frame.height + LINE + (LINE + rows * ROW + LINE if rows else 0) + 3 * MARGIN + 2 * BORDER
    image = Image.new("RGB", (WIDTH + 2 * edge, total_height), BORDERS[step.success])
    painter = ImageDraw.Draw(image)
    painter.rectangle((BORDER, BORDER, image.width - BORDER - 1, image.height - BORDER - 1), fill=BACKGROUND)
    image.paste(frame, (edge + (WIDTH - frame.width) // 2, edge))
    painter.text((edge, edge + frame.height + MARGIN), step.caption, fill=TEXT)
    if step.attention is not None:
        _draw_attention(painter, step.attention, edge, edge + frame.height + MARGIN + LINE)
    return image


def _draw_attention(painter: ImageDraw.ImageDraw, attention: NDArray[np.float64], left: int, top: int) -> None:
    """The rows of ``attention`` (L, 1 + M), the null slot apart, the newest slot at the right, under a line of text."""
    slots_left, slots = left + LABEL + ROW + MARGIN, attention.shape[1] - 1
    cell = (WIDTH - LABEL - ROW - MARGIN) / slots
    painter.text((left + LABEL, top), "null", fill=TEXT)
    painter.text((slots_left, top), "oldest", fill=TEXT)
    painter.text((left + WIDTH, top), "newest memory", fill=TEXT, anchor="ra")
    for layer, row in enumerate(attention):
        y = top + LINE + layer * ROW
        painter.text((left, y + 4), f"layer {layer + 1}", fill=TEXT)
        painter.rectangle((left + LABEL, y, left + LABEL + ROW - 4, y + ROW - 4), fill=_colour(row[0]))
        for slot, weight in enumerate(row[1:]):
            x = round(slots_left + slot * cell)
            painter.rectangle((x, y, max(x, round(x + cell) - 2), y + ROW - 4), fill=_colour(weight))


def _colour(weight: float) -> tuple[int, int, int]:
    """Square-root scale, so that an even look at many slots can still be seen."""
    if np.isnan(weight):
        return UNREADABLE
    red, green, blue = (round(a + (b - a) * weight**0.5) for a, b in zip(NOTHING, EVERYTHING, strict=True))
    return red, green, blue


def save_gif(steps: list[Step], path: str | Path) -> None:
    """Writes the pictures of ``steps`` as a GIF that repeats for ever."""
    from PIL import Image

    images = [draw(step).quantize(COLOURS, dither=Image.Dither.NONE) for step in steps]
    durations = [END_MS if step.ended else STEP_MS for step in steps]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
