"""Where the memories differ: many things to remember that change on the way (``bindings.py``), for every core.

    python -m benchmarks.supervised.memories                # trains what memories.json does not hold yet
    python -m benchmarks.supervised.memories --task relative cups --things 8 3 5 --updates 4500 \
        --rates benchmarks/results/memories.json \
        --json benchmarks/results/memories_longer.json     # whether more of it changes the picture
    python -m benchmarks.supervised.draw benchmarks/results/memories.json
    python -m benchmarks.learning.tables                    # puts the tables into RESULTS.md

The whole sequence is in reach of every core and back-propagated through. Networks have as many parameters within 10 %,
as many updates, the same batches and the same learning rates to choose from: that of a core on a task of a size is the
one that does best with the first seed, on held-out sequences that nothing is reported on. Longer runs, in a report of
their own, take the rates that memories.json chose.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning.intervals import mean
from benchmarks.report import ROOT, conditions, parameters, write
from benchmarks.supervised.bindings import Cups, Pairs, size_of
from benchmarks.supervised.compare import HELD_OUT
from benchmarks.supervised.reader import Plan, Reader, Score, Trainer, answer, score
from experiment.parsing import fail
from experiment.settings import SettingsError
from fbrl.cores.core import Core
from fbrl.cores.names import CORES, core_kwargs
from fbrl.evaluation import Estimate, wilson

RESULT = ROOT / "benchmarks" / "results" / "memories.json"
LONGER = RESULT.with_name("memories_longer.json")
Task = Pairs | Cups
Row = dict[str, Any]
TASKS: dict[str, tuple[Task, ...]] = {
    "absolute": (Pairs(8, 8, 8),),
    "relative": (Pairs(2, 8, 8, "relative"), Pairs(8, 8, 8, "relative")),
    "cups": (Cups(5, 1, 8), Cups(5, 3, 8), Cups(5, 5, 8)),
}
TITLES = {
    "absolute": "pairs, bound anew",
    "relative": "pairs, also copied and swapped",
    "cups": "balls under 5 swapped cups",
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
SIZES: dict[str, int] = {"d_model": 64, "n_layers": 2, "n_heads": 4}
DIFFERENT: dict[str, dict[str, int]] = {  # for as many parameters
    "feedback": {},
    "transformer_xl": {"d_feedforward": 96},
    "lstm": {"d_model": 60},
    "gru": {"d_model": 69},
    "mingru": {},
    "linear_attention": {"d_feedforward": 64},
}
UPDATES, BATCH, WARM_UP, CLIP = 1500, 32, 100, 1.0


def make_core(name: str, window: int) -> Core:
    """One of ``DIFFERENT``."""
    core: Core = CORES[name][0](**core_kwargs(name, SIZES | {"window": window} | DIFFERENT[name]))
    return core


def train(task: Task, core: str, rate: float, seed: int, updates: int, sequences: int) -> Row:
    """A whole run, and its answers to ``sequences`` held-out ones.

    Those of one sequence hang together, so that the interval of their accuracy is too narrow.
    """
    torch.manual_seed(seed)
    reader = Reader(make_core(core, task.steps), task)
    trainer = Trainer(reader, task, Plan(BATCH, task.steps, updates, rate, WARM_UP, CLIP), seed, "cpu")
    start, processor = time.perf_counter(), time.process_time()
    losses = [trainer.step() for _ in range(updates)]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    shown, found = max(1, updates // 20), ask(reader, task, HELD_OUT + 1, sequences)
    return {
        "parameters": parameters(reader),
        "seconds": seconds,
        "processor_seconds": processor,
        "loss": [float(np.mean(losses[at : at + shown])) for at in range(0, updates, shown)],
        "accuracy_to_choose_by": ask(reader, task, HELD_OUT, sequences).accuracy,
        "accuracy": wilson(int(found.right.sum()), int(found.asked.sum()))._asdict(),
        "asked_by_change": found.asked[size_of(task) :].tolist(),  # after 0, 1, ... changes
        "right_by_change": found.right[size_of(task) :].tolist(),
        "baselines": {"without memory": 1 / task.n_answers} | task.rules(Random(HELD_OUT + 2), sequences),
    }


def ask(reader: Reader, task: Task, seed: int, sequences: int) -> Score:
    """The answers to sequences of a task."""
    tokens, answers = task.sample(Random(seed), sequences)
    return score(answers, answer(reader, tokens, task.steps, "cpu"))


def finished(path: Path) -> list[Row]:
    """The runs that a report holds; raises SettingsError where the file is none."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    if not isinstance(report, dict) or report.get("benchmark") != "memories":
        raise SettingsError(f"{path}: no report of this script; give another --json")
    rows: list[Row] = report["rows"]
    return rows


def of(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Those rows that hold these values, by seed."""
    return sorted((row for row in rows if values.items() <= row.items()), key=lambda row: int(row["seed"]))


def best_rate(rows: Iterable[Row], task: str, things: int, core: str) -> float | None:
    """The learning rate of a core on a task of a size; ``None`` as long as one of them was not tried."""
    tried = of(rows, task=task, things=things, core=core, seed=SEEDS[0])
    found = {row["learning_rate"]: float(row["accuracy_to_choose_by"]) for row in tried}
    return max(RATES, key=lambda rate: found[rate]) if found.keys() >= set(RATES) else None


def run(options: argparse.Namespace) -> None:
    """Trains what the report does not hold yet: every rate with the first seed, then the best with seed after seed."""
    torch.set_num_threads(1)
    cases = [(name, task, core) for name in options.task for task in TASKS[name] for core in options.core]
    cases = [case for case in cases if not options.things or size_of(case[1]) in options.things]
    if options.learning_rate is None and options.rates is None:
        for case in cases:
            for rate in RATES:
                run_one(options, *case, rate, SEEDS[0])
    for seed in options.seed:
        for name, task, core in cases:
            chosen_in = finished(options.rates or options.json)
            best = options.learning_rate or best_rate(chosen_in, name, size_of(task), core)
            if best is None:
                raise SettingsError(f"--rates {options.rates}: not all rates of {core} on {name} were tried")
            run_one(options, name, task, core, best, seed)


def run_one(options: argparse.Namespace, name: str, task: Task, core: str, rate: float, seed: int) -> None:
    """Trains, unless the report has it."""
    row: Row = {"task": name, "things": size_of(task), "core": core, "learning_rate": rate, "seed": seed}
    row |= {"updates": options.updates, "batch": BATCH}
    if of(finished(options.json), **row):
        return
    found = train(task, core, rate, seed, options.updates, options.sequences)
    under = conditions(threads=1) | {"seeds": [seed]}
    rows = [*finished(options.json), row | {"sizes": vars(task)} | found | {"conditions": under}]
    write(options.json, "memories", {"rows": rows})
    print(*row.values(), f"{found['seconds']:.0f} s", f"{found['accuracy']['value']:.3f}", sep="\t", flush=True)


def chosen(rows: Sequence[Row]) -> dict[tuple[str, int, str], list[Row]]:
    """The runs that are reported, by task, things and core: those with the best learning rate."""
    found = {}
    for name, tasks in TASKS.items():
        for things in map(size_of, tasks):
            for core in DIFFERENT:
                rate = best_rate(rows, name, things, core)
                found[name, things, core] = of(rows, task=name, things=things, core=core, learning_rate=rate)
    return {key: cell for key, cell in found.items() if cell}


def by_change(rows: Iterable[Row]) -> NDArray[np.float64]:
    """Accuracies of runs after 0, 1, ... changes, (seeds, changes + 1)."""
    return np.array([np.array(row["right_by_change"]) / row["asked_by_change"] for row in rows])


def table(path: Path = RESULT) -> str:
    """The share of right answers for every task, size and core, in Markdown."""
    cells = chosen(finished(path))
    cores = [core for core in DIFFERENT if any(core == name for _, _, name in cells)]
    lines = [["task", "things", "seeds", "without memory", "a rule that follows less", *cores]]
    for name, things in dict.fromkeys(key[:2] for key in cells):
        found = {core: cells[name, things, core] for core in cores if (name, things, core) in cells}
        seeds = sorted({len(rows) for rows in found.values()})
        simple = [f"{value:.2f}" for value in next(iter(found.values()))[0]["baselines"].values()]
        values = [_interval(mean([_accuracies(found[core])])) if core in found else "" for core in cores]
        lines.append([TITLES[name], str(things), " to ".join(map(str, seeds)), *simple, *values])
    return _markdown(lines)


def longer(path: Path = LONGER) -> str:
    """The share of right answers after more updates, in Markdown."""
    rows = finished(path)
    cores = [core for core in DIFFERENT if of(rows, core=core)]
    lines = [["task", "things", "updates", "seeds", *cores]]
    keys = ("task", "things", "updates")
    for name, things, updates in sorted({tuple(row[key] for key in keys) for row in rows}):
        cells = [of(rows, task=name, things=things, updates=updates, core=core) for core in cores]
        seeds = sorted({len(cell) for cell in cells})
        found = [_interval(mean([_accuracies(cell)])) if cell else "" for cell in cells]
        lines.append([TITLES[name], str(things), f"{updates:,}", " to ".join(map(str, seeds)), *found])
    return _markdown(lines)


def rates(path: Path = RESULT) -> str:
    """What the learning rates gave with the first seed, and which was taken, in Markdown."""
    rows, lines = finished(path), [["task", "things", "core", "parameters", *(f"{rate:g}" for rate in RATES), "taken"]]
    for name, things in ((name, size_of(task)) for name, tasks in TASKS.items() for task in tasks):
        for core in DIFFERENT:
            if (best := best_rate(rows, name, things, core)) is not None:
                tried = of(rows, task=name, things=things, core=core, seed=SEEDS[0])
                at = {row["learning_rate"]: f"{row['accuracy_to_choose_by']:.3f}" for row in tried}
                values = [f"{tried[0]['parameters']:,}", *(at[rate] for rate in RATES), f"{best:g}"]
                lines.append([TITLES[name], str(things), core, *values])
    return _markdown(lines)


def _accuracies(rows: Iterable[Row]) -> NDArray[np.float64]:
    return np.array([row["accuracy"]["value"] for row in rows])


def _interval(estimate: Estimate) -> str:
    if np.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), nargs="+", default=list(TASKS))
    parser.add_argument("--core", choices=list(DIFFERENT), nargs="+", default=list(DIFFERENT)[:4])
    parser.add_argument("--seed", type=int, choices=SEEDS, nargs="+", default=list(SEEDS))
    parser.add_argument("--things", type=int, nargs="+", help="sizes (default: all of a task)")
    parser.add_argument("--learning-rate", type=float, help="in the place of the best one of those that are tried")
    parser.add_argument("--rates", type=Path, help="a report of this script: take the rates that it chose")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"of every run (default: {UPDATES})")
    parser.add_argument("--sequences", type=int, default=1000, help="held-out ones (default: 1000)")
    parser.add_argument("--json", type=Path, default=RESULT, help="the report; runs are added to it")
    options = parser.parse_args(arguments)
    for name in ("updates", "sequences"):
        if (number := getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    if options.learning_rate is not None and not options.learning_rate > 0:
        parser.error(f"--learning-rate must be more than 0, got {options.learning_rate}")
    if not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: {options.json.parent} is no folder")
    try:
        run(options)
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
