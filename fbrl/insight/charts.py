"""The charts of a diagnosis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fbrl.evaluation import Summary
from fbrl.insight.colours import of_layer
from fbrl.insight.diagnosis import probe_by_age, score
from fbrl.insight.probe import Probed
from fbrl.insight.seen import Floats


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # of the extra ``diagnose``
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_performance(summaries: dict[str, Summary], path: Path) -> None:
    """Success, or the return, under each memory that was tampered with."""
    success = summaries["whole"].success is not None
    figure, axes = _figure("What the agent does without parts of its memory", "", "success" if success else "return")
    names, scores = list(summaries), [score(one) for one in summaries.values()]
    estimates = [one.returns if one.success is None else one.success for one in summaries.values()]
    errors = [
        (0.0, 0.0) if np.isnan(one.low) else (max(0, one.value - one.low), max(0, one.high - one.value))
        for one in estimates
    ]
    axes.bar(names, scores, yerr=np.array(errors).T, color="#3a86c8", capsize=3)
    if success:
        axes.set_ylim(0, 1.05)
    axes.tick_params(axis="x", rotation=30)
    figure.savefig(path)


def draw_ages(by_age: Floats, path: Path) -> None:
    """How old what each layer reads is."""
    figure, axes = _figure("How old what is read is", "steps ago", "share of the attention")
    for layer, row in enumerate(by_age):
        colour = [part / 255 * 0.85 for part in of_layer(layer)]
        axes.plot(np.arange(1, len(row)), row[1:], marker=".", color=colour, label=f"layer {layer + 1}")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_probe(probed: Probed, path: Path) -> None:
    """What the probe reads, against age."""
    figure, axes = _figure(f"A linear probe of the memory: {probed.label}", "steps since it was shown", "read right")
    rows = probe_by_age(probed)
    axes.plot([last for _, last, _, _ in rows], [right for _, _, right, _ in rows], marker="o", color="#3a86c8")
    axes.axhline(probed.chance, color="grey", linestyle="--", label="the most frequent value")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_contamination(after: Floats, path: Path) -> None:
    """How far the policy is off after an odd observation."""
    figure, axes = _figure("After one odd observation", "steps since it", "KL of the policy, nats")
    steps = np.arange(1, 1 + len(after))
    axes.plot(steps, after[:, 0], color="#3a86c8", label="mean")
    axes.plot(steps, after[:, 1], color="#3a86c8", linestyle=":", label="one in ten is above")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path)
