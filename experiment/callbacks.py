"""What a training run does beside learning: checkpoints, schedules, figures about the memory, a progress bar."""

from __future__ import annotations

import copy
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor, safe_mean
from torch import Tensor
from tqdm import tqdm

from experiment.checkpoints import save_alone, save_checkpoint
from experiment.distributed import in_any, rank, say
from experiment.settings import Settings
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.figures import log_rollout
from fbrl.insight.seen import attends
from fbrl.policy import MemoryPolicy
from fbrl.ppo import MemoryPPO

COUNTERS = ("num_timesteps", "_n_updates", "_current_progress_remaining", "ent_coef")
SHARES = ("environment", "acting", "update")  # of the time, as ``TimeShares`` logs them; shown in the progress bar
GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples, modulo 1, fall evenly and never repeat


class BetweenUpdates(BaseCallback):
    """Acts between two updates, where model, environments and random states belong together."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.between_updates()

    @abstractmethod
    def between_updates(self) -> None:
        """Called before the first step of every rollout."""


class Finished(BetweenUpdates):
    """Keeps a copy of the agent as of the last finished update, to be saved where the next does not finish."""

    steps: int | None = None  # None before the first rollout

    def between_updates(self) -> None:
        """Copies weights, optimiser and counters."""
        if rank() == 0:
            self._parameters = copy.deepcopy(self.model.get_parameters())
            self._counters = {name: getattr(self.model, name) for name in COUNTERS}
            self.steps = self.model.num_timesteps

    def save(self, folder: Path, settings: Settings) -> int:
        """Saves it as the run's checkpoint, with new episodes; returns its steps."""
        assert self.steps is not None
        self.model.set_parameters(self._parameters, device=self.model.device)  # type: ignore[arg-type]
        for name, value in self._counters.items():
            setattr(self.model, name, value)
        save_alone(self.model, folder, settings, "an error ended them")  # type: ignore[arg-type]
        return self.steps


class Checkpoint(BetweenUpdates):
    """Saves the run so that it can be resumed: every so often, and when it is asked to stop.

    Args:
        folder: the run folder.
        settings: the run's.
        saved_at: the steps of the checkpoint that is there: a training starts with one, or from one.
    """

    def __init__(self, folder: Path, settings: Settings, saved_at: int = 0) -> None:
        super().__init__()
        self.folder, self.settings, self.every = folder, settings, settings.run.checkpoint_every
        self.saved_at = saved_at
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

    def ask_to_stop(self) -> None:
        """Asks for a checkpoint after this update, and the end."""
        self.stop_asked = True
        say("\nsaving after this update (once more to stop at once) ...", file=sys.stderr)

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


def attention_now(callback: BaseCallback) -> Tensor | None:
    """What the core (of two, the actor's) reads in this step, (B, L, H, 1 + M) as ``Core.attention``; for ``_on_step``.

    ``None`` for a core that does not attend, and in every step of a rollout but one. Which one changes from rollout to
    rollout: where all episodes are of one length, the same step would often be the first of them all.
    """
    model: Any = callback.model
    policy = model.policy
    if not isinstance(policy, MemoryPolicy) or not attends(policy.actor_core):
        return None
    if callback.locals["n_steps"] != int(model.n_steps * ((1 + model._n_updates) * GOLDEN_RATIO % 1)):
        return None
    core = policy.actor_core
    with torch.no_grad():
        x = policy.encode(obs_as_tensor(model._last_obs, policy.device))
        slots, length = model._last_state[:2]
        starts = torch.as_tensor(model._last_episode_starts, dtype=torch.bool, device=policy.device)
        return core.attention(x[:, : core.d_model], (slots, length.masked_fill(starts, 0)))


class MemoryFigures(BaseCallback):
    """Logs how a core that attends (of two, the actor's) uses its memory, in one step of every rollout.

    - ``memory/mix_l``: softmax(w)_l, the share of layer l in a memory vector; layer 0 is the encoder's output. Of a
      Feedback Transformer.
    - ``memory/mean_age_l``: the mean age, in steps, of what layer l's attention reads.
    - ``memory/read_l``: how much of layer l's attention goes to the memory, not to the null slot or the step itself.
    """

    attention: Tensor | None = None
    """What was read in the step of the last rollout that was looked at, as ``attention_now`` gives it."""

    def _on_step(self) -> bool:
        found = attention_now(self)
        self.attention = self.attention if found is None else found
        return True

    def _on_rollout_end(self) -> None:
        if self.attention is None:
            return
        core = self.model.policy.actor_core
        if isinstance(core, FeedbackTransformer):
            for index, share in enumerate(core.mix.detach().softmax(dim=0).tolist()):
                self.logger.record(f"memory/mix_{index}", share)
        attention = self.attention[..., 1:].mean(dim=(0, 2))  # (L, M), without what is no slot
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
