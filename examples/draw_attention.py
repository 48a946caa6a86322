"""Plays a saved agent, with its memory and without, and draws what its attention reads.

python examples/draw_attention.py     writes attention.gif and attention.html, seconds on a CPU
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from fbrl.evaluation import load_agent, play, summarise
from fbrl.insight.page import about, save_page
from fbrl.insight.recording import action_names, record
from fbrl.insight.video import save_video
from fbrl.symbolic import SymbolicObservation

AGENT = Path(__file__).parents[1] / "agents" / "memory_s7_view3"


def make_env(render_mode: str | None = None) -> gym.Env:
    """The task that the agent was trained on."""
    return SymbolicObservation(gym.make("MiniGrid-MemoryS7-v0", agent_view_size=3, render_mode=render_mode))


def main(folder: str | Path = ".", n_episodes: int = 100) -> None:
    """Evaluates, draws three episodes, and says what each layer read before the last step of the first."""
    agent = load_agent(AGENT)
    for zero_memory in (False, True):
        episodes = play(agent, make_vec_env(make_env, n_envs=16, seed=0), n_episodes, zero_memory=zero_memory)
        print("without its memory:" if zero_memory else "with its memory:", summarise(episodes))

    env = make_env("rgb_array")
    env.reset(seed=0)  # the next episodes go on with its random numbers
    recorded = [record(agent, env) for _ in range(3)]
    save_video(recorded, Path(folder, "attention.gif"))
    names = action_names(env, env.action_space)
    save_page(recorded, Path(folder, "attention.html"), about(agent, "memory_s7_view3", "MiniGrid-MemoryS7-v0"), names)

    reads = recorded[0].steps[-1].reads  # (layers, heads, 1 + slots): nothing, then the slots, the newest last
    assert reads is not None
    for layer, weights in enumerate(reads.mean(axis=1), start=1):
        slots = weights[1:]  # NaN where a slot holds nothing
        back = len(slots) - int(np.nanargmax(slots))
        print(f"layer {layer}: {weights[0]:.2f} to nothing, {np.nanmax(slots):.2f} to the step {back} before")


if __name__ == "__main__":
    main()
