"""What a training run does beside learning: evaluations, checkpoints, figures about the memory, a progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from experiment import files
from experiment.checkpoints import agent_bytes, save_checkpoint
from experiment.distributed import in_any
from experiment.settings import Settings
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.evaluation import play, summarise
from fbrl.figures import log_rollout
from fbrl.memory import Memory
from fbrl.policy import MemoryPolicy
from fbrl.ppo import MemoryPPO

EVALUATION = "evaluation.json"  # the member of best.zip that says how good the agent was
SHARES = ("environment", "acting", "update")  # of the time, as ``TimeShares`` logs them; shown in the progress bar


class BetweenUpdates(BaseCallback):
    """Acts between two updates, where model, environments and random states belong together."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.between_updates()

    @abstractmethod
    def between_updates(self) -> None:
        """Called before the first step of every rollout."""


class Evaluate(BetweenUpdates):
    """Evaluates with the most probable action and keeps the best agent.

    Writes a line to ``evaluations.jsonl`` and before it, where success (return, for a task that reports no success) is
    at least the best so far, ``best.zip``, which holds that line too. Every evaluation starts from the same seed, so
    that two of them can be compared.

    Args:
        env: the environments to play in, not those of the training.
        folder: the run folder.
        every: environment steps between evaluations.
        episodes: of one evaluation.
        seed: of the environments.
        stop_at: ends the training once this success rate is reached.
    """

    def __init__(
        self, env: VecEnv, folder: Path, every: int, episodes: int, seed: int, stop_at: float | None = None
    ) -> None:
        super().__init__()
        self.env, self.file, self.best_file = env, folder / "evaluations.jsonl", folder / "best.zip"
        self.every, self.episodes, self.seed, self.stop_at = every, episodes, seed, stop_at
        self.reached = False

    def _on_training_start(self) -> None:
        lines = _read_lines(self.file)
        self.best = self._best_so_far(lines)
        # evaluations of steps after the checkpoint that is resumed are made again
        self.lines = [line for line in lines if line["timesteps"] <= self.model.num_timesteps]
        self._write_lines()
        self.reached = bool(self.lines) and self._is_enough(self.lines[-1])
        self.next = (self.lines[-1]["timesteps"] if self.lines else 0) + self.every

    def _best_so_far(self, lines: list[dict[str, Any]]) -> float:
        """The score of the agent in ``best.zip``, which may be of a step after the checkpoint that is resumed."""
        try:
            with zipfile.ZipFile(self.best_file) as archive:
                return _score(json.loads(archive.read(EVALUATION)))
        except KeyError:  # an earlier version's, whose file did not say
            return max(map(_score, lines), default=float("-inf"))
        except (OSError, zipfile.BadZipFile):  # none, or half of one, which an earlier version may have left
            return float("-inf")

    def _write_lines(self) -> None:
        files.write(self.file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def _on_step(self) -> bool:
        return not self.reached

    def between_updates(self) -> None:
        """Evaluates where it is time to."""
        if self.model.num_timesteps >= self.next:
            self.evaluate()

    def evaluate(self) -> dict[str, Any]:
        """Evaluates now; returns the line that was written."""
        self.next = self.model.num_timesteps + self.every
        self.env.seed(self.seed)
        summary = summarise(play(self.model, self.env, self.episodes, deterministic=True))
        line = {
            "timesteps": self.model.num_timesteps,
            "success": None if summary.success is None else summary.success.value,
            "return": summary.returns.value,
            "length": summary.length.value,
        }
        for key in ("success", "return", "length"):
            if line[key] is not None:
                self.model.logger.record(f"eval/{key}", line[key])
        if _score(line) >= self.best:
            self.best = _score(line)
            files.write(self.best_file, agent_bytes(self.model, **{EVALUATION: json.dumps(line).encode()}))  # type: ignore[arg-type]
        self.lines.append(line)
        self._write_lines()
        self.reached = self._is_enough(line)
        return line

    def _is_enough(self, line: dict[str, Any]) -> bool:
        return self.stop_at is not None and line["success"] is not None and bool(line["success"] >= self.stop_at)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # what a killed process of an earlier version left unfinished
            lines.append(json.loads(text))
    return lines


def _score(line: dict[str, Any]) -> float:
    return float(line["return"] if line["success"] is None else line["success"])


class Checkpoint(BetweenUpdates):
    """Saves the run so that it can be resumed: every so often, and when it is asked to stop.

    Args:
        folder: the run folder.
        settings: the run's.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__()
        self.folder, self.settings, self.every = folder, settings, settings.run.checkpoint_every
        self.stop_asked = self.stopped = False

    def _on_training_start(self) -> None:
        self.next = self.model.num_timesteps + self.every

    def _on_step(self) -> bool:
        return not self.stopped

    def between_updates(self) -> None:
        """Saves where it is time to, or where ``stop_asked`` was set, in this process or another.

        The training then ends with the next step.
        """
        stop = in_any(self.stop_asked)
        if stop or self.model.num_timesteps >= self.next:
            self.next = self.model.num_timesteps + self.every
            self.save()
            self.stopped = stop

    def save(self) -> None:
        """Saves now."""
        save_checkpoint(self.model, self.folder, self.settings)  # type: ignore[arg-type]
        self.saved_at = self.model.num_timesteps


class EntropySchedule(BetweenUpdates):
    """Moves the weight of the entropy bonus linearly from ``start`` to ``end`` over the training."""

    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        self.start, self.end = start, end

    def between_updates(self) -> None:
        """Sets the weight for the next update."""
        done = min(1.0, self.model.num_timesteps / self.model._total_timesteps)
        self.model.ent_coef = self.start + (self.end - self.start) * done  # type: ignore[attr-defined]
        self.logger.record("train/ent_coef", self.model.ent_coef)  # type: ignore[attr-defined]


class MemoryFigures(BaseCallback):
    """Logs how a Feedback Transformer (of two, the actor's) uses its memory, on the last step of every rollout.

    - ``memory/mix_l``: softmax(w)_l, the share of layer l in a memory vector; layer 0 is the encoder's output.
    - ``memory/mean_age_l``: the mean age, in steps, of what layer l's attention reads.
    - ``memory/read_l``: how much of layer l's attention goes to the memory and not to the null slot.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        if not isinstance(policy, MemoryPolicy) or not isinstance(policy.actor_core, FeedbackTransformer):
            return
        core = policy.actor_core
        for index, share in enumerate(core.mix.detach().softmax(dim=0).tolist()):
            self.logger.record(f"memory/mix_{index}", share)
        with torch.no_grad():
            x = policy.encode(obs_as_tensor(self.model._last_obs, policy.device))  # type: ignore[arg-type]
            slots, length = self.model._last_state[:2]  # type: ignore[attr-defined]
            starts = torch.as_tensor(self.model._last_episode_starts, dtype=torch.bool, device=policy.device)
            _, attention = core.read(x[:, : core.d_model], Memory(slots, length).reset(starts))
        attention = attention[..., 1:].mean(dim=(0, 2))  # (L, M), without the null slot
        age = torch.arange(attention.shape[1], 0, -1, device=attention.device, dtype=attention.dtype)
        for index, weights in enumerate(attention, start=1):
            self.logger.record(f"memory/read_{index}", weights.sum().item())
            self.logger.record(f"memory/mean_age_{index}", ((weights * age).sum() / weights.sum().clamp(1e-9)).item())


class RolloutFigures(BaseCallback):
    """Logs of Stable-Baselines3's own PPO what ``MemoryPPO`` logs of every rollout itself."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not isinstance(self.model, MemoryPPO):
            log_rollout(self.model)  # type: ignore[arg-type]


class ProgressBar(BaseCallback):
    """A progress bar in environment steps, with the success rate (or the mean return) of the last episodes.

    Below a ``TimeShares`` it also says where the time goes.

    To be closed also where training fails, so that what is printed next has a line of its own.
    """

    def __init__(self, shown: bool = True) -> None:
        super().__init__()
        self.shown, self.bar = shown, tqdm(disable=True)

    def _on_training_start(self) -> None:
        total = self.locals["total_timesteps"]
        self.bar = tqdm(
            total=total,
            initial=self.model.num_timesteps,
            unit="step",
            disable=not self.shown,
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # seconds; a log file gets few lines
        )

    def _on_step(self) -> bool:
        self.bar.update(min(self.model.num_timesteps, self.bar.total) - self.bar.n)
        return True

    def _on_rollout_end(self) -> None:
        parts = []
        if self.model.ep_success_buffer:
            parts.append(f"success {safe_mean(self.model.ep_success_buffer):.2f}")
        elif self.model.ep_info_buffer:
            parts.append(f"return {safe_mean([episode['r'] for episode in self.model.ep_info_buffer]):.2f}")
        logged = self.logger.name_to_value
        parts += [f"{name} {logged[f'time/{name}']:.0%}" for name in SHARES if f"time/{name}" in logged]
        self.bar.set_postfix_str(", ".join(parts), refresh=False)

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it stands; it does not matter how often."""
        self.bar.close()
