"""What the runs of ``benchmarks.learning.compare`` say: one CSV row a run, tables with intervals, learning curves.

    python -m benchmarks.learning.tables

Reads ``benchmarks/results/compare/``; writes ``benchmarks/results/compare.csv``, a picture for each suite beside its
results, and the tables between the marks in RESULTS.md. A figure in a table is of the seeds that have finished; how
many of how many those are is told beside it.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.learning import control, curves, endless, transfer
from benchmarks.learning.intervals import interquartile_mean, mean, probability_of_improvement
from benchmarks.learning.results import TARGET, read_result
from benchmarks.learning.suite import RESULTS, SUITES, Suite, load_suite
from benchmarks.report import ROOT
from benchmarks.supervised import compare as supervised
from benchmarks.supervised import memories
from experiment.parsing import fail
from experiment.settings import SettingsError
from fbrl.evaluation import Estimate, wilson

PAGE = ROOT / "RESULTS.md"
CSV = RESULTS.with_suffix(".csv")
COLUMNS = (
    *("task", "core", "seed", "steps", "success", "success_interval", "steps_to_95", "parameters", "steps_per_second"),
    *("suite", "finished", "exact", "episodes", "return", "success_zero_memory", "best_at"),
)
MANY = 7  # cores: of more, curves cannot be told apart
ACROSS = 5  # panels in a row of a picture
RIVAL = "lstm"  # what the probability of improvement is over
ENOUGH = 3  # seeds of both cores, at least, before one is called better than the other
# alike in all pictures
COLOURS = ("feedback", "transformer_xl", "lstm", "gru", "memoryless", "frame_stack", "mingru", "linear_attention")
Result = dict[str, Any]


def read_results(suite: Suite) -> list[Result]:
    """The results that a suite has so far, finished or not, in its order."""
    return [result for result in map(read_result, suite.runs) if result is not None]


def write_csv(results: Iterable[Result], path: Path) -> None:
    """One row for each run; intervals as LOW..HIGH."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for result in results:
            writer.writerow([_as_cell(result[column]) for column in COLUMNS])


def _as_cell(value: Any) -> Any:
    if isinstance(value, list):
        return "..".join(f"{end:.6g}" for end in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def table(suite: Suite, results: list[Result]) -> str:
    """A suite's runs as Markdown: a row for each core on each task, and on all if it has as many seeds of each.

    Of a single seed there is no interval. A column that would be empty is left out.
    """
    done = [result for result in results if result["finished"]]
    planned = len({run.seed for run in suite.runs})
    rows = []
    for task in suite.tasks:
        for core in suite.cores:
            of_cell = [result for result in done if (result["task"], result["core"]) == (task, core)]
            begun = [r for r in results if (r["task"], r["core"]) == (task, core) and not r["finished"]]
            seeds = f"{len(of_cell)} of {planned}" + (f", {_unfinished(begun)}" if begun else "")
            parameters = f"{of_cell[0]['parameters']:,}" if of_cell else ""
            rows.append([task, core, parameters, seeds, *_cells([of_cell], _scores(done, [task], RIVAL), core)])
    if len(suite.tasks) > 1:
        for core in suite.cores:
            by_task = [[r for r in done if (r["task"], r["core"]) == (task, core)] for task in suite.tasks]
            if len(by_task[0]) >= 2 and len({len(of_task) for of_task in by_task}) == 1:
                seeds = f"{len(by_task[0])} of each task"
                rows.append(["all", core, "", seeds, *_cells(by_task, _scores(done, suite.tasks, RIVAL), core)])
    told = "return" if all(result["success"] is None for result in done) and done else "success"
    head = ["task", "core", "parameters", "seeds", told, "IQM", "better than LSTM", "solved", "steps to 95 %"]
    columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    head, *rows = map(list, zip(*columns, strict=True))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _unfinished(begun: list[Result]) -> str:
    return "unfinished: " + ", ".join(f"{score(r):.2f} at {r['steps'] / 1e6:.2f} M" for r in begun)


def _scores(done: list[Result], tasks: Iterable[str], core: str) -> list[np.ndarray[Any, Any]]:
    return [np.array([score(r) for r in done if (r["task"], r["core"]) == (task, core)]) for task in tasks]


def _cells(by_task: list[list[Result]], rival: list[np.ndarray[Any, Any]], core: str) -> list[str]:
    """Success, interquartile mean, probability of improvement, share of seeds solved, steps to 95 %."""
    results = [result for of_task in by_task for result in of_task]
    if not results:
        return [""] * 5
    scores = [np.array([score(result) for result in of_task]) for of_task in by_task]
    reports = all(result["success"] is not None for result in results)
    solved = _interval(wilson(sum(result["success"] >= TARGET for result in results), len(results))) if reports else ""
    better = ""
    if core != RIVAL and min(len(task) for task in (*scores, *rival)) >= ENOUGH:
        better = _interval(probability_of_improvement(scores, rival))
    reached = sorted(result["steps_to_95"] or math.inf for result in results)
    steps = ", ".join("never" if math.isinf(at) else f"{at / 1e6:.2f} M" for at in reached) if reports else ""
    middle = _interval(interquartile_mean(scores)) if len(results) >= 4 else ""  # of fewer, no quarter is left out
    return [_interval(mean(scores)), middle, better, solved, steps]


def score(result: Result) -> float:
    """The success; of a task that reports none, the return."""
    return float(result["return"] if result["success"] is None else result["success"])


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def draw(suite: Suite, results: list[Result], target: Path) -> None:
    """A panel for each task: learning curves, or, of more cores than can be told apart, where their runs ended."""
    tasks = [task for task in suite.tasks if any(result["task"] == task for result in results)]
    across = min(len(tasks), ACROSS)
    rows = math.ceil(len(tasks) / across)
    figure = plt.figure(figsize=(1 + 4.6 * across, 4.2 * rows), dpi=130, layout="constrained")
    panels = figure.subplots(rows, across, sharey=True, squeeze=False).flatten()
    for axes in panels[len(tasks) :]:
        axes.remove()
    panels = panels[: len(tasks)]
    for task, axes in zip(tasks, panels, strict=True):
        of_task = [result for result in results if result["task"] == task]
        axes.set(title=task)
        axes.grid(color="whitesmoke")
        if len(suite.cores) > MANY:
            draw_ends(axes, of_task, suite.cores)
        else:
            draw_curves(axes, of_task, suite.cores)
    if len(suite.cores) <= MANY:
        reports = any(result["success"] is not None for result in results)
        for axes in panels[::across]:
            axes.set_ylabel(f"{'success' if reports else 'return'}, most probable action")
        labels = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            labels.values(), labels.keys(), loc="outside lower center", ncols=min(5, 1 + 2 * across), fontsize=8
        )
    figure.savefig(target)
    plt.close(figure)


def draw_ends(axes: Axes, results: list[Result], cores: Iterable[str]) -> None:
    """A row for each core, a dot for each of its runs at its success, hollow where it has not finished, and beside it
    when they reached 95 %.
    """
    names = list(cores)
    for result in results:
        at, row = result["steps_to_95"], names.index(result["core"])
        fill: Literal["full", "none"] = "full" if result["finished"] else "none"
        axes.plot(score(result), row, "o", color="tab:gray" if at is None else "tab:blue", alpha=0.6, fillstyle=fill)
    for row, name in enumerate(names):
        reached = [r["steps_to_95"] for r in results if r["core"] == name and r["steps_to_95"]]
        if reached:
            axes.text(1.04, row, ", ".join(f"{at / 1e6:.2f} M" for at in sorted(reached)), va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="success; beside it the steps to 95 %", xlim=(-0.05, 1.6), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks([0, 0.5, 1])


def draw_curves(axes: Axes, results: list[Result], cores: Iterable[str]) -> None:
    """Every run thin, the mean of a core's runs thick, its 95 % interval as a band."""
    for number, core in enumerate(cores):
        of_core = [result for result in results if result["core"] == core]
        if of_core:
            place = COLOURS.index(core) if core in COLOURS else len(COLOURS) + number
            draw_core(axes, of_core, f"C{place}", core)
    axes.set(xlabel="environment steps (millions)")
    if any(result["success"] is not None for result in results):  # returns may lie anywhere
        axes.set(ylim=(0, 1.03))


def draw_core(axes: Axes, results: list[Result], colour: str, label: str) -> None:
    """One core's runs on one task; the mean is of those that have finished.

    A finished run that ended before its budget had succeeded, and keeps its last value.
    """
    curves = []
    for result in results:
        evaluations = result["evaluations"]
        values = [r if s is None else s for s, r in zip(evaluations["success"], evaluations["return"], strict=True)]
        steps, scores = np.array(evaluations["timesteps"]), np.array(values)
        axes.plot(steps / 1e6, scores, color=colour, alpha=0.25, linewidth=0.8)
        if result["finished"]:
            curves.append((steps, scores))
    if not curves:
        return
    grid = np.linspace(max(steps[0] for steps, _ in curves), max(steps[-1] for steps, _ in curves), 60)
    means = np.array([np.interp(grid, steps, scores) for steps, scores in curves])
    axes.plot(grid / 1e6, means.mean(axis=0), color=colour, linewidth=2.2, label=label)
    if len(curves) > 1:
        band = [mean([at]) for at in means.T]
        axes.fill_between(grid / 1e6, [e.low for e in band], [e.high for e in band], color=colour, alpha=0.12)


def put_into(text: str, mark: str, content: str) -> str:
    """The text with what stands between ``<!-- mark -->`` and ``<!-- end -->`` replaced.

    Raises:
        SettingsError: where there is no such mark.
    """
    pattern = rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)"
    text, found = re.subn(pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text, flags=re.DOTALL)
    if not found:
        raise SettingsError(
            f"{PAGE.name}: holds no <!-- {mark} --> followed by <!-- end -->, between which a table goes"
        )
    return text


def put_others(text: str) -> str:
    """The text with the tables that are not of suites: each is made from result files of its own."""
    found = {"transfer": transfer.table(), "supervised": supervised.table(), "curves": curves.table()}
    found |= {"control": control.table(), "endless": endless.table()}
    found |= {"memories": memories.table(), "memories rates": memories.rates(), "memories longer": memories.longer()}
    for name, table in found.items():
        text = put_into(text, name, table)
    return text


def main() -> None:
    """The script."""
    text, everything = put_others(PAGE.read_text()), []
    for file in sorted(SUITES.glob("*.yaml")):
        suite = load_suite(file)
        results = read_results(suite)
        everything += results
        text = put_into(text, f"suite {suite.name}", table(suite, results))
        if results:
            draw(suite, results, RESULTS / f"{suite.name}.png")
    write_csv(everything, CSV)
    PAGE.write_text(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
