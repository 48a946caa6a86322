"""Draws the reports of ``benchmarks.supervised.compare`` and ``benchmarks.supervised.memories``, each beside its file.

python -m benchmarks.supervised.draw benchmarks/results/supervised_walk.json [FILE.json ...]
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.drawing import Drawn, Rows, main
from benchmarks.supervised import memories

CORES = {
    "feedback": ("Feedback Transformer", "tab:blue"),
    "transformer": ("Transformer, as many layers and parameters", "tab:orange"),
    "transformer_2x": ("Transformer, twice the layers", "tab:green"),
}

COLOURS = {  # as in benchmarks.learning.tables
    "feedback": "C0",
    "transformer_xl": "C1",
    "lstm": "C2",
    "gru": "C3",
    "mingru": "C6",
    "linear_attention": "C7",
}


def draw_supervised(rows: Rows) -> Figure:
    """Held-out accuracy while learning, a line a seed, and at the end by the step at which the answer is due."""
    figure = plt.figure(figsize=(7, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for core, (label, colour) in CORES.items():
        shown = [row for row in rows if row["core"] == core]
        for number, row in enumerate(shown):
            seeds = f"{label} ({len(shown)} seed{'s' * (len(shown) > 1)})"
            line = {"color": colour, "alpha": 0.7, "linewidth": 1.2, "label": None if number else seeds}
            left.plot(row["curve"]["steps"], row["curve"]["accuracy"], **line)
            asked, correct = np.array(row["asked_by_step"]), np.array(row["right_by_step"])
            due = asked >= 30  # of fewer there is no share to speak of
            right.plot(1 + np.flatnonzero(due), correct[due] / asked[due], **line)
    for (name, accuracy), style in zip(rows[0]["baselines"].items(), (":", "--"), strict=False):
        left.axhline(accuracy, color="black", linewidth=0.8, linestyle=style, label=f"{name} (a rule)")
    left.set(xlabel="updates", ylabel="right answers", ylim=(0, 1.03), title="Held-out sequences")
    right.set(xlabel="step of the sequence", title="At the end, by step")
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.grid(color="whitesmoke")
    task = ", ".join(f"{name} {value}" for name, value in rows[0]["task"].items())
    figure.suptitle(f"{rows[0]['name']}: {task}", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2)
    return figure


def draw_memories(rows: Rows) -> Figure:
    """A column a task: right answers by how many things there are, and, of the most, after how many changes.

    Lines are means over seeds; bands reach from the worst to the best.
    """
    cells = memories.chosen(rows)
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    figure = plt.figure(figsize=(7, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(tasks), sharey=True, squeeze=False)
    for (upper, lower), task in zip(panels.T, tasks, strict=True):
        sizes = sorted({things for name, things, _ in cells if name == task})
        without = next(of_cell for (name, _, _), of_cell in cells.items() if name == task)[0]["baselines"][
            "without memory"
        ]
        for axes in (upper, lower):
            axes.axhline(without, color="black", linewidth=0.8, linestyle=":", label="best without memory")
            axes.tick_params(labelsize=7)
            axes.grid(color="whitesmoke")
        for core, colour in COLOURS.items():
            at = [things for things in sizes if (task, things, core) in cells]
            found = [[row["accuracy"]["value"] for row in cells[task, things, core]] for things in at]
            if found:
                _line(upper, at, found, colour, core, "o-")
            if (task, sizes[-1], core) in cells:
                by_change = memories.by_change(cells[task, sizes[-1], core])
                _line(lower, range(by_change.shape[1]), by_change.T.tolist(), colour, core, "-")
        upper.set_title(memories.TITLES[task], fontsize=8)
        upper.set_xlabel("things", fontsize=8)
        upper.set_xticks(sizes)
        lower.set_xlabel(f"changes before the answer ({sizes[-1]} things)", fontsize=8)
        lower.set_ylim(0, 1.03)
    figure.supylabel("right answers", fontsize=8)
    labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(*labels, fontsize=7, loc="outside lower center", ncols=4)
    return figure


def _line(axes: Axes, at: Sequence[int], found: Sequence[Sequence[float]], colour: str, label: str, style: str) -> None:
    """Means of what seeds gave, and a band from the least to the most."""
    axes.plot(at, [np.mean(values) for values in found], style, color=colour, label=label, linewidth=1.3, markersize=3)
    axes.fill_between(
        at, [min(values) for values in found], [max(values) for values in found], color=colour, alpha=0.15
    )


DRAWN: Drawn = {"supervised": draw_supervised, "memories": draw_memories}

if __name__ == "__main__":
    main(DRAWN, __doc__)
