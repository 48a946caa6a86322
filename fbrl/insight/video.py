"""Films of an agent at work: the environment's picture, what each layer reads, and beside it the frame read most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fbrl.insight.colours import BACKGROUND, DIM, TEXT, of_layer, shade
from fbrl.insight.recording import Episode, Picture, by_step
from fbrl.insight.seen import Floats

if TYPE_CHECKING:  # pillow is of the extra ``train``: the library alone does without
    from PIL import Image, ImageDraw

WIDTH = 400  # pixels that a narrow picture is enlarged to, by a whole factor, and a wide one reduced to
SIDE = 190  # pixels, the width of the frames that are read most
BORDER, MARGIN, ROW, LINE = 6, 8, 22, 16  # pixels
LABEL = 46  # pixels left of the slots, for the layers' names
STEP_MS, END_MS = 250, 1500  # how long a step and the end of an episode are shown
COLOURS = 96
MAX_READS = 4  # layers whose most read frame is shown

BORDERS = {None: (90, 90, 100), True: (60, 170, 75), False: (220, 50, 40)}


class Scene(NamedTuple):
    """One picture of the film. The last of an episode shows what the step that led there read."""

    frame: Picture
    attention: Floats | None  # (L, 1 + M), the mean over the heads; None where there is none to show
    read: tuple[Read, ...]  # what each layer reads most
    caption: str
    success: bool | None  # None before the end of an episode, and where the environment does not say
    ended: bool


class Read(NamedTuple):
    """The slot that a layer reads most."""

    layer: int
    slot: int  # its place among the slots, oldest first
    step: int  # of the episode
    share: float  # of the layer's attention
    frame: Picture


def scenes(episodes: Sequence[Episode]) -> list[Scene]:
    """The pictures of a film of these episodes.

    Raises:
        ValueError: where an episode was recorded without pictures.
    """
    found: list[Scene] = []
    for number, episode in enumerate(episodes, start=1):
        for t, step in enumerate(episode.steps):
            if step.frame is None:
                raise ValueError("an episode without pictures makes no film; record it with render_mode='rgb_array'")
            attention = None if step.reads is None else step.reads.mean(axis=1)
            caption = f"episode {number}   step {t}"
            found.append(Scene(step.frame, attention, _most_read(episode, t), caption, None, False))
        if episode.ended and episode.last_frame is not None:
            caption = f"episode {number}   {episode.outcome}, return {episode.returns:.2f}"
            found.append(
                found[-1]._replace(frame=episode.last_frame, caption=caption, success=episode.success, ended=True)
            )
    return found


def _most_read(episode: Episode, t: int) -> tuple[Read, ...]:
    reads = episode.steps[t].reads
    if reads is None or t == 0 or np.isnan(reads[..., -1]).all():
        return ()
    found = []
    for layer, weights in enumerate(by_step(reads, t).mean(axis=1)):
        step = int(weights.argmax())
        frame = episode.steps[step].frame
        assert frame is not None
        found.append(Read(layer, reads.shape[-1] - 1 - (t - step), step, float(weights[step]), frame))
    return tuple(found)


def draw(scene: Scene) -> Image.Image:
    """One picture: frame, caption and slots, the most read frames at the right; green or red once the episode ended."""
    from PIL import Image, ImageDraw

    frame = _fitted(scene.frame, WIDTH, None)
    edge = BORDER + MARGIN
    rows = 0 if scene.attention is None else len(scene.attention)
    side = SIDE + 2 * MARGIN if rows else 0
    height = frame.height + LINE + (LINE + rows * ROW + LINE if rows else 0) + 3 * MARGIN + 2 * BORDER
    image = Image.new("RGB", (WIDTH + side + 2 * edge, height), BORDERS[scene.success])
    painter = ImageDraw.Draw(image)
    painter.rectangle((BORDER, BORDER, image.width - BORDER - 1, image.height - BORDER - 1), fill=BACKGROUND)
    image.paste(frame, (edge + (WIDTH - frame.width) // 2, edge))
    painter.text((edge, edge + frame.height + MARGIN), scene.caption, fill=TEXT)
    if scene.attention is not None:
        _draw_attention(painter, scene, edge, edge + frame.height + MARGIN + LINE)
        _draw_reads(image, painter, scene.read, edge + WIDTH + 2 * MARGIN, height - 2 * edge)
    return image


def _fitted(frame: NDArray[np.uint8], width: int, height: int | None) -> Image.Image:
    """Enlarged by a whole factor, or reduced, to at most this size."""
    from PIL import Image

    scale = width / frame.shape[1] if height is None else min(width / frame.shape[1], height / frame.shape[0])
    scale = int(scale) or scale
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return Image.fromarray(frame).resize((max(1, size[0]), max(1, size[1])), resampling)


def _draw_attention(painter: ImageDraw.ImageDraw, scene: Scene, left: int, top: int) -> None:
    """A row a layer: what is no slot apart, then the slots, the newest at the right; the most read one is framed."""
    assert scene.attention is not None
    slots_left, slots = left + LABEL + ROW + MARGIN, scene.attention.shape[1] - 1
    cell = (WIDTH - LABEL - ROW - MARGIN) / slots
    painter.text((left + LABEL, top), "none", fill=DIM)
    painter.text((slots_left, top), "oldest", fill=DIM)
    painter.text((left + WIDTH, top), "newest memory", fill=DIM, anchor="ra")
    most = {read.layer: read.slot for read in scene.read}
    for layer, row in enumerate(scene.attention):
        y, colour = top + LINE + layer * ROW, of_layer(layer)
        painter.text((left, y + 4), f"layer {layer + 1}", fill=colour)
        painter.rectangle((left + LABEL, y, left + LABEL + ROW - 4, y + ROW - 4), fill=shade(row[0], colour))
        for slot, weight in enumerate(row[1:]):
            x = round(slots_left + slot * cell)
            box = (x, y, max(x, round(x + cell) - 2), y + ROW - 4)
            painter.rectangle(box, fill=shade(weight, colour))
            if most.get(layer) == slot:
                painter.rectangle((box[0] - 1, box[1] - 2, box[2] + 1, box[3] + 2), outline=TEXT)


def _draw_reads(
    image: Image.Image, painter: ImageDraw.ImageDraw, reads: tuple[Read, ...], left: int, height: int
) -> None:
    """The frames that the layers read most, one under the other, each framed in its layer's colour."""
    top, shown = BORDER + MARGIN, sorted(reads, key=lambda read: -read.share)[:MAX_READS]
    for read in sorted(shown, key=lambda read: read.layer):
        colour = of_layer(read.layer)
        frame = _fitted(read.frame, SIDE - 8, height // len(shown) - LINE - MARGIN - 8)
        painter.rectangle((left, top, left + frame.width + 7, top + frame.height + 7), fill=colour)
        image.paste(frame, (left + 4, top + 4))
        top += frame.height + 9
        painter.text((left, top), f"layer {read.layer + 1} reads step {read.step} ({read.share:.0%})", fill=colour)
        top += LINE + MARGIN


def save_video(episodes: Sequence[Episode], path: str | Path) -> None:
    """Writes a film of the episodes: as a GIF that repeats for ever, or by FFmpeg in the format of the file's name.

    Raises:
        ValueError: where an episode was recorded without pictures.
    """
    shown = scenes(episodes)
    if Path(path).suffix == ".gif":
        save_gif(shown, path)
    else:
        _save_film(shown, path)


def save_gif(shown: Sequence[Scene], path: str | Path | BinaryIO) -> None:
    """Writes the scenes as a GIF that repeats for ever."""
    from PIL import Image

    images = [draw(scene).quantize(COLOURS, dither=Image.Dither.NONE) for scene in shown]
    durations = [END_MS if scene.ended else STEP_MS for scene in shown]
    images[0].save(path, save_all=True, append_images=images[1:], format="GIF", duration=durations, loop=0)


def _save_film(shown: list[Scene], path: str | Path) -> None:
    import imageio_ffmpeg  # of the extra ``video``

    pictures = [np.asarray(draw(scene)) for scene in shown]
    height, width = (int(size + size % 2) for size in np.max([picture.shape[:2] for picture in pictures], axis=0))
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=1000 / STEP_MS, macro_block_size=2)
    writer.send(None)
    for scene, picture in zip(shown, pictures, strict=True):
        even = np.zeros((height, width, 3), np.uint8)
        even[: picture.shape[0], : picture.shape[1]] = picture
        for _ in range(END_MS // STEP_MS if scene.ended else 1):
            writer.send(even.tobytes())
    writer.close()
