"""Draws the reports of ``benchmarks.supervised.compare``, each beside its file.

python -m benchmarks.supervised.draw benchmarks/results/supervised_walk.json [FILE.json ...]
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.drawing import Drawn, Rows, main

CORES = {
    "feedback": ("Feedback Transformer", "tab:blue"),
    "transformer": ("Transformer, as many layers and parameters", "tab:orange"),
    "transformer_2x": ("Transformer, twice the layers", "tab:green"),
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


DRAWN: Drawn = {"supervised": draw_supervised}

if __name__ == "__main__":
    main(DRAWN, __doc__)
