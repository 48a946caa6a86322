"""Draws the reports of the benchmarks of speed, each beside its file.

python -m benchmarks.speed.draw benchmarks/results/scan.json [FILE.json ...]
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.drawing import Drawn, Rows, main
from benchmarks.speed.contenders import LONG, OURS, RIVAL, SHARED

LABELS = {OURS: "fbrl", RIVAL: "RecurrentPPO", SHARED: "RecurrentPPO, one LSTM"}
COLOURS = {OURS: "tab:blue", RIVAL: "tab:gray", SHARED: "silver"}
FORMS = {
    "fast_over_plain": ("the plain form", "tab:blue", "o"),
    "fast_over_lucidrains": ("feedback-transformer-pytorch", "tab:orange", "s"),
    "fast_over_passes_2": ("two parallel passes", "tab:green", "d"),
    "fast_over_lstm_L": ("torch's LSTM, L layers", "tab:gray", "^"),
}
SHARES = {"environment": "tab:green", "acting": "tab:blue", "update": "tab:orange", "other": "lightgray"}


def draw_scan(rows: Rows) -> Figure:
    """Every size's ratios on a logarithmic axis."""
    figure = plt.figure(figsize=(7, 1.4 + 0.24 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    heights = range(len(rows))
    for column, (label, colour, marker) in FORMS.items():
        shown = [y for y in heights if rows[y][column] is not None]
        if shown:
            axes.plot([rows[y][column] for y in shown], shown, marker, color=colour, markersize=5, label=label)
    shown = [y for y in heights if rows[y].get("compiled_over_fast")]
    if shown:
        times = [1 / rows[y]["compiled_over_fast"] for y in shown]
        axes.plot(times, shown, "*", color="tab:red", markersize=7, label="the compiled form")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(heights, [" ".join(f"{name}{row[name]}" for name in "DLHMTB") for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.grid(color="whitesmoke")
    axes.set(xlabel="its time over the fast form's", title="The scan, forward and backward")
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
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
        axes.margins(x=0.2)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{setup}; {round(shown[0]['parameters'], -3):,} parameters", fontsize=7, loc="left")
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


def draw_export(rows: Rows) -> Figure:
    """How many times as fast as ``predict`` an exported step is, by core; one panel a size."""
    sizes = list(dict.fromkeys(core_size(row) for row in rows))
    figure = plt.figure(figsize=(7, 3.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for size, axes in zip(sizes, panels, strict=True):
        shown = [row for row in rows if core_size(row) == size]
        for place, batch in enumerate(sorted({row["batch"] for row in shown})):
            of_batch = [row for row in shown if row["batch"] == batch]
            heights = [y + 0.4 * place for y in range(len(of_batch))]
            bars = axes.barh(heights, [row["over_predict"] for row in of_batch], height=0.38, label=f"batch {batch}")
            axes.bar_label(bars, fmt=" %.1f", fontsize=6)
        axes.set_yticks([y + 0.2 for y in range(len(of_batch))], [row["core"] for row in of_batch], fontsize=7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_title(size, fontsize=8)
        axes.margins(x=0.2)
    panels[0].invert_yaxis()
    figure.suptitle("predict's time over the exported step's", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2)
    return figure


def setup_of(row: dict[str, Any]) -> str:
    """Under what contenders were compared, in words."""
    engine = "" if row["engine"] == "minigrid" else f" of {row['engine']}"
    task = row.get("task", LONG)  # what older reports do not say
    return f"{task}; {core_size(row)}; {row['n_envs']} environments{engine}, minibatches of {row['batch_size']}"


def core_size(row: dict[str, Any]) -> str:
    """The size of a core in words."""
    return ", ".join(f"{name} {row[name]}" for name in "DLHM")


DRAWN: Drawn = {"scan": draw_scan, "throughput": draw_throughput, "latency": draw_latency, "export": draw_export}

if __name__ == "__main__":
    main(DRAWN, __doc__)
