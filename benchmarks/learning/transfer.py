"""Agents on longer tasks than they were trained on, without further training.

    python -m benchmarks.learning.transfer                 # plays, writes benchmarks/results/transfer.json
    python -m benchmarks.learning.tables           # puts the table into RESULTS.md

Every start state is played with the most probable actions where a task has few enough, 500 episodes elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.learning.results import summary_of
from benchmarks.report import ROOT, conditions
from experiment.agents import find_agent
from experiment.parsing import fail
from experiment.saved import load
from experiment.settings import SettingsError

RESULT = ROOT / "benchmarks" / "results" / "transfer.json"
VIEW3 = {"agent_view_size": 3}
FURTHER: list[tuple[str, str, dict[str, Any]]] = [
    ("MemoryS13Random", "MiniGrid-MemoryS13Random-v0", {}),
    ("MemoryS17Random", "MiniGrid-MemoryS17Random-v0", {}),
    ("MemoryS21", "fbrl/MemoryS21-v0", {}),
]
# agent -> the tasks it plays: a name, an id, keyword arguments; its own first
TRANSFERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "memory_s9_view3": [
        ("MemoryS9, 3x3 view", "fbrl/MemoryS9-View3-v0", {}),
        ("MemoryS11, 3x3 view", "fbrl/MemoryS11-View3-v0", {}),
        ("MemoryS13, 3x3 view", "fbrl/MemoryS13-View3-v0", {}),
        ("MemoryS17Random, 3x3 view", "MiniGrid-MemoryS17Random-v0", VIEW3),
        ("MemoryS21, 3x3 view", "fbrl/MemoryS21-View3-v0", {}),
        ("MemoryS33, 3x3 view", "fbrl/MemoryS33-View3-v0", {}),
    ],
    "memory_s11": [
        ("MemoryS11", "MiniGrid-MemoryS11-v0", {}),
        ("MemoryS13", "MiniGrid-MemoryS13-v0", {}),
        *FURTHER,
    ],
    "memory_s13": [
        ("MemoryS13", "MiniGrid-MemoryS13-v0", {}),
        ("MemoryS11", "MiniGrid-MemoryS11-v0", {}),
        *FURTHER,
    ],
    "hidden_automaton": [
        (f"HiddenAutomaton, {length} steps", "fbrl/HiddenAutomaton-v0", {"length": length, "questions": length - 1})
        for length in (12, 24, 48, 96)
    ],
}


def play_all(folder: Path, tasks: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each task."""
    checkpoint, settings = find_agent(str(folder))
    agent, rows = load(checkpoint, settings, "cpu"), []
    for name, env_id, kwargs in tasks:
        env = dataclasses.replace(settings.env, id=env_id, kwargs=kwargs, engine="minigrid")
        there = dataclasses.replace(settings, env=env)
        played, exact = summary_of(agent, there)
        assert played.success is not None  # all these tasks report it
        success, low, high = played.success
        row = {"agent": folder.name, "trained_on": settings.env.id, "trained_steps": agent.num_timesteps, "task": name}
        row |= {"env_id": env_id, "env_kwargs": kwargs, "exact": exact, "episodes": played.episodes}
        rows.append(row | {"success": success, "success_interval": [low, high], "return": played.returns.value})
        print({key: rows[-1][key] for key in ("agent", "task", "success", "return")}, flush=True)
    return rows


def table(path: Path = RESULT) -> str:
    """A report as Markdown."""
    lines = ["| agent | task | success | return |", "|---|---|---|---|"]
    for row in json.loads(path.read_text())["rows"]:
        low, high = row["success_interval"]
        success = f"{row['success']:.2f}" + ("" if row["exact"] else f" [{low:.2f}, {high:.2f}]")
        cells = [row["agent"], row["task"], success, f"{row['return']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The script."""
    folders = {name: ROOT / "agents" / name for name in TRANSFERS}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise SettingsError(f"{', '.join(missing)}: no such agent")
    rows = [row for name, tasks in TRANSFERS.items() for row in play_all(folders[name], tasks)]
    report = {"benchmark": "transfer"} | conditions(threads=None) | {"rows": rows}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
