"""Draws the reports of the benchmarks of speed and of the core on its own, each beside its file.

python -m benchmarks.draw benchmarks/results/scan.json [FILE.json ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.agents import OURS, RIVAL, SHARED
from fbrl.settings import SettingsError, fail

LABELS = {OURS: "fbrl", RIVAL: "RecurrentPPO", SHARED: "RecurrentPPO, one LSTM"}
COLOURS = {OURS: "tab:blue", RIVAL: "tab:gray", SHARED: "silver"}
FORMS = {
    "fast_over_plain": ("the plain form", "tab:blue", "o"),
    "fast_over_lucidrains": ("feedback-transformer-pytorch", "tab:orange", "s"),
    "fast_over_passes_2": ("two parallel passes", "tab:green", "d"),
    "fast_over_lstm_L": ("torch's LSTM, L layers", "tab:gray", "^"),
}
CORES = {
    "feedback": ("Feedback Transformer", "tab:blue"),
    "transformer": ("Transformer, as many layers and parameters", "tab:orange"),
    "transformer_2x": ("Transformer, twice the layers", "tab:green"),
}
SHARES = {"environment": "tab:green", "acting": "tab:blue", "update": "tab:orange", "other": "lightgray"}
Rows = list[dict[str, Any]]


def draw_scan(rows: Rows) -> Figure:
    """Every size's ratios on a logarithmic axis."""
    figure = plt.figure(figsize=(7, 1.4 + 0.24 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    heights = range(len(rows))
    for column, (label, colour, marker) in FORMS.items():
        shown = [y for y in heights if rows[y][column] is not None]
        if shown:
            axes.plot([rows[y][column] for y in shown], shown, marker, color=colour, markersize=5, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(heights, [" ".join(f"{name}{row[name]}" for name in "DLHMTB") for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(color="whitesmoke")
    axes.set(xlabel="its time over the fast form's", title="The scan, forward and backward")
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(FORMS))
    return figure


def draw_throughput(rows: Rows) -> Figure:
    """Where a thousand steps' time goes, by contender; one panel a setup."""
    setups = list(dict.fromkeys(setup_of(row) for row in rows))
    figure = plt.figure(figsize=(7, 1 + 1.9 * len(setups)), dpi=150, layout="constrained")
    panels = figure.subplots(len(setups), sharex=True, squeeze=False)
    for setup, axes in zip(setups, panels[:, 0], strict=True):
        shown = [row for row in rows if setup_of(row) == setup]
        labels = [f"{LABELS[row['agent']]}, {row['processes']} x {row['threads']}" for row in shown]
        left = [0.0] * len(shown)
        for name, colour in SHARES.items():
            widths = [1000 * row["shares"][name] / row["steps_per_second"] for row in shown]
            axes.barh(labels, widths, left=left, color=colour, label=name)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for y, (row, end) in enumerate(zip(shown, left, strict=True)):
            axes.text(end, y, f" {row['steps_per_second']:,.0f} steps/s", va="center", fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{setup}; {round(shown[0]['parameters'], -3):,} parameters", fontsize=8, loc="left")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=len(SHARES))
    panels[-1, 0].set_xlabel("seconds for 1,000 environment steps (processes x threads)")
    return figure


def draw_latency(rows: Rows) -> Figure:
    """One call by batch size beside RecurrentPPO's, and the cost of a step against the length of the episode."""
    figure = plt.figure(figsize=(7, 3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for style, size in zip(("-o", "--s"), dict.fromkeys(core_size(row) for row in rows), strict=False):
        shown = [row for row in rows if core_size(row) == size]
        for agent in (OURS, RIVAL):
            spent = [row["milliseconds"][agent] for row in shown]
            label = f"{LABELS[agent]}, D {shown[0]['D']}"
            left.plot([row["batch"] for row in shown], spent, style, color=COLOURS[agent], markersize=4, label=label)
    left.set(xlabel="batch", ylabel="milliseconds", title="One predict", xscale="log", yscale="log")
    left.set_xticks(sorted({row["batch"] for row in rows}))
    left.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20, 50])
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    for row in rows:
        if "episode" in row:
            points = len(row["episode"])
            steps = [(index + 0.5) * row["steps"] / points for index in range(points)]
            right.plot(steps, row["episode"], linewidth=1.2, label=core_size(row))
    right.set(xlabel="steps since the episode began", title="Late in an episode", ylim=(0, None))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    right.xaxis.set_major_locator(MaxNLocator(4))
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    return figure


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


def setup_of(row: dict[str, Any]) -> str:
    """Under what contenders were compared, in words."""
    engine = "" if row["engine"] == "minigrid" else f" of {row['engine']}"
    return f"{core_size(row)}; {row['n_envs']} environments{engine}, minibatches of {row['batch_size']}"


def core_size(row: dict[str, Any]) -> str:
    """The size of a core in words."""
    return ", ".join(f"{name} {row[name]}" for name in "DLHM")


DRAWN: dict[str, Callable[[Rows], Figure]] = {
    "scan": draw_scan,
    "throughput": draw_throughput,
    "latency": draw_latency,
    "supervised": draw_supervised,
}


def draw(source: Path) -> Path:
    """Draws one report beside itself; raises ValueError where the file is none."""
    report = json.loads(source.read_text())
    if not isinstance(report, dict) or report.get("benchmark") not in DRAWN:
        raise SettingsError(f"{source}: no report of a benchmark; expected {', '.join(DRAWN)}")
    try:
        figure = DRAWN[report["benchmark"]](report["rows"])
    except KeyError as error:
        raise SettingsError(f"{source}: a report without {error}; expected what this version writes") from None
    target = source.with_suffix(".png")
    figure.savefig(target)
    plt.close(figure)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    try:
        for source in parser.parse_args(arguments).json:
            print(draw(source))
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
