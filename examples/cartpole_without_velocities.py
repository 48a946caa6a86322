"""CartPole whose velocities are hidden: one observation does not tell where the pole is going, two do.

python examples/cartpole_without_velocities.py     trains with a memory and without, minutes each on a CPU
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from fbrl import MemoryPPO
from fbrl.cores.memoryless import Memoryless
from fbrl.evaluation import play

TIMESTEPS = 100_000
SIZES = {"d_model": 64, "n_layers": 2}


def make_env() -> gym.Env:
    """CartPole-v1 that shows the cart's position and the pole's angle alone."""
    env = gym.make("CartPole-v1")
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(env, lambda observation: observation[[0, 2]], space)


def train(timesteps: int, n_episodes: int, **policy_kwargs: object) -> float:
    """The mean return of ``n_episodes`` after a training; 500 is the most."""
    model = MemoryPPO(
        "MlpPolicy",
        make_vec_env(make_env, n_envs=8, seed=0),
        learning_rate=LinearSchedule(1e-3, 0.0, end_fraction=1.0),
        n_steps=32,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.8,
        seq_len=32,
        policy_kwargs=policy_kwargs,
        seed=0,
    )
    model.learn(timesteps)
    episodes = play(model, make_vec_env(make_env, n_envs=8, seed=1), n_episodes)
    return float(episodes.returns.mean())


def main(timesteps: int = TIMESTEPS, n_episodes: int = 40) -> None:
    """Trains both, on the same steps."""
    remembers = train(timesteps, n_episodes, core_kwargs=SIZES | {"n_heads": 4, "window": 16})
    forgets = train(timesteps, n_episodes, core_class=Memoryless, core_kwargs=SIZES)
    print(f"return with a memory of 16 steps {remembers:.0f}, without {forgets:.0f}, of 500")


if __name__ == "__main__":
    main()
