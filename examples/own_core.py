"""A core of your own: running means of the past at four speeds, on CartPole without velocities.

python examples/own_core.py     trains, about a minute on a CPU
"""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor, nn

from fbrl import MemoryPPO
from fbrl.cores.core import Core, State
from fbrl.evaluation import play

TIMESTEPS = 100_000
RATES = (0.5, 0.2, 0.1, 0.05)  # how much of the newest step each mean takes in


class Means(NamedTuple):
    """What is carried from step to step: tensors whose first dimension is the sequence."""

    values: Tensor  # (B, len(RATES), D)


class RunningMeans(Core):
    """Reads x_t and its running means: m_t = m_(t-1) + rate (x_t - m_(t-1)), from zero at each episode's start."""

    rates: Tensor

    def __init__(self, d_model: int = 64) -> None:
        super().__init__()
        self.d_model = d_model
        self.read = nn.Sequential(nn.Linear((1 + len(RATES)) * d_model, d_model), nn.Tanh())
        self.register_buffer("rates", torch.tensor(RATES).unsqueeze(-1))  # (len(RATES), 1), moves with the module

    def initial_state(self, batch_size: int) -> Means:
        """Zeros, on the core's device."""
        return Means(self.rates.new_zeros(batch_size, len(RATES), self.d_model))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, Means]:
        """x (B, T, D), episode_start (B, T) -> features (B, T, D), and the state after the last step."""
        means, read = state[0], []
        for x_t, start_t in zip(x.unbind(1), episode_start.unbind(1), strict=True):
            means = torch.where(start_t[:, None, None], 0.0, means)  # nothing passes an episode's start
            means = means + self.rates * (x_t.unsqueeze(1) - means)
            read.append(torch.cat([x_t, means.flatten(1)], dim=-1))
        features: Tensor = self.read(torch.stack(read, dim=1))
        return features, Means(means)


def make_env() -> gym.Env:
    """CartPole-v1 that shows the cart's position and the pole's angle alone."""
    env = gym.make("CartPole-v1")
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(env, lambda observation: observation[[0, 2]], space)


def main(timesteps: int = TIMESTEPS, n_episodes: int = 40) -> None:
    """Trains with the core, and plays."""
    model = MemoryPPO(
        "MlpPolicy",
        make_vec_env(make_env, n_envs=8, seed=0),
        learning_rate=LinearSchedule(1e-3, 0.0, end_fraction=1.0),
        n_steps=32,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.8,
        seq_len=32,
        policy_kwargs={"core_class": RunningMeans, "core_kwargs": {"d_model": 64}},
        seed=0,
    )
    model.learn(timesteps)
    episodes = play(model, make_vec_env(make_env, n_envs=8, seed=1), n_episodes)
    print(f"return with running means {episodes.returns.mean():.0f} of 500")


if __name__ == "__main__":
    main()
