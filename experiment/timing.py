"""Where a training's time goes: into the environments, acting, the update, and everything else."""

from __future__ import annotations

import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList


class TimeShares(CallbackList):
    """Runs other callbacks and logs, at the end of every rollout but the first, where the time since the last one went.

    - ``time/steps_per_second``: environment steps by the clock;
    - ``time/environment``: the share, 0 to 1, of stepping the environments;
    - ``time/acting``: of the rest of the rollout: the policy's forward passes and keeping what they gave;
    - ``time/update``: of learning from the rollout before, and of writing what is logged;
    - ``time/other``: of what the callbacks do before and after rollouts, such as evaluations and checkpoints.

    Works with every on-policy algorithm of Stable-Baselines3 whose environments count the seconds of their steps in
    ``seconds_stepping``; otherwise acting and environment are one share, ``time/rollout``.

    Args:
        callbacks: what to run.
    """

    def __init__(self, callbacks: list[BaseCallback]) -> None:
        super().__init__(callbacks)
        self._seconds: dict[str, float] = {}

    def _on_training_start(self) -> None:
        self._mark, self._rollouts = time.perf_counter(), 0
        super()._on_training_start()

    def _lap(self, name: str) -> None:
        """Counts the time since the last lap as spent on ``name``."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    def _on_rollout_start(self) -> None:
        self._lap("update")
        super()._on_rollout_start()
        self._lap("other")
        self._stepping = _seconds_stepping(self.training_env)
        self._steps = self.model.num_timesteps

    def _on_rollout_end(self) -> None:
        self._lap("rollout")
        self._rollouts += 1
        if self._rollouts > 1:  # before the first there was no update
            self._record()
        self._seconds.clear()
        super()._on_rollout_end()
        self._lap("other")

    def _record(self) -> None:
        """Logs the shares."""
        seconds = dict(self._seconds)
        total = sum(seconds.values())
        if self._stepping is not None:
            rollout = seconds.pop("rollout")
            seconds["environment"] = (_seconds_stepping(self.training_env) or 0.0) - self._stepping
            seconds["acting"] = rollout - seconds["environment"]
        self.logger.record("time/steps_per_second", (self.model.num_timesteps - self._steps) / total)
        for name, spent in seconds.items():
            self.logger.record(f"time/{name}", spent / total)


def _seconds_stepping(env: Any) -> float | None:
    """What the environments, or what is wrapped around them, have counted."""
    while not hasattr(env, "seconds_stepping"):
        if not hasattr(env, "venv"):
            return None
        env = env.venv
    return float(env.seconds_stepping)
