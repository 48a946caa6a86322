"""The core on its own, trained by answers and not by rewards: programs and a walk (see ``programs.py``, ``walk.py``).

    python -m benchmarks.supervised.compare --variables 3 --seed 0 1 \
        --json benchmarks/results/supervised_programs_3.json
    python -m benchmarks.supervised.compare --variables 5 --seed 0 1 \
        --json benchmarks/results/supervised_programs_5.json
    python -m benchmarks.supervised.compare --task walk --batch 32 --steps 1000 --seed 0 1 2 3 4 \
        --json benchmarks/results/supervised_walk.json
    python -m benchmarks.supervised.compare --task walk --batch 32 --steps 2000 --seed 1 \
        --json benchmarks/results/supervised_walk_longer.json
    python -m benchmarks.supervised.compare --task walk --batch 32 --steps 1000 --seed 0 --learning-rate 1e-3 \
        --json benchmarks/results/supervised_learning_rate.json
    python -m benchmarks.supervised.draw benchmarks/results/supervised_programs_3.json [FILE.json ...]

Tokens -> embeddings, summed where a step reads several, layer norm -> core -> linear -> cross-entropy where an answer
is due. Cores: ``feedback``; ``transformer``, a plain causal one (``TransformerXL`` whose window holds the sequence),
with as many layers and, within 10 %, parameters; ``transformer_2x``, with twice the layers of the feedback core and the
same width, which the paper compares with. Data are drawn afresh for every update, the held-out ones from seeds of their
own.

A run that is finished is written at once, and one that the file holds is not repeated. ``--size paper`` is the size of
the authors' experiments/feedback/algorithmic_3var.sh (facebookresearch/transformer-sequential): 64 tokens at a time,
the memory carried on, 100 tokens of it in reach; it is for a GPU. It departs from them in what ``programs.py`` says,
has no dropout (theirs 0.2), and a learning rate that falls to zero (theirs stays).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.report import ROOT, conditions, parameters, write
from benchmarks.supervised.programs import NO_ANSWER, Programs
from benchmarks.supervised.reader import Plan, Reader, Score, Task, Trainer, answer, score
from benchmarks.supervised.walk import Walk
from experiment.parsing import fail
from experiment.settings import SettingsError
from fbrl.cores.core import Core
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.transformer_xl import TransformerXL
from fbrl.evaluation import wilson

CORES = ("feedback", "transformer", "transformer_2x")
HELD_OUT = 1_000_000  # seeds from here on are no training seeds


@dataclass(frozen=True)
class Size:
    """Of an experiment; D, L and H as in ``fbrl.cores.feedback``. L and ``d_feedforward`` are the feedback core's."""

    programs: Programs
    walk: Walk
    D: int
    L: int
    H: int
    d_feedforward: int
    window: int
    plan: Plan


SIZES = {
    "tiny": Size(Programs(2, 8), Walk(3, 8), 32, 1, 2, 64, 8, Plan(32, 8, 400, 3e-3, 50, 1.0)),
    "small": Size(Programs(3, 48), Walk(4, 24), 64, 2, 4, 256, 48, Plan(16, 48, 2500, 3e-3, 200, 1.0)),
    "paper": Size(
        Programs(3, 100, whole=False), Walk(8, 100), 256, 4, 4, 1024, 100, Plan(512, 64, 50_000, 1e-4, 1000, 0.1)
    ),
}


def make_task(name: str, size: Size, variables: int) -> Task:
    """The task of this size."""
    if name == "walk":
        return size.walk
    return Programs(variables, size.programs.statements, size.programs.whole)


def make_core(name: str, size: Size) -> Core:
    """One of ``CORES``.

    A layer of the feedback core has 2 D^2 + 2 D d_feedforward weights and the memory 2 D^2, a layer of the transformer
    4 D^2 + 2 D d_feedforward: with as many layers, its feed-forward blocks are narrower by D (L - 1) / L.
    """
    if name == "feedback":
        return FastFeedbackTransformer(size.D, size.L, size.H, size.window, size.d_feedforward)
    if name == "transformer":
        narrower = size.D * (size.L - 1) // size.L
        return TransformerXL(size.D, size.L, size.H, size.window, size.d_feedforward - narrower)
    return TransformerXL(size.D, 2 * size.L, size.H, size.window, size.d_feedforward)


def train(task: Task, size: Size, core: str, seed: int, sequences: int, device: str) -> dict[str, Any]:
    """A whole run: trains, looks at held-out sequences 20 times on the way, and at ``sequences`` others at the end."""
    torch.manual_seed(seed)
    reader, plan = Reader(make_core(core, size), task).to(device), size.plan
    trainer = Trainer(reader, task, plan, seed, device)
    tokens, answers = task.sample(Random(HELD_OUT), min(sequences, 500))
    curve: dict[str, list[float]] = {"steps": [], "loss": [], "accuracy": []}
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(1, plan.steps + 1):
        losses.append(trainer.step())
        if step % max(1, plan.steps // 20) == 0:
            accuracy = score(answers, answer(reader, tokens, plan.segment, device)).accuracy
            for values, value in zip(curve.values(), (step, float(np.mean(losses)), accuracy), strict=True):
                values.append(value)
            losses.clear()
            print(core, seed, *(f"{values[-1]:.4g}" for values in curve.values()), sep="\t", flush=True)
    seconds = time.perf_counter() - start
    tokens, answers = task.sample(Random(HELD_OUT + 1), sequences)
    return {
        "parameters": parameters(reader),
        "seconds": seconds,
        "curve": curve,
    } | summary(score(answers, answer(reader, tokens, plan.segment, device)))


def summary(found: Score) -> dict[str, Any]:
    """In numbers. The answers of one sequence hang together, so that their interval is too narrow; that of the last
    ones, one a sequence, is as wide as it says.
    """
    return {
        "accuracy": wilson(int(found.right.sum()), int(found.asked.sum()))._asdict(),
        "accuracy_of_the_last": wilson(found.last_right, found.sequences)._asdict(),
        "asked_by_step": found.asked.tolist(),
        "right_by_step": found.right.tolist(),
    }


def baselines(task: Task, sequences: int) -> dict[str, float]:
    """Accuracies without any training: of the step's most frequent answer, and of the task's own rules."""
    seen, asked = (task.sample(Random(HELD_OUT + 2 + i), sequences)[1] for i in range(2))
    right = total = 0
    for t in range(asked.shape[1]):
        known = seen[:, t][seen[:, t] != NO_ANSWER] if t < seen.shape[1] else seen[:0, 0]
        most_frequent = np.bincount(known).argmax() if len(known) else 0
        right += int((asked[:, t] == most_frequent).sum())
        total += int((asked[:, t] != NO_ANSWER).sum())
    return {"most frequent answer": right / total} | task.rules(Random(HELD_OUT + 4), sequences)


def table(folder: Path = ROOT / "benchmarks" / "results") -> str:
    """The reports in a folder as Markdown: a row for each task and plan, the accuracies by seed."""
    head = ["task", "updates", "learning rate", "seeds", "most frequent answer", "a rule that only counts"]
    head += ["Feedback Transformer", "Transformer", "file"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for path in sorted(folder.glob("supervised_*.json")):
        rows = finished(path)
        plans = {(_task_name(row), row["steps"], row["learning_rate"]): row for row in rows}
        for plan, row in plans.items():
            of_plan = [other for other in rows if (_task_name(other), other["steps"], other["learning_rate"]) == plan]
            by_core = [{r["seed"]: r["accuracy"]["value"] for r in of_plan if r["core"] == core} for core in CORES[:2]]
            simple = [f"{value:.2f}" for value in row["baselines"].values()]
            accuracies = [", ".join(f"{found[seed]:.3f}" for seed in sorted(found)) for found in by_core]
            seeds = ", ".join(str(seed) for seed in sorted(by_core[0]))
            name = f"[{path.name}](benchmarks/results/{path.name})"
            cells = [plan[0], f"{plan[1]:,}", f"{plan[2]:g}", seeds, *simple, *accuracies, name]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _task_name(row: dict[str, Any]) -> str:
    task = row["task"]
    if row["name"] == "walk":
        return f"walk of {task['steps']} steps on {task['side']} x {task['side']} cells"
    return f"programs, {task['variables']} variables"


def make_parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["programs", "walk"], default="programs")
    parser.add_argument("--variables", type=int, default=3, help="of the programs, 1 to 5 (default: 3)")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--core", choices=CORES, nargs="+", default=list(CORES[:2]))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="updates; each size has a default")
    parser.add_argument("--learning-rate", type=float, help="each size has a default")
    parser.add_argument("--batch", type=int, help="sequences an update; each size has a default")
    parser.add_argument("--sequences", type=int, default=2000, help="held-out ones at the end (default: 2000)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses (default: 1)")
    parser.add_argument("--json", type=Path, help="the report; runs are added to it")
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked before anything is trained."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in ("steps", "batch", "sequences", "threads"):
        if (number := getattr(options, name)) is not None and number < 1:
            parser.error(f"--{name} must be at least 1, got {number}")
    if options.learning_rate is not None and not options.learning_rate > 0:
        parser.error(f"--learning-rate must be more than 0, got {options.learning_rate}")
    if not all(0 <= seed < HELD_OUT for seed in options.seed):
        parser.error(f"--seed must be from 0 to {HELD_OUT - 1}, got {options.seed}")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: {options.json.parent} is no folder")
    return options


def sized(options: argparse.Namespace) -> Size:
    """The size that was asked for, with what was asked to differ from it."""
    size = SIZES[options.size]
    asked = {name: getattr(options, name) for name in ("steps", "batch", "learning_rate")}
    return replace(size, plan=replace(size.plan, **{name: value for name, value in asked.items() if value is not None}))


def finished(path: Path | None) -> list[dict[str, Any]]:
    """The runs that a report holds; raises SettingsError where the file is none."""
    if not path or not path.exists():
        return []
    report = json.loads(path.read_text())
    if not isinstance(report, dict) or report.get("benchmark") != "supervised":
        raise SettingsError(f"{path}: no report of this script; give another --json")
    rows: list[dict[str, Any]] = report["rows"]
    return rows


def run(options: argparse.Namespace) -> None:
    """Trains what the report does not hold yet."""
    torch.set_num_threads(options.threads)
    size = sized(options)
    task = make_task(options.task, size, options.variables)
    rows = finished(options.json)
    settings: dict[str, Any] = {"task": vars(task), "size": options.size} | asdict(size.plan)
    before = baselines(task, options.sequences)
    print(settings, before)
    for seed in options.seed:
        for core in options.core:
            name = settings | {"name": options.task, "core": core, "seed": seed}
            if any(name.items() <= row.items() for row in rows):
                print(core, seed, "is there already")
                continue
            row = name | train(task, size, core, seed, options.sequences, options.device)
            under = conditions(options.threads) | {"seeds": [seed], "device": options.device}
            rows = [*finished(options.json), row | {"baselines": before, "conditions": under}]
            write(options.json, "supervised", {"rows": rows})
            print(core, seed, row["parameters"], f"{row['seconds']:.0f} s", row["accuracy"], sep="\t", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    try:
        run(parse(arguments))
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
