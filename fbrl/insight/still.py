"""A picture of a whole episode: which step reads which, time against time, one square for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fbrl.insight.colours import BACKGROUND, DIM, TEXT, UNREADABLE, of_layer, shade
from fbrl.insight.recording import Episode, by_step, landmarks
from fbrl.insight.seen import Floats

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 460  # pixels along a square, at most; more where the steps are too many for a pixel each
LARGEST = 18  # pixels along a cell, at most
LEFT, TOP, GAP, BOTTOM = 46, 62, 20, 30  # pixels around the squares
NULL = 14  # pixels, the width of the column of what is no step


def time_against_time(episode: Episode) -> Floats:
    """What each step reads: (L, T, 1 + T), the mean over the heads; NaN where step t cannot read step j.

    The first of the last dimension is what is no step (``Core.attention``), the rest the steps of the episode.

    Raises:
        ValueError: where the agent's core does not attend.
    """
    length = len(episode.steps)
    if episode.steps[0].reads is None:
        raise ValueError("the agent's memory cannot be read step by step: its core has no attention")
    layers, _, window = episode.steps[0].reads.shape
    found = np.full((layers, length, 1 + length), np.nan)
    for t, step in enumerate(episode.steps):
        assert step.reads is not None
        mean = step.reads.mean(axis=1)
        first = max(0, t - (window - 1))
        found[:, t, 0] = mean[:, 0]
        found[:, t, 1 + first : 1 + t] = by_step(step.reads, t).mean(axis=1)[:, first:]
        if np.isnan(mean[:, 1:]).all():  # a memory that was emptied
            found[:, t, 1:] = np.nan
    return found


def draw_still(episode: Episode, title: str) -> Image.Image:
    """The squares of all layers, side by side: rows read, columns are read; the steps that ``info`` marks at the top.

    Raises:
        ValueError: as ``time_against_time``.
    """
    from PIL import Image, ImageDraw

    weights = time_against_time(episode)
    layers, length, _ = weights.shape
    cell = max(1, min(LARGEST, SIZE // length))
    square = max(cell * length, 160)
    width = LEFT + layers * (square + NULL + GAP + 6)
    image = Image.new("RGB", (max(width, 420), TOP + square + BOTTOM), BACKGROUND)
    painter = ImageDraw.Draw(image)
    painter.text((LEFT, 8), title, fill=TEXT)
    painter.text(
        (LEFT, 24),
        "row: the step that reads; column: the step that is read; leftmost: none",
        fill=DIM,
    )
    for layer in range(layers):
        left = LEFT + layer * (square + NULL + GAP + 6)
        painter.text((left, TOP - 20), f"layer {layer + 1}", fill=of_layer(layer))
        _draw_square(painter, weights[layer], layer, left, cell)
        _draw_marks(painter, [step for steps in landmarks(episode).values() for step in steps], left, cell)
        _draw_scale(painter, length, left, cell, first=layer == 0)
    return image


def _draw_square(painter: ImageDraw.ImageDraw, weights: Floats, layer: int, left: int, cell: int) -> None:
    colour, inner = of_layer(layer), max(1, cell - 1)
    right = left + NULL + 6
    painter.rectangle((right, TOP, right + cell * len(weights) - 1, TOP + cell * len(weights) - 1), fill=UNREADABLE)
    for t, row in enumerate(weights):
        y = TOP + t * cell
        painter.rectangle((left, y, left + NULL - 1, y + inner - 1), fill=shade(row[0], colour))
        for j in np.flatnonzero(~np.isnan(row[1:])):
            x = right + int(j) * cell
            painter.rectangle((x, y, x + inner - 1, y + inner - 1), fill=shade(row[1 + j], colour))


def _draw_marks(painter: ImageDraw.ImageDraw, steps: list[int], left: int, cell: int) -> None:
    """A small triangle above each of these columns."""
    for step in steps:
        middle = left + NULL + 6 + step * cell + cell // 2
        painter.polygon(((middle - 3, TOP - 7), (middle + 3, TOP - 7), (middle, TOP - 2)), fill=TEXT)


def _draw_scale(painter: ImageDraw.ImageDraw, length: int, left: int, cell: int, first: bool) -> None:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if step * cell >= 24)
    for step in range(0, length, every):
        middle = step * cell + cell // 2
        painter.text((left + NULL + 6 + middle, TOP + length * cell + 4), str(step), fill=DIM, anchor="ma")
        if first:
            painter.text((left - 6, TOP + middle), str(step), fill=DIM, anchor="rm")


def save_still(episode: Episode, path: str | Path, title: str) -> None:
    """Writes ``draw_still`` as a PNG."""
    draw_still(episode, title).save(path)
