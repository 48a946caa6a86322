"""Draws ``docs/_static/method.svg``: which step's layers read what.

python docs/draw_method.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

LAYERS, STEPS = 3, 4
NOW_X = 6.6  # where the last step stands; the others are 2 apart
TOP = LAYERS + 1.1  # where the memory vectors stand
TARGET = Path(__file__).parent / "_static" / "method.svg"
MEMORY, LAYER, NOW, READS, WRITES = "#ffd166", "#cfe3f7", "#2f6fb0", "#d1495b", "#c9a227"


def box(axes: Axes, x: float, y: float, text: str, colour: str, edge: str = "#555555") -> None:
    """A rounded box with its middle at (x, y)."""
    axes.add_patch(
        FancyBboxPatch((x - 0.45, y - 0.2), 0.9, 0.4, "round,pad=0.04", facecolor=colour, edgecolor=edge, linewidth=1)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    """An arrow between two points."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.1, connectionstyle=style, zorder=0
        )
    )


def draw_window(axes: Axes) -> None:
    """The frame round the memory vectors, and the way from it to every layer of the last step."""
    axes.add_patch(
        FancyBboxPatch(
            (0.27, TOP - 0.25), 5.06, 0.5, "round,pad=0.08", facecolor="none", edgecolor=READS, linewidth=1.6
        )
    )
    axes.text(0.2, TOP + 0.5, "the window: one vector a step", ha="left", fontsize=11)
    bus = NOW_X - 0.8
    axes.plot([5.41, bus, bus], [TOP, TOP, 1], color=READS, linewidth=1.6, label="reads: every layer, all of it")
    for layer in range(1, LAYERS + 1):
        arrow(axes, (bus, layer), (NOW_X - 0.49, layer), READS)
    axes.plot([], [], color=WRITES, label="writes: a mix of all layers")
    axes.legend(loc="upper right", fontsize=9, frameon=False)


def main() -> None:
    """Draws the figure."""
    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    names = ["t - 3", "t - 2", "t - 1", "t"]
    for step, name in enumerate(names):
        now = step == STEPS - 1
        x = NOW_X if now else 2.0 * step
        for layer in range(LAYERS + 1):
            text = f"$x^{layer}$" + (" (encoder)" if layer == 0 else "")
            box(axes, x, 1.0 * layer, text, LAYER if now else "#eef2f6", NOW if now else "#999999")
            if layer:
                arrow(axes, (x, layer - 0.76), (x, layer - 0.26), NOW if now else "#999999")
        axes.text(x, -0.55, f"step {name}", ha="center", fontsize=10)
        if not now:
            box(axes, x + 0.8, TOP, rf"$m_{{{name.replace(' ', '')}}}$", MEMORY)
            for layer in range(LAYERS + 1):
                arrow(axes, (x + 0.49, layer), (x + 0.8, TOP - 0.4), WRITES, bend=0.12)
    draw_window(axes)
    axes.set_xlim(-0.7, NOW_X + 0.6)
    axes.set_ylim(-0.8, LAYERS + 2.25)
    axes.axis("off")
    figure.savefig(TARGET, metadata={"Date": None})
    print(TARGET)


if __name__ == "__main__":
    main()
