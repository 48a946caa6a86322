"""Puts the agent of a finished run of a suite into agents/, with its model card.

    python -m benchmarks.learning.publish benchmarks/suites/recall_far.yaml MemoryS11_feedback_0 agents/memory_s11
    python -m benchmarks.learning.publish cards

The card says how the runs of all seeds went, and not only the one whose agent is published: ``cards`` writes all cards
anew once more of them have finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.results import keep, make_result
from benchmarks.learning.suite import RUNS, SUITES, Run, Suite, load_suite
from benchmarks.learning.tables import read_results
from benchmarks.report import ROOT
from experiment.parsing import fail
from experiment.settings import PPOSettings, SettingsError

OF_A_RUN = ("task", "core", "seed")
RARE = (
    "activation",
    "ortho_init",
    "use_sde",
    "sde_sample_freq",
    "log_std_init",
)  # said only where they are not the default


def publish(suite: Suite, run: Run, source: Path, folder: Path) -> None:
    """Copies the agent of the best evaluation, and writes its settings, versions, evaluation and card.

    Raises:
        SettingsError: where ``folder`` exists, or ``source`` holds no finished run or one with other settings.
    """
    if folder.exists():
        raise SettingsError(f"{folder}: exists already and would be overwritten; give a new folder")
    if not (source / "finished").exists():
        raise SettingsError(f"{source}: holds no finished run")
    result = make_result(run, source)
    keep(run, result)
    folder.mkdir(parents=True)
    for name in ("best.zip", "versions.json"):
        shutil.copy(source / name, folder / name)
    nowhere = dataclasses.replace(run.settings.run, folder="runs", name=None)
    dataclasses.replace(run.settings, run=nowhere).save(folder / "config.yaml")
    (folder / "evaluation.json").write_text(json.dumps(_but_settings(result), indent=1) + "\n")
    (folder / "README.md").write_text(card(suite, folder))


def _but_settings(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("settings", "versions")}


def card(suite: Suite, folder: Path) -> str:
    """The model card of a published agent of a suite, in Markdown. Over 60 lines, most of which are the card's."""
    result, versions = (json.loads((folder / name).read_text()) for name in ("evaluation.json", "versions.json"))
    (run,) = (run for run in suite.runs if (run.task, run.core, run.seed) == tuple(result[key] for key in OF_A_RUN))
    settings, name = run.settings, folder.name
    all_seeds = [r for r in read_results(suite) if (r["task"], r["core"]) == (run.task, run.core)]
    planned = len({run.seed for run in suite.runs})
    kwargs = "".join(f", {key} {value}" for key, value in settings.env.kwargs.items())
    low, high = result["success_interval"] or (math.nan, math.nan)
    how = (
        f"all {result['episodes']} start states, exact" if result["exact"] else f"95 % interval {low:.3f} to {high:.3f}"
    )
    if not result["exact"]:
        how = f"{result['episodes']} episodes, {how}"
    core = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(settings.core).items() if value is not None)
    training = dataclasses.asdict(settings.ppo)
    usual = {key for key in RARE if training[key] == getattr(PPOSettings, key)}
    said = {key: value for key, value in training.items() if value is not None and key not in usual}
    ppo = ", ".join(f"{key} {value}" for key, value in said.items())
    emptied = result["success_zero_memory"]
    env = settings.env
    bonus = f", novelty bonus {env.novelty} to 0 at {env.novelty_steps:,} steps" if env.novelty else ""
    rows = [
        f"| {r['seed']} | {_share(r['success'])} | {r['best_at']:,} | {r['steps']:,}{_unfinished(r)} |"
        for r in sorted(all_seeds, key=lambda r: r["seed"])
    ]
    named = ["python", "torch", "stable-baselines3", "minigrid", "numpy"]
    named += ["envpool"] if settings.env.engine == "envpool" else []
    packages = ", ".join(f"{key} {versions[key]}" for key in named)
    commit = str(versions["commit"])
    commit = commit[:12] + (", with uncommitted changes" if commit.endswith("+") else "")
    return "\n".join(
        [
            f"# {name}",
            "",
            f"An agent for `{settings.env.id}`{kwargs}, of {result['parameters']:,} parameters.",
            "",
            "| | |",
            "|---|---|",
            f"| success, most probable actions | {_share(result['success'])} ({how}) |",
            f"| return | {result['return']:.3f} |",
            f"| success with its memory emptied before every step | {_share(emptied)} |",
            f"| seed, environment steps of this agent | {run.seed}, {result['best_at']:,} |",
            *([f"| started from | {settings.run.start_from} |"] if settings.run.start_from else []),
            f"| environments | {settings.env.n_envs}, engine {settings.env.engine}{bonus} |",
            f"| core | {core} |",
            f"| training | {ppo} |",
            f"| versions | {packages}, commit {commit} |",
            f"| machine | {versions['machine']}, {versions['threads']} thread(s), GPU: {versions['gpu'] or 'none'} |",
            "",
            f"All seeds that were trained in this way, {len(all_seeds)} of {planned} (success of the agent of the "
            "best evaluation):",
            "",
            "| seed | success | at step | trained steps |",
            "|---|---|---|---|",
            *rows,
            "",
            "Play it, and train it again:",
            "",
            "```sh",
            f"python evaluate_agent.py agents/{name}" + (" --exhaustive" if result["exact"] else " --deterministic"),
            f"python train_agent.py --config agents/{name}/config.yaml",
            "```",
            "",
        ]
    )


def _unfinished(result: dict[str, Any]) -> str:
    return "" if result["finished"] else ", unfinished"


def _share(value: float | None) -> str:
    return "not reported" if value is None else f"{value:.3f}"


def write_cards(agents: Path) -> None:
    """Writes the cards of all agents anew."""
    for file in sorted(agents.glob("*/evaluation.json")):
        suite = load_suite(SUITES / f"{json.loads(file.read_text())['suite']}.yaml")
        (file.parent / "README.md").write_text(card(suite, file.parent))


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="YAML file, see benchmarks/learning/suite.py; or cards")
    parser.add_argument("run", nargs="?", help="TASK_CORE_SEED")
    parser.add_argument("agent", nargs="?", type=Path, help="new folder in agents/")
    parser.add_argument("--folder", type=Path, default=RUNS, help=f"where runs are (default: {RUNS})")
    parser.add_argument("--from", dest="source", type=Path, help="run folder, where it was trained by hand")
    options = parser.parse_args(arguments)
    if str(options.suite) == "cards":
        write_cards(ROOT / "agents")
        return
    if options.agent is None:
        parser.error("expected SUITE RUN AGENT, or cards")
    suite = load_suite(options.suite, options.folder)
    found = [run for run in suite.runs if run.name == options.run]
    if not found:
        raise SettingsError(f"{options.run}: no run of {suite.name}; such as {suite.runs[0].name}")
    publish(suite, found[0], options.source or found[0].folder, options.agent)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
