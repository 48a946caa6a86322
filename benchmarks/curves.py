"""Learning curves: gathers finished runs into one JSON file, and draws it.

    python -m benchmarks.curves gather benchmarks/results/NAME.json RUN [RUN ...]
    python -m benchmarks.curves draw benchmarks/results/NAME.json [NAME.png]

``gather`` also plays every start state of the task with each run's best agent, with and without its memory, where the
task has few enough: those figures are exact.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from stable_baselines3 import PPO

from evaluate_agent import exhaustive
from fbrl.evaluation import Summary, load_agent
from fbrl.settings import EnvSettings, SettingsError, fail, load_settings

CONTROL = "memoryless control"


def gather(target: Path, folders: list[Path]) -> None:
    """Writes the curves, settings, versions and exact results of some runs."""
    if target.exists():
        raise SettingsError(f"{target}: exists already and would be overwritten; delete it first")
    runs = []
    for folder in folders:
        settings = load_settings(folder / "config.yaml")
        agent = load_agent(folder / "best.zip", "cpu")
        played = exhaustive_or_none(agent, settings.env)
        run: dict[str, Any] = {
            "core": settings.core.name,
            "seed": settings.run.seed,
            "finished": (folder / "finished").exists(),
            "best_at": agent.num_timesteps,
            "parameters": sum(parameter.numel() for parameter in agent.policy.parameters()),
            "exhaustive_success": played and played.success and played.success.value,
            "exhaustive_return": played and played.returns.value,
            "start_states": played and played.episodes,
        }
        if settings.core.name != "none":
            emptied = exhaustive_or_none(agent, settings.env, zero_memory=True)
            run["exhaustive_success_zero_memory"] = emptied and emptied.success and emptied.success.value
        lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        run["evaluations"] = {
            key: [line[key] for line in lines] for key in ("timesteps", "success", "return", "length")
        }
        run["settings"] = yaml.safe_load((folder / "config.yaml").read_text())
        run["versions"] = json.loads((folder / "versions.json").read_text())
        runs.append(run)
        print(folder, {key: run[key] for key in run if key.startswith("exhaustive")})
    target.write_text(json.dumps({"task": runs[0]["settings"]["env"]["id"], "runs": runs}, indent=1) + "\n")


def exhaustive_or_none(agent: PPO, env: EnvSettings, zero_memory: bool = False) -> Summary | None:
    """The exact result, or None where the task has too many start states."""
    try:
        return exhaustive(agent, env, zero_memory)
    except SettingsError:
        return None


def kind_of(run: dict[str, Any]) -> str:
    """What runs of one task are told apart by."""
    if run["core"] == "none":
        return CONTROL
    passes = run["settings"]["ppo"].get("passes")
    if passes is None:
        return "Feedback Transformer" + (", plain form" if run["core"] == "feedback_plain" else "")
    return f"{passes} parallel pass{'es' if passes > 1 else ''}"


def draw(source: Path, target: Path) -> None:
    """Draws every run's evaluations, and the mean of the runs of each kind on a common grid of steps."""
    data = json.loads(source.read_text())
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for number, kind in enumerate(dict.fromkeys(kind_of(run) for run in data["runs"])):
        runs = [run for run in data["runs"] if kind_of(run) == kind]
        colour = "tab:gray" if kind == CONTROL else f"C{number}"
        # before the first step nothing was measured: a curve begins with its first evaluation
        curves = [
            (np.array(run["evaluations"]["timesteps"]), np.array(run["evaluations"]["success"], dtype=float))
            for run in runs
        ]
        for steps, success in curves:
            axes.plot(steps / 1e6, success, color=colour, alpha=0.3, linewidth=1)
        # a run that stopped because it had succeeded keeps its last value
        grid = np.linspace(0, max(steps[-1] for steps, _ in curves), 200)
        mean = np.mean([np.interp(grid, steps, success, left=np.nan) for steps, success in curves], axis=0)
        label = f"{kind} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        axes.plot(grid / 1e6, mean, color=colour, linewidth=2.5, label=label)
    if "Memory" in data["task"] or "TMaze" in data["task"]:
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="guessing")
    axes.set(xlabel="environment steps (millions)", ylabel="success, most probable action", ylim=(0, 1.03))
    axes.set_title(data["task"])
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(target)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather", help="run folders -> JSON")
    gathering.add_argument("json", type=Path)
    gathering.add_argument("runs", type=Path, nargs="+")
    drawing = commands.add_parser("draw", help="JSON -> PNG")
    drawing.add_argument("json", type=Path)
    drawing.add_argument("png", type=Path, nargs="?", help="default: beside the JSON")
    args = parser.parse_args()
    try:
        if args.command == "gather":
            gather(args.json, args.runs)
        else:
            draw(args.json, args.png or args.json.with_suffix(".png"))
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
