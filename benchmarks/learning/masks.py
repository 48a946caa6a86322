"""Masks with memory: a task that needs both, learned with both, with memory alone and with masks alone.

    python -m benchmarks.learning.masks          # writes results/masks.json and, beside it, masks.png

Every row is an evaluation on the way, of 200 fresh episodes with the most probable actions.
"""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.drawing import draw
from benchmarks.report import ROOT, conditions
from experiment.parsing import fail
from fbrl import MemoryPPO
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.memoryless import Memoryless
from fbrl.evaluation import play
from fbrl.masks import MaskableMemoryPPO

RESULT = ROOT / "benchmarks" / "results" / "masks.json"
STEPS, EVERY, EPISODES, SEEDS = 16_384, 2_048, 200, (0, 1, 2)
PPO: dict[str, Any] = {
    "n_steps": 32,
    "seq_len": 8,
    "batch_size": 128,
    "n_epochs": 4,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
}
MEMORY = {"core_class": FastFeedbackTransformer, "core_kwargs": {"d_model": 32, "n_heads": 2, "window": 4}}
NONE = {"core_class": Memoryless, "core_kwargs": {"d_model": 32, "n_layers": 2}}
AGENTS: dict[str, tuple[type[MemoryPPO], dict[str, Any], str]] = {
    "masks and memory": (MaskableMemoryPPO, MEMORY, "tab:blue"),
    "memory": (MemoryPPO, MEMORY, "tab:orange"),
    "masks": (MaskableMemoryPPO, NONE, "tab:gray"),
}


class Doors(gym.Env[np.int64, np.int64]):
    """A cue of two at first; then ``length`` corridors of 2 N doors, of which one pair leads on: the mask tells which.

    Any door that is not of the pair ends the episode. The last pair's left or right door is the one that the cue asks
    for. Who knows no mask succeeds in at most one of N episodes; who has no memory, in at most half of them.
    """

    def __init__(self, n_pairs: int = 8, length: int = 2) -> None:
        self.observation_space, self.action_space = spaces.Discrete(4), spaces.Discrete(2 * n_pairs)
        self.n_pairs, self.length = n_pairs, length

    def action_masks(self) -> NDArray[np.bool_]:
        """Which doors are of the pair."""
        mask: NDArray[np.bool_] = np.arange(2 * self.n_pairs) // 2 == self.pair
        return mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The cue."""
        super().reset(seed=seed)
        self.t, self.cue = 0, int(self.np_random.integers(2))
        self.pair = self.np_random.integers(self.n_pairs)
        return self.cue, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Through a door; observations are 2, and 3 before the last pair."""
        self.t += 1
        allowed, last = bool(self.action_masks()[action]), self.t > self.length
        success = allowed and last and int(action) % 2 == self.cue
        self.pair = self.np_random.integers(self.n_pairs)
        over = last or not allowed
        info = {"is_success": success} if over else {}
        return 3 if self.t == self.length else 2, float(success), over, False, info


def make_envs(n_envs: int) -> DummyVecEnv:
    """Some ``Doors``."""
    return DummyVecEnv([lambda: Monitor(Doors()) for _ in range(n_envs)])


class Curve(BaseCallback):
    """The success of an agent that is being trained, every so many steps."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.steps, self.success = every, [0], [0.0]

    def _on_training_start(self) -> None:
        self.success[0] = self.found()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps[-1] + self.every:
            self.steps.append(self.num_timesteps)
            self.success.append(self.found())
        return True

    def found(self) -> float:
        """Of ``EPISODES`` fresh episodes."""
        assert isinstance(self.model, MemoryPPO)
        env = make_envs(16)
        env.seed(1000)
        success = play(self.model, env, EPISODES, deterministic=True).success
        assert success is not None
        return float(success.mean())


def train(name: str, seed: int) -> dict[str, Any]:
    """A row."""
    algorithm, policy_kwargs, _ = AGENTS[name]
    env, curve = make_envs(16), Curve(EVERY)
    env.seed(seed)
    model = algorithm("MlpPolicy", env, device="cpu", seed=seed, policy_kwargs=policy_kwargs, **PPO)
    model.learn(STEPS, curve)
    return {"agent": name, "seed": seed, "steps": curve.steps, "success": curve.success}


def draw_masks(rows: list[dict[str, Any]]) -> Figure:
    """A line a seed."""
    figure = plt.figure(figsize=(5.5, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, (_, _, colour) in AGENTS.items():
        for number, row in enumerate(row for row in rows if row["agent"] == name):
            axes.plot(row["steps"], row["success"], color=colour, label=None if number else name, linewidth=1.2)
    for y, text in ((1 / 8, "best without masks"), (1 / 2, "best without memory")):
        axes.axhline(y, color="black", linewidth=0.8, linestyle=":")
        axes.text(0, y + 0.015, text, fontsize=7)
    axes.set(
        xlabel="environment steps",
        ylabel="success",
        ylim=(-0.02, 1.05),
        title="Doors: a cue, and doors that a mask tells",
    )
    axes.grid(color="whitesmoke")
    axes.legend(fontsize=7, loc=(0.7, 0.62))
    return figure


def main() -> None:
    """The script."""
    torch.set_num_threads(1)
    rows = []
    for name in AGENTS:
        for seed in SEEDS:
            rows.append(train(name, seed))
            print(name, seed, rows[-1]["success"], flush=True)
    report = {"benchmark": "masks"} | conditions(threads=1) | {"seeds": SEEDS, "rows": rows}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(draw(RESULT, {"masks": draw_masks}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
