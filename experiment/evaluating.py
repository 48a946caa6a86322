"""Evaluations on the way of a training, and the best agent so far."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from experiment import files
from experiment.callbacks import BetweenUpdates
from experiment.checkpoints import agent_bytes
from experiment.distributed import say
from experiment.randomness import apart
from fbrl.evaluation import Stopped, play, summarise

EVALUATION = "evaluation.json"  # the member of best.zip that says how good the agent was
Score = tuple[bool, float]  # whether the task reports success, and the success rate; else the return


class Evaluate(BetweenUpdates):
    """Evaluates every so often and keeps the best agent.

    Writes a line to ``evaluations.jsonl`` and before it, where success (return, for a task that reports no success) is
    at least the best so far, ``best.zip``, which holds that line too. Every evaluation starts from the same seed, so
    that two of them can be compared, and leaves the training's random numbers as they are.

    Args:
        env: the environments to play in, not those of the training.
        folder: the run folder.
        every: environment steps between evaluations.
        episodes: of one evaluation.
        seed: of the environments, and of the sampled actions.
        stop_at: ends the training once this success rate is reached.
        deterministic: take the most probable actions, do not sample.
        stopped: asked in every step; true ends an evaluation, of which nothing is then written.
        told: called with every line that was written.
    """

    def __init__(
        self,
        env: VecEnv,
        folder: Path,
        every: int,
        episodes: int,
        seed: int,
        stop_at: float | None = None,
        deterministic: bool = True,
        stopped: Callable[[], bool] = lambda: False,
        told: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self.env, self.file, self.best_file = env, folder / "evaluations.jsonl", folder / "best.zip"
        self.every, self.episodes, self.seed, self.stop_at = every, episodes, seed, stop_at
        self.deterministic, self.stopped, self.told = deterministic, stopped, told
        self.reached = False

    @property
    def best(self) -> float:
        """The success rate, or return, of the best agent so far."""
        return self._best[1]

    def _on_training_start(self) -> None:
        lines = read_lines(self.file)
        self._best = self._best_so_far(lines)
        # evaluations of steps after the checkpoint that is resumed are made again
        self.lines = [line for line in lines if line["timesteps"] <= self.model.num_timesteps]
        self._write_lines()
        self.reached = bool(self.lines) and self._is_enough(self.lines[-1])
        self.next = (self.lines[-1]["timesteps"] if self.lines else 0) + self.every

    def _best_so_far(self, lines: list[dict[str, Any]]) -> Score:
        """The score of the agent in ``best.zip``, which may be of a step after the checkpoint that is resumed."""
        nothing = (False, float("-inf"))
        try:
            with zipfile.ZipFile(self.best_file) as archive:
                return _score(json.loads(archive.read(EVALUATION)))
        except KeyError:  # an earlier version's, whose file did not say
            return max(map(_score, lines), default=nothing)
        except (OSError, zipfile.BadZipFile):  # none, or half of one, which an earlier version may have left
            return nothing

    def _write_lines(self) -> None:
        files.write(self.file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def _on_step(self) -> bool:
        return not self.reached

    def between_updates(self) -> None:
        """Evaluates where it is time to."""
        if self.model.num_timesteps >= self.next:
            self.evaluate()

    def look_for_success(self, agent: PPO) -> None:
        """Plays an episode, and says so where the training is to stop at a success that the task does not report."""
        self.env.seed(self.seed)
        with contextlib.suppress(Stopped), apart(self.seed):
            played = play(agent, self.env, 1, stopped=self.stopped)
            if np.isnan(played.success[0]) and not (played.cut is not None and played.cut[0]):
                say("run.stop_at_success has no effect: the task does not report success, as info['is_success']")

    def evaluate(self) -> dict[str, Any] | None:
        """Evaluates now; returns the line that was written, or None where it was stopped."""
        self.env.seed(self.seed)
        how: dict[str, Any] = {"deterministic": self.deterministic, "stopped": self.stopped}
        try:
            with apart(self.seed):
                summary = summarise(play(self.model, self.env, self.episodes, **how))
        except Stopped:
            return None
        self.next = self.model.num_timesteps + self.every
        line: dict[str, Any] = {
            "timesteps": self.model.num_timesteps,
            "success": None if summary.success is None else summary.success.value,
            "return": summary.returns.value,
            "length": summary.length.value,
        } | ({"cut": summary.cut} if summary.cut else {})
        self._log(line)
        self._keep(line)
        return line

    def _log(self, line: dict[str, Any]) -> None:
        """Writes the figures at once: what is only recorded would be written with the steps of the next rollout."""
        figures = {f"eval/{key}": value for key, value in line.items() if key != "timesteps" and value is not None}
        for output in self.model.logger.output_formats:
            output.write(figures, dict.fromkeys(figures, ()), self.model.num_timesteps)

    def _keep(self, line: dict[str, Any]) -> None:
        """Writes the agent, if it is the best, and then the line."""
        if _score(line) >= self._best:
            self._best = _score(line)
            said = json.dumps(line).encode()
            files.write(self.best_file, agent_bytes(self.model, **{EVALUATION: said}))  # type: ignore[arg-type]
        # a run that died between its last evaluation and its end makes that again
        self.lines = [one for one in self.lines if one["timesteps"] != line["timesteps"]] + [line]
        self._write_lines()
        self.reached = self._is_enough(line)
        self.told(line)

    def _is_enough(self, line: dict[str, Any]) -> bool:
        return self.stop_at is not None and line["success"] is not None and bool(line["success"] >= self.stop_at)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The evaluations in a run's ``evaluations.jsonl``; none where there is no such file."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # what a killed process of an earlier version left unfinished
            lines.append(json.loads(text))
    return lines


def _score(line: dict[str, Any]) -> Score:
    reports = line["success"] is not None
    return reports, float(line["success"] if reports else line["return"])
