"""Learning what cannot be done without memory, with the memoryless control beside it. Minutes each."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.utils import parameters_to_vector

from benchmarks.learning import control
from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.parsing import load_settings
from experiment.playing import exhaustive
from experiment.runs import create_run
from experiment.training import learn
from fbrl import MemoryPPO
from tests.tasks import collect

pytestmark = pytest.mark.slow


def tmaze_success(core, seed, folder):
    """The exact success of the agent of configs/tmaze.yaml, taking the most probable actions."""
    settings = load_settings(Path(__file__).parents[1] / "configs" / "tmaze.yaml")
    settings.core.name, settings.run.seed, settings.run.folder = core, seed, str(folder)
    settings.run.device, settings.run.progress_bar = "cpu", False
    assert settings.env.kwargs["corridor"] >= 10
    model = make_model(settings, make_envs(settings.env, seed, settings.env.n_envs))
    learn(model, settings, create_run(settings))
    summary = exhaustive(model, settings.env)
    assert summary.episodes == 2
    return summary.success.value


@pytest.mark.parametrize("seed", [0, 1])
def test_tmaze(seed, tmp_path):
    assert tmaze_success("feedback", seed, tmp_path) >= 0.98


def test_tmaze_without_memory(tmp_path):
    assert tmaze_success("none", 0, tmp_path) == pytest.approx(0.5, abs=0.05)


def first_update(form, config):
    """The actions of the first rollout, and all weights before the first update, after its first epoch and after it."""
    settings = load_settings(Path(__file__).parents[1] / "configs" / f"{config}.yaml")
    settings.run.device = "cpu"
    model = make_model(settings, make_envs(settings.env, 0, settings.env.n_envs))
    model.policy.core.form = form
    collect(model)
    model.set_logger(Logger(folder=None, output_formats=[]))
    weights = [parameters_to_vector(model.policy.parameters()).detach().clone()]
    model.policy.optimizer.register_step_post_hook(
        lambda *_: weights.append(parameters_to_vector(model.policy.parameters()).detach().clone())
    )
    model.train()
    steps = len(weights) - 1
    assert steps % model.n_epochs == 0
    return model.rollout_buffer.actions, weights[0], weights[steps // model.n_epochs], weights[-1]


@pytest.mark.parametrize("config", ["tmaze", "memory_s9_view3"])
@pytest.mark.parametrize("form", ["fast", "compiled"])
def test_all_forms_of_the_scan_learn_the_same(form, config):
    """The first rollout and update, from one seed, of a whole experiment: equal up to single precision's rounding.

    Later in the update one sample that rounding puts on the other side of the clip, or of a relu, shows: less is asked.
    """
    actions, before, after_epoch, after = first_update(form, config)
    plain_actions, plain_before, plain_after_epoch, plain_after = first_update("plain", config)
    assert np.array_equal(actions, plain_actions)
    assert torch.equal(before, plain_before)
    assert (after_epoch - plain_after_epoch).norm() < 1e-5 * (plain_after_epoch - before).norm()
    assert (after - plain_after).norm() < 2e-3 * (plain_after - before).norm()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_readmes_cartpole(seed):
    """After 50,000 steps, whose returns are up to 500 and not normalised."""
    assert control.run("CartPole", "MemoryPPO", seed)["return"] >= 200


def test_the_learning_test_of_recurrent_ppo():
    """That of sb3-contrib, and what it asks for, with Stable-Baselines3's own learning rate: the median of five seeds.

    About one seed in twenty ends below 450, and which one it is changes with the processor's rounding. With the rate of
    that test, tuned for the LSTM, it is one in five (benchmarks/results/control.json).
    """
    agent = "MemoryPPO" + control.DEFAULT_RATE
    assert np.median([control.run("CartPoleNoVel-50k", agent, seed)["return"] for seed in range(5)]) >= 450


class HiddenVelocity(gym.ObservationWrapper):
    """CartPole of which only the cart's position and the pole's angle are seen."""

    def __init__(self, env):
        super().__init__(env)
        shown = env.observation_space
        self.observation_space = spaces.Box(shown.low[::2], shown.high[::2])

    def observation(self, observation):
        return observation[::2]


def cartpole_return(algorithm, seed, **kwargs):
    """The mean return of 30 episodes after 100,000 steps, taking the most probable actions; at most 500."""

    def make():
        return HiddenVelocity(gym.make("CartPole-v1"))

    gamma = 0.98
    env = VecNormalize(make_vec_env(make, n_envs=8, seed=seed), gamma=gamma)
    schedule = LinearSchedule(1e-3, 0.0, end_fraction=1.0)
    sizes = {"n_steps": 128, "batch_size": 256, "n_epochs": 10}
    more = {"gamma": gamma, "gae_lambda": 0.9, "seed": seed, "device": "cpu"}
    model = algorithm("MlpPolicy", env, learning_rate=schedule, **sizes, **more, **kwargs).learn(100_000)
    eval_env = VecNormalize(make_vec_env(make, n_envs=10, seed=1000), training=False, norm_reward=False)
    eval_env.obs_rms = env.obs_rms
    returns, _ = evaluate_policy(model, eval_env, n_eval_episodes=30, return_episode_rewards=True)
    return np.mean(returns)


@pytest.mark.parametrize("seed", [0, 1])
def test_cartpole_with_hidden_velocities(seed):
    core_kwargs = {"d_model": 32, "n_layers": 1, "n_heads": 2, "window": 32}
    # without target_kl, one seed in three ends far below
    mean = cartpole_return(MemoryPPO, seed, seq_len=32, target_kl=0.02, policy_kwargs={"core_kwargs": core_kwargs})
    assert mean >= 450


def test_cartpole_with_hidden_velocities_without_memory():
    assert cartpole_return(PPO, seed=0) < 120  # 42
