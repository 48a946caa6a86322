"""Tiny environments, and models on them, for the tests of the policy, the buffer and the training."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from experiment.distributed import rank
from fbrl import MemoryPPO
from fbrl.cores.core import Core
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.linear_attention import LinearAttention
from fbrl.cores.memoryless import Memoryless
from fbrl.cores.mingru import MinGRU
from fbrl.cores.rnn import GRU, LSTM
from fbrl.cores.transformer_xl import TransformerXL

UNPICKLES = pytest.mark.skipif(
    bool(np.lib.NumpyVersion(np.__version__) < "2.4.0"),
    reason="the committed agents were saved with NumPy 2.4, and an older one does not unpickle them",
)
SIZES = {"d_model": 8, "n_layers": 2, "n_heads": 2, "window": 5}
RNN_SIZES = {"d_model": 8, "n_layers": 2}
FEEDBACK = ["plain", "fast"]
# each goes through all tests of the policy and of training
CORES: dict[str, tuple[type[Core], dict[str, Any]]] = {
    "plain": (FeedbackTransformer, SIZES),
    "fast": (FastFeedbackTransformer, SIZES),
    "gru": (GRU, RNN_SIZES),
    "lstm": (LSTM, RNN_SIZES),
    "mingru": (MinGRU, RNN_SIZES),
    "linear_attention": (LinearAttention, RNN_SIZES | {"n_heads": 2}),
    "transformer_xl": (TransformerXL, SIZES),
    "gtrxl": (TransformerXL, SIZES | {"gate": True}),
    "memoryless": (Memoryless, RNN_SIZES),
}
# the same for a parametrised test; cores that are of one kind with another, and the form that takes longest, are slow
OF_A_KIND = {"plain", "lstm", "linear_attention", "gtrxl"}
EVERY_CORE = [pytest.param(core, marks=pytest.mark.slow if core in OF_A_KIND else ()) for core in CORES]

VECTOR = spaces.Box(-1, 1, (3,))
DICT = spaces.Dict({"vector": VECTOR, "symbol": spaces.Discrete(4)})


def remembers(core):
    """Whether the past is to have an effect; the tests that ask see to it that it has none where not."""
    return core != "memoryless"


class RandomTask(gym.Env):
    """Random observations and rewards; episodes of random length, half of which are cut short.

    Refuses actions that are not in its action space.
    """

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space | None = None,
        max_length: int = 9,
    ) -> None:
        # copies: a space that environments share would give them one stream of samples
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space or spaces.Discrete(3))
        self.max_length = max_length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = self.np_random.integers(1, self.max_length + 1)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.left -= 1
        end, cut = self.left == 0, self.np_random.random() < 0.5
        return (
            self.observation_space.sample(),
            float(self.np_random.normal()),
            bool(end and not cut),
            bool(end and cut),
            {},
        )


class EchoTask(RandomTask):
    """Pays the sum of the action, so that returns tell what was remembered."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(np.sum(action)), terminated, truncated, info


class ConstantTask(gym.Env):
    """Pays the same reward for ever; after ``length`` steps an episode is cut short, never over."""

    def __init__(self, length: int = 3, reward: float = 1.0) -> None:
        self.observation_space, self.action_space = copy.deepcopy(VECTOR), spaces.Discrete(2)
        self.length, self.reward = length, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), self.reward, False, self.t == self.length, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class StopAt(BaseCallback):
    """Asks a checkpoint to stop, in the process ``by``, while the rollout that ends with ``step`` is collected."""

    def __init__(self, checkpoint, step, by=0):
        super().__init__()
        self.checkpoint, self.step, self.by = checkpoint, step, by

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.checkpoint.stop_asked = rank() == self.by and self.model.num_timesteps == self.step


def vec(n_envs=3, task=RandomTask, **kwargs):
    return DummyVecEnv([lambda: Monitor(task(**kwargs)) for _ in range(n_envs)])


def make_model(core="plain", env=None, policy="MlpPolicy", **kwargs):
    """A small MemoryPPO: rollouts of 12 steps, sequences of 4."""
    core_class, core_kwargs = CORES[core] if isinstance(core, str) else core
    policy_kwargs = {"core_class": core_class, "core_kwargs": core_kwargs} | kwargs.pop("policy_kwargs", {})
    sizes = {"n_steps": 12, "seq_len": 4, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu"}
    return MemoryPPO(policy, vec() if env is None else env, policy_kwargs=policy_kwargs, **sizes | kwargs)


def collect(model, rollouts=1, callback=None):
    """Fills the model's buffer ``rollouts`` times, without an update; only the first call resets the environments."""
    _, callback = model._setup_learn(10**6, callback, reset_num_timesteps=model._last_obs is None)
    for _ in range(rollouts):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def sharpen(model, factor=100.0):
    """Undoes the small initial scale of the action head, which hides what the features are."""
    model.policy.action_net.weight.data.mul_(factor)
    return model


def parameters(model):
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}
