"""An encoder of your own: one-hot symbols and a convolution for MiniGrid's view, on an empty room.

python examples/own_encoder.py     trains, minutes on a CPU
"""

from __future__ import annotations

import gymnasium as gym
import minigrid  # noqa: F401  (registers the ids)
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from fbrl import MemoryPPO
from fbrl.evaluation import play, summarise
from fbrl.symbolic import CELL_HIGH, SymbolicObservation

TIMESTEPS = 60_000


class ConvEncoder(BaseFeaturesExtractor):
    """What Stable-Baselines3 calls a features extractor.

    It sees single observations, of all environments and steps in one batch (N, ...). The steps' order is the core's.
    """

    def __init__(self, observation_space: spaces.Dict, features_dim: int = 64) -> None:
        super().__init__(observation_space, features_dim)
        self.kinds = [high + 1 for high in CELL_HIGH]  # of objects, colours and states
        view = observation_space["image"].shape
        assert view is not None
        side = view[0] - 2  # of what a convolution of 3x3 makes of it
        directions = get_flattened_obs_dim(observation_space["direction"])  # a Discrete comes one-hot
        self.conv = nn.Sequential(nn.Conv2d(sum(self.kinds), 32, 3), nn.ReLU(), nn.Flatten())
        self.out = nn.Sequential(nn.Linear(32 * side**2 + directions, features_dim), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """A dict of (N, ...) -> (N, features_dim)."""
        cells = observations["image"].long()  # (N, V, V, 3): object, colour, state
        one_hot = [F.one_hot(cells[..., i], n) for i, n in enumerate(self.kinds)]
        pictures = torch.cat(one_hot, dim=-1).movedim(-1, 1).float()  # (N, 20, V, V)
        features: Tensor = self.out(torch.cat([self.conv(pictures), observations["direction"].flatten(1)], dim=-1))
        return features


def make_env() -> gym.Env:
    """A room of 4x4 cells with a goal in a corner; the agent starts anywhere."""
    return SymbolicObservation(gym.make("MiniGrid-Empty-Random-6x6-v0"))


def main(timesteps: int = TIMESTEPS, n_episodes: int = 100) -> None:
    """Trains with the encoder, and plays."""
    model = MemoryPPO(
        "MultiInputPolicy",
        make_vec_env(make_env, n_envs=16, seed=0),
        n_steps=128,
        batch_size=512,
        seq_len=32,
        learning_rate=5e-4,
        n_epochs=4,
        ent_coef=0.01,
        policy_kwargs={
            "features_extractor_class": ConvEncoder,
            "features_extractor_kwargs": {"features_dim": 64},
            "core_kwargs": {"d_model": 64, "n_layers": 2, "n_heads": 4, "window": 16},
        },
        seed=0,
    )
    model.learn(timesteps)
    episodes = play(model, make_vec_env(make_env, n_envs=16, seed=1), n_episodes)
    print(summarise(episodes))


if __name__ == "__main__":
    main()
