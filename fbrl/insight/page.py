"""An episode that one can walk through: one HTML file with the data, the pictures and the script inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.insight.colours import LAYERS
from fbrl.insight.recording import Episode, Picture, Step, landmarks
from fbrl.insight.seen import Floats, attends
from fbrl.insight.story import deciding_step, story
from fbrl.policy import MemoryPolicy

PICTURES_BYTES = 12_000_000  # of all pictures of a page; larger ones are reduced
READS_BYTES = 12_000_000  # of all attention of a page; more is told as the mean over the heads
WIDEST, NARROWEST = 512, 64  # pixels
COLOURS = 128
NUMBERS = 64  # of a part of an observation, the first so many


class About(NamedTuple):
    """What a page says of the agent."""

    title: str
    task: str
    core: str  # in words
    notes: list[str]  # what the page cannot show, and why
    first: str  # what is no slot, in ``Core.attention``
    mix: list[float]  # softmax(w) of a Feedback Transformer


def about(agent: Any, title: str, task: str) -> About:
    """What a page says of ``agent``."""
    policy, notes = agent.policy, []
    if not isinstance(policy, MemoryPolicy):
        notes.append("This agent has no memory: there is nothing that it reads or writes.")
        return About(title, task, "no memory", notes, "", [])
    core = policy.actor_core
    sizes = ", ".join(f"{key} {value}" for key, value in policy.core_kwargs.items() if value is not None)
    words = type(core).__name__ + (f" ({sizes})" if sizes else "")
    mix: list[float] = []
    if isinstance(core, FeedbackTransformer):
        mix = core.mix.detach().softmax(dim=0).tolist()
    elif attends(core):
        notes.append("This core keeps what enters each layer: there is no mix of layers to write.")
    else:
        notes.append(
            f"The memory of {type(core).__name__} is not kept step by step: which past steps it reads, and what it "
            "writes of them, cannot be shown. How far the memory moves the policy can."
        )
    return About(title, task, words, notes, "nothing" if mix else "itself", mix)


def save_page(
    episodes: Sequence[Episode], path: str | Path, about: About, actions: Mapping[int, str], summary: Sequence[str] = ()
) -> None:
    """Writes the page.

    Args:
        episodes: to choose from.
        path: of the file.
        about: the agent, from the function of that name.
        actions: the names of ``Discrete`` actions, from ``action_names``, or nothing.
        summary: sentences about all episodes.
    """
    pictures, notes = _Pictures(), list(about.notes)
    by_head = _reads_size(episodes) <= READS_BYTES
    told = [_episode(episode, pictures, actions, by_head) for episode in episodes]
    if not by_head:
        notes.append("So much is read that the page holds the mean over the heads only.")
    if not any(step.frame is not None for episode in episodes for step in episode.steps):
        notes.append("The task draws no pictures.")
    encoded, width = pictures.encode()
    if width < WIDEST:
        notes.append(f"The pictures are reduced to {width} pixels so that the page stays small.")
    data = about._asdict() | {
        "notes": notes,
        "summary": list(summary),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in LAYERS],
        "pictures": encoded,
        "episodes": told,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    template = files("fbrl.insight").joinpath("episode.html").read_text(encoding="utf-8")
    Path(path).write_text(template.replace("/*DATA*/", text, 1), encoding="utf-8")


def _episode(episode: Episode, pictures: _Pictures, actions: Mapping[int, str], by_head: bool) -> dict[str, Any]:
    cut = None if episode.ended else f"Of {episode.length} steps the first {len(episode.steps)} are shown."
    return {
        "outcome": episode.outcome,
        "emptied": episode.emptied,
        "returns": round(episode.returns, 3),
        "length": episode.length,
        "cut": cut,
        "mission": episode.mission,
        "story": story(episode),
        "deciding": deciding_step(episode),
        "landmarks": landmarks(episode),
        "steps": [_step(step, t, pictures, actions, by_head) for t, step in enumerate(episode.steps)],
        "last": pictures.add(episode.last_frame),
    }


def _step(step: Step, t: int, pictures: _Pictures, actions: Mapping[int, str], by_head: bool) -> dict[str, Any]:
    seen = step.seen
    discrete = bool(actions) and step.action.size == 1
    return {
        "frame": pictures.add(step.frame),
        "views": {key: pictures.add(view) for key, view in step.views.items()},
        "numbers": {key: _numbers(part) for key, part in step.observation.items() if key not in step.views},
        "action": actions[int(step.action)] if discrete else _numbers(step.action),
        "chances": [_chances(row[0], list(actions.values()) if discrete else ()) for row in seen.chances],
        "mean": None if seen.mean is None else _numbers(seen.mean[0]),
        "std": None if seen.std is None else _numbers(seen.std[0]),
        "value": round(float(seen.value[0]), 4),
        "reward": round(step.reward, 4),
        "effect": None if seen.effect is None else round(float(seen.effect[0]), 4),
        "written": None if seen.written is None else _numbers(seen.written[0]),
        "marks": {key: mark for key, mark in step.marks.items() if isinstance(mark, str) or np.isfinite(mark)},
        "reads": _reads(step, t, by_head),
    }


def _chances(row: Floats, names: Sequence[str]) -> list[tuple[str, float]]:
    return [(names[index] if names else str(index), round(float(chance), 4)) for index, chance in enumerate(row)]


def _reads(step: Step, t: int, by_head: bool) -> dict[str, Any] | None:
    """Attention in 255ths, base64: (L, H, 1 + n), n slots that can be read, what is no slot first."""
    if step.reads is None:
        return None
    window = step.reads.shape[-1] - 1
    readable = min(t, window) if not np.isnan(step.reads[..., -1]).all() else 0
    weights = np.concatenate([step.reads[..., :1], step.reads[..., 1 + window - readable :]], axis=-1)
    if not by_head:
        weights = weights.mean(axis=1, keepdims=True)
    text = base64.b64encode(np.rint(255 * weights).astype(np.uint8).tobytes()).decode()
    return {"layers": weights.shape[0], "heads": weights.shape[1], "slots": readable, "weights": text}


def _reads_size(episodes: Sequence[Episode]) -> int:
    return sum(step.reads.size for episode in episodes for step in episode.steps if step.reads is not None)


def _numbers(part: NDArray[Any]) -> list[float | None]:
    flat = np.asarray(part, dtype=np.float64).ravel()[:NUMBERS]
    return [round(float(number), 3) if np.isfinite(number) else None for number in flat]


class _Pictures:
    """The pictures of a page, each kept once."""

    def __init__(self) -> None:
        self.kept: list[Picture] = []
        self.places: dict[bytes, int] = {}

    def add(self, picture: Picture | None) -> int | None:
        """Its place among the pictures."""
        if picture is None:
            return None
        key = bytes(str(picture.shape), "ascii") + picture.tobytes()
        if key not in self.places:
            self.places[key] = len(self.kept)
            self.kept.append(picture)
        return self.places[key]

    def encode(self) -> tuple[list[str], int]:
        """As data URIs, and how wide they are at most: as wide as ``PICTURES_BYTES`` let them be."""
        width = WIDEST
        while True:
            encoded = [_png(picture, width) for picture in self.kept]
            if sum(map(len, encoded)) <= PICTURES_BYTES or width <= NARROWEST:
                return encoded, width
            width //= 2


def _png(picture: Picture, widest: int) -> str:
    from PIL import Image  # of the extra ``train``

    image = Image.fromarray(picture)
    if image.width > widest:
        image = image.resize((widest, max(1, round(image.height * widest / image.width))), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
