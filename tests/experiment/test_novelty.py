"""The novelty bonus in experiments: paid in training, never in evaluations."""

import dataclasses

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecFrameStack, unwrap_vec_wrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment.agents import make_model
from experiment.environments import evaluation_envs, make_envs
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings
from experiment.training import learn
from fbrl.novelty import EpisodicNovelty

TASK = EnvSettings("fbrl/HiddenAutomaton-v0", n_envs=3, kwargs={"length": 5, "questions": 2}, novelty=0.5)


def rewards_of(env):
    env.reset()
    return np.array([env.step(np.zeros(3, dtype=int))[1] for _ in range(12)])


def test_training_is_paid_and_evaluations_are_not():
    plain = rewards_of(make_envs(dataclasses.replace(TASK, novelty=0.0), 0, 3))
    np.testing.assert_array_equal(rewards_of(evaluation_envs(TASK, 0, 3)), plain)
    bonus = rewards_of(make_envs(TASK, 0, 3)) - plain
    assert bonus.min() == 0
    assert 0.4 < bonus.max() <= 0.5


def test_stacks_lie_on_top():
    env = make_envs(dataclasses.replace(TASK, frame_stack=2), 0, 3)
    assert isinstance(env, VecFrameStack)
    assert unwrap_vec_wrapper(env, EpisodicNovelty) is env.venv


def test_what_the_agent_did_is_no_news():
    """Of the previous action and the previous reward, which differ with every step, nothing counts."""
    own = dataclasses.replace(TASK, id="fbrl/TMaze-v0", kwargs={"corridor": 9}, n_envs=1)
    env = make_envs(dataclasses.replace(own, previous_action=True, previous_reward=True), 0, 1)
    env.reset()
    rewards = [env.step(np.array([action]))[1][0] for action in (1, 2, 1, 0, 1, 2)]
    assert rewards[:3] == [0, 0, 0]  # still in the first cell
    assert rewards[3] > 0.4
    assert rewards[4:] == [0, 0]


@pytest.mark.parametrize("core", ["feedback", "none"])
def test_the_controls_rollouts_are_told_too(core, tmp_path):
    settings = Settings(
        TASK,
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(96, n_steps=16, seq_len=8, batch_size=24, n_epochs=1, net_arch=[5]),
        RunSettings(device="cpu", eval_every=1000, eval_episodes=2, progress_bar=False),
    )
    model = make_model(settings, make_envs(TASK, 0, 3))
    shapes = [tuple(layer.weight.shape) for layer in model.policy.mlp_extractor.policy_net if hasattr(layer, "weight")]
    assert len(shapes) == 1
    assert shapes[0][0] == 5
    learn(model, settings, tmp_path)
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {"rollout/novelty", "rollout/p_action_0", "rollout/p_action_4"} <= set(tags)
