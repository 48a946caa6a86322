"""A smaller view cut out of MiniGrid's view of 7x7 cells, and what can be seen in it."""

from __future__ import annotations

import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX, STATE_TO_IDX
from numpy.typing import NDArray

FULL = 7
"""Cells along a side of MiniGrid's own view."""


def crop_view(image: NDArray[np.uint8], size: int, see_through_walls: bool) -> NDArray[np.uint8]:
    """What MiniGrid shows through a view of ``size`` x ``size`` cells, from what it shows through 7x7.

    ``image`` (N, 7, 7, 3) uint8: object, colour and state of cell [column, row]; the agent stands in the middle of the
    last row and looks towards row 0. Hands back (N, size, size, 3) uint8, possibly a part of ``image`` itself.
    ``size`` is odd and at most 7; ``see_through_walls`` is the attribute of that name of the task.

    Nothing is lost: what the small view shows, the large one shows too. A cell is in sight if a path of cells that let
    light through leads to it from the agent, and every path inside the small view is one inside the large view.
    The converse fails, since light also goes round a corner that only the large view holds: visibility is worked out
    anew. The agent's cell always lets light through, and so does whatever MiniGrid draws there, the carried object.
    """
    margin = (FULL - size) // 2
    cells = image[:, margin : FULL - margin, FULL - size :]
    if size == FULL or see_through_walls:
        return cells
    closed_door = (cells[..., 0] == OBJECT_TO_IDX["door"]) & (cells[..., 2] != STATE_TO_IDX["open"])
    visible = in_sight(~(closed_door | (cells[..., 0] == OBJECT_TO_IDX["wall"])))
    return np.where(visible[..., None], cells, np.uint8(OBJECT_TO_IDX["unseen"]))


def in_sight(clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells of N views are in sight, from which cells let light through: (N, V, V) bool -> the same, V odd.

    A cell in sight that lets light through shows the cells on both sides and the three in the row before it. This is
    ``Grid.process_vis`` of minigrid 3.2, whose two passes over a row reach exactly these cells.
    """
    size = clear.shape[1]
    visible = np.zeros_like(clear)
    visible[:, size // 2, -1] = True
    for row in reversed(range(size)):
        for _ in range(size - 2):  # steps to the sides: a row starts with its middle or with two neighbours in sight
            _show_beside(visible[..., row], visible[..., row] & clear[..., row])
        if row:
            light = visible[..., row] & clear[..., row]
            visible[..., row - 1] = light
            _show_beside(visible[..., row - 1], light)
    return visible


def _show_beside(visible: NDArray[np.bool_], light: NDArray[np.bool_]) -> None:
    visible[:, 1:] |= light[:, :-1]
    visible[:, :-1] |= light[:, 1:]
