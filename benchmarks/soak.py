"""Trains for an hour, with evaluations and checkpoints all the time, and says whether memory stays flat.

python -m benchmarks.soak --minutes 60 --json benchmarks/results/soak.json

The training is interrupted and taken up again every so often. Of its process are noted, every ten seconds: resident
memory, open files and threads. The slope is that of a line through the second half of each stretch between two
interrupts, in MB an hour; it is compared with what the process holds. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.report import ROOT, check_json
from experiment import files
from experiment.parsing import fail
from experiment.runs import versions
from experiment.settings import SettingsError

EVERY = 10.0  # seconds between two looks
TRAINING = (
    *("--env.id=fbrl/MemoryS7-View3-v0", "--env.n_envs=16", "--core.d_model=32", "--core.window=16"),
    *("--ppo.timesteps=1e9", "--ppo.n_steps=64", "--ppo.seq_len=32", "--ppo.batch_size=256", "--ppo.n_epochs=2"),
    *("--run.eval_every=5000", "--run.eval_episodes=8", "--run.checkpoint_every=5000", "--run.device=cpu"),
    *("--run.progress_bar=false", "--run.threads=1", "--run.name=soak"),
)


def look(pid: int, since: float) -> dict[str, float]:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "minutes": round((time.monotonic() - since) / 60, 3),
        "resident_mb": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def stretch(arguments: list[str], seconds: float, since: float) -> list[dict[str, float]]:
    """Trains for so long, interrupts, and hands back what was seen.

    Raises:
        RuntimeError: where the training ended by itself, or did not save.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "train_agent.py", *arguments], cwd=ROOT, env=environment)
    seen, end = [], time.monotonic() + seconds
    try:
        while time.monotonic() < end and process.poll() is None:
            time.sleep(min(EVERY, max(0.0, end - time.monotonic())))
            if process.poll() is None:
                seen.append(look(process.pid, since))
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=300) != 130:
            raise RuntimeError(f"the training ended with exit code {process.returncode}")
    finally:
        process.kill()
    return seen


def slope(seen: list[dict[str, float]], name: str) -> float:
    """How much more an hour, over the second half; NaN where too little was seen."""
    half = seen[len(seen) // 2 :]
    if len(half) < 3:
        return float("nan")
    return float(np.polyfit([one["minutes"] / 60 for one in half], [one[name] for one in half], 1)[0])


def soak(minutes: float, interrupts: int, folder: Path) -> dict[str, Any]:
    """All stretches, and what came of them."""
    since, run = time.monotonic(), folder / "soak"
    stretches = []
    for number in range(interrupts + 1):
        arguments = ["--resume", str(run)] if number else [*TRAINING, f"--run.folder={folder}"]
        stretches.append(stretch(arguments, 60 * minutes / (interrupts + 1), since))
    steps = [json.loads(line)["timesteps"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return {
        "minutes": minutes,
        "steps": steps[-1],
        "evaluations": len(steps),
        "each_evaluation_once": steps == sorted(set(steps)),
        "stretches": [
            {
                "resident_mb": [one[0]["resident_mb"], one[len(one) // 2]["resident_mb"], one[-1]["resident_mb"]],
                "resident_mb_an_hour": slope(one, "resident_mb"),
                "files": [one[0]["files"], one[-1]["files"]],
                "threads": [one[0]["threads"], one[-1]["threads"]],
            }
            for one in stretches
        ],
        "versions": versions(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints what came of it, and writes it where asked."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interrupts", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    check_json(args.json)
    if not 0 < args.minutes < float("inf") or args.interrupts < 0:
        raise SettingsError(f"--minutes must be more than 0 and --interrupts at least 0, got {args}")
    with TemporaryDirectory() as folder:
        result = soak(args.minutes, args.interrupts, Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.json is not None:
        files.write(args.json, text)


if __name__ == "__main__":
    try:
        main()
    except SettingsError as error:
        fail(error)
