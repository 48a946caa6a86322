"""A walk whose every cell is to be named from the actions alone: after the random walk of Fan et al. 2020.

An agent stands in a corner of a grid and looks along a side. At every step it turns left, turns right or goes one cell
forward, each as probable as the next; at a wall it stays. The actions are read, and after each the cell is asked.

A re-creation: the authors' code (facebookresearch/transformer-sequential) holds no walk. The grid's size, the actions,
where the walk begins, its length and what happens at a wall are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

LEFT, RIGHT, FORWARD = range(3)
WAYS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # east, south, west, north; a turn to the right adds one


@dataclass(frozen=True)
class Walk:
    """The task.

    Args:
        side: the grid has as many cells a side.
        steps: of a walk.
    """

    side: int = 8
    steps: int = 32

    n_tokens = 3
    n_places = 1

    def __post_init__(self) -> None:
        for name in ("side", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def n_answers(self) -> int:
        """The number of cells."""
        return self.side**2

    def sample(self, rng: Random, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Actions (B, T, 1), and the cell after each, (B, T): row times side plus column."""
        actions = np.random.default_rng(rng.getrandbits(64)).integers(3, size=(batch, self.steps))
        return actions[..., None], self.cells(actions)

    def cells(self, actions: NDArray[np.int64], walls: bool = True) -> NDArray[np.int64]:
        """Where actions (B, T) lead, (B, T); without walls, the cell nearest to where the agent would be."""
        way = ((actions == RIGHT).cumsum(axis=1) - (actions == LEFT).cumsum(axis=1)) % len(WAYS)
        moves = WAYS[way] * (actions == FORWARD)[..., None]  # (B, T, 2)
        places = moves.cumsum(axis=1).clip(0, self.side - 1)
        if walls:
            place = np.zeros((len(actions), 2), dtype=np.int64)
            for t in range(actions.shape[1]):
                places[:, t] = place = (place + moves[:, t]).clip(0, self.side - 1)
        cells: NDArray[np.int64] = places @ np.array([self.side, 1])
        return cells

    def rules(self, rng: Random, batch: int) -> dict[str, float]:
        """The accuracy of a rule that counts moves and knows of no walls."""
        actions, cells = self.sample(rng, batch)
        return {"without walls": float((self.cells(actions[..., 0], walls=False) == cells).mean())}
