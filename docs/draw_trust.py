"""Draws ``docs/_static/trust.svg``: what of an agent's files is read, and how, when it is loaded.

python docs/draw_trust.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

TARGET = Path(__file__).parent / "_static" / "trust.svg"
FILE, PART, AGENT, READ, RUN = "#f2f2f2", "#cfe3f7", "#ffd166", "#2f6fb0", "#d1495b"
WIDTH, HEIGHT = 2.3, 0.5
READS = [  # height of a part, its text, how it is read
    (3.0, "config.yaml", "plain YAML: the task and its spaces"),
    (2.0, "data, in the .zip", "its pickles looked through, nothing called: sizes and classes"),
    (1.0, "policy.pth, in the .zip", "torch.load(weights_only=True): the weights"),
]


def box(axes: Axes, x: float, y: float, text: str, colour: str, height: float = HEIGHT) -> None:
    """A rounded box with its middle at (x, y)."""
    corner = (x - WIDTH / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, WIDTH, height, "round,pad=0.05", facecolor=colour, edgecolor="#555555"))
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, dashed: bool = False) -> None:
    """An arrow between two points."""
    style = "--" if dashed else "-"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linestyle=style))


def main() -> None:
    """Draws the figure."""
    figure, axes = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
    axes.set(xlim=(0, 9.8), ylim=(-0.4, 3.4))
    axes.axis("off")
    box(axes, 8.5, 1.5, "the agent", AGENT, height=3.5)
    for y, name, how in READS:
        box(axes, 1.3, y, name, PART)
        arrow(axes, (2.5, y), (7.3, y), READ)
        axes.text(2.7, y + 0.06, how, fontsize=9, color=READ, va="bottom")
    box(axes, 1.3, 0, "data, in the .zip", PART)
    arrow(axes, (2.5, 0), (7.3, 0), RUN, dashed=True)
    axes.text(2.7, 0.06, "only with --trust: unpickled, which runs what they say", fontsize=9, color=RUN, va="bottom")
    figure.savefig(TARGET, metadata={"Date": None})


if __name__ == "__main__":
    main()
