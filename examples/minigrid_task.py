"""A MiniGrid task of memory with the library alone: its symbols, a bonus for looking round, and what memory is worth.

python examples/minigrid_task.py     trains on MemoryS7 through a 3x3 view, minutes on a CPU
"""

from __future__ import annotations

import gymnasium as gym
import minigrid  # noqa: F401  (registers the ids)
from stable_baselines3.common.env_util import make_vec_env

from fbrl import EpisodicNovelty, MemoryPPO
from fbrl.evaluation import play, summarise
from fbrl.symbolic import SymbolicObservation

TIMESTEPS = 500_000


def make_env() -> gym.Env:
    """An object, a corridor, and two objects at its end, of which the agent is to go to the like of the first.

    Through a view of 3x3 cells the first can no longer be seen where the agent has to choose.
    """
    return SymbolicObservation(gym.make("MiniGrid-MemoryS7-v0", agent_view_size=3))


def main(timesteps: int = TIMESTEPS, n_episodes: int = 200, n_envs: int = 64) -> None:
    """Trains, and plays with the memory and with its memory emptied before every step."""
    env = EpisodicNovelty(make_vec_env(make_env, n_envs=n_envs, seed=0), bonus=0.03, steps=2_000_000)
    model = MemoryPPO(
        "MultiInputPolicy",  # embeds the symbols of MiniGrid's cells
        env,
        n_steps=128,
        batch_size=1024,
        seq_len=32,
        learning_rate=5e-4,
        n_epochs=4,
        ent_coef=0.02,
        vf_coef=1.0,
        policy_kwargs={"core_kwargs": {"d_model": 64, "n_layers": 2, "n_heads": 4, "window": 32}},
        seed=0,
        verbose=1,
    )
    model.learn(timesteps)
    for zero_memory in (False, True):
        episodes = play(model, make_vec_env(make_env, n_envs=n_envs, seed=1), n_episodes, zero_memory=zero_memory)
        print("without its memory:" if zero_memory else "with its memory:", summarise(episodes))


if __name__ == "__main__":
    main()
