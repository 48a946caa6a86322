"""The colours that films, stills and pages share: one for each layer, and what attention looks like in it."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

LAYERS: tuple[Colour, ...] = (
    (255, 200, 60),
    (80, 200, 255),
    (255, 120, 170),
    (140, 230, 120),
    (190, 150, 255),
    (255, 150, 90),
)
BACKGROUND, TEXT, DIM = (22, 23, 27), (228, 228, 232), (140, 142, 152)
UNREADABLE, NOTHING = (34, 35, 41), (58, 60, 70)  # a slot that cannot be read, and one to which no attention is paid


def of_layer(layer: int) -> Colour:
    """The colour of the layer of that index; after the last they begin anew."""
    return LAYERS[layer % len(LAYERS)]


def shade(weight: float, colour: Colour) -> Colour:
    """An attention of 0 to 1, on a square-root scale so that an even look at many slots can still be seen."""
    if np.isnan(weight):
        return UNREADABLE
    red, green, blue = (round(a + (b - a) * weight**0.5) for a, b in zip(NOTHING, colour, strict=True))
    return red, green, blue
