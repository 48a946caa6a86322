"""env.frame_stack: the agent sees the last observations of its episode in one, in training and in every evaluation."""

import runpy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack

from experiment.agents import check_agent, make_model
from experiment.callbacks import Checkpoint
from experiment.checkpoints import load_checkpoint
from experiment.environments import evaluation_envs, make_envs
from experiment.insight import check_recordable
from experiment.playing import How, evaluate, exhaustive
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from fbrl.vec_env import FiniteVecEnv, stack_frames
from tests.tasks import DICT, RandomTask, StopAt, collect

ID = "tests/Steps-v0"
EPISODE = [(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)]  # as the agent sees it through three observations


class Steps(gym.Env):
    """Shows 10, 20, ... with one start and 1, 2, ... with the other; episodes of five steps."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(0, 60, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.scale, self.t = (1, 10)[self.np_random.integers(2)], 1
        return np.array([self.scale], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.scale * self.t], np.float32), 0.0, self.t == 6, False, {"is_success": self.scale == 10}


@pytest.fixture(autouse=True, scope="module")
def task():
    gym.register(ID, entry_point=Steps)
    yield
    del gym.registry[ID]


class Watcher:
    """An agent that keeps what it sees."""

    def __init__(self):
        self.seen = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.seen.append(observation.copy())
        return np.zeros(len(observation), dtype=int), state


def tiny(env_id=ID, core="feedback", frame_stack=3, **kwargs):
    return Settings(
        EnvSettings(env_id, n_envs=2, kwargs=kwargs, frame_stack=frame_stack),
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(64, n_steps=16, seq_len=8, batch_size=16, n_epochs=1),
        RunSettings(device="cpu", eval_episodes=2),
    )


def start(settings):
    return make_model(settings, make_envs(settings.env, 0, settings.env.n_envs))


def of_one_episode(frames):
    """Scaled down to a start with 1; frames (T, 3)."""
    return [tuple(frame) for frame in frames / frames[0, -1]]


def test_in_training():
    model = start(tiny())
    collect(model)
    rollout = model.rollout_buffer
    assert rollout.observations.shape == (16, 2, 3)
    for environment in range(2):
        assert np.flatnonzero(rollout.episode_starts[:, environment]).tolist() == [0, 5, 10, 15]
        for first in (0, 5, 10):
            assert of_one_episode(rollout.observations[first : first + 5, environment]) == EPISODE


@pytest.mark.parametrize("make", [make_envs, evaluation_envs])
def test_the_stack_is_emptied_at_the_start_of_an_episode(make):
    env = make(tiny().env, 0, 1)
    seen = [env.reset()[0].copy()]
    for step in range(1, 12):
        observations, _, dones, infos = env.step(np.zeros(1, dtype=int))
        if dones[0]:
            last = infos[0]["terminal_observation"]
            assert of_one_episode(np.array([*seen[-5:], last])) == [*EPISODE, (4, 5, 6)]
        assert dones[0] == (step % 5 == 0)
        seen.append(observations[0].copy())


@pytest.mark.parametrize("how", [How(episodes=6), How(exhaustive=True)])
def test_in_evaluation(how):
    watcher, env = Watcher(), tiny().env
    summary = evaluate(watcher, env, how)
    for environment in range(2):
        assert of_one_episode(np.array(watcher.seen)[:5, environment]) == EPISODE
    if how.exhaustive:
        assert (summary.success.value, summary.length.value) == (0.5, 5)
        assert {frame[environment, -1] for frame in watcher.seen[:1] for environment in range(2)} == {1, 10}
        assert summary == exhaustive(Watcher(), env)


@pytest.mark.parametrize("core", ["feedback", "none"])
def test_a_saved_agent_is_evaluated_as_it_was_trained(core, tmp_path, monkeypatch, capsys):
    settings = tiny("fbrl/GridWalk-v0", core, size=2, length=3)
    settings.save(tmp_path / "config.yaml")
    model = start(settings)
    assert model.observation_space.shape == (15,)
    model.save(tmp_path / "best.zip")
    monkeypatch.setattr("sys.argv", ["evaluate_agent.py", str(tmp_path), "--device=cpu", "--episodes=7"])
    runpy.run_path(str(Path(__file__).parents[2] / "evaluate_agent.py"), run_name="__main__")
    assert "7 episodes, sampled actions, seed 1000" in capsys.readouterr().out
    for stack, shape in ((None, 5), (2, 10)):
        other = tiny("fbrl/GridWalk-v0", core, stack, size=2, length=3)
        with pytest.raises(SettingsError, match=rf"are Box\(15,\) .*GridWalk-v0 are Box\({shape},\) up"):
            check_agent(tmp_path / "best.zip", model, other)


@pytest.mark.parametrize("env_id", [ID, "fbrl/GridWalk-v0"])
def test_a_resumed_run_goes_on_where_it_was(env_id, tmp_path):
    settings = tiny(env_id)
    whole = start(settings).learn(64)
    checkpoint = Checkpoint(tmp_path, settings)
    start(settings).learn(64, [checkpoint, StopAt(checkpoint, 32)])
    assert checkpoint.saved_at == 32
    resumed = load_checkpoint(tmp_path, settings, lambda: make_envs(settings.env, 99, 2))
    assert type(resumed.env) is VecFrameStack
    assert resumed.num_timesteps == 32
    resumed.learn(32, reset_num_timesteps=False)
    assert resumed.num_timesteps == 64
    np.testing.assert_array_equal(resumed._last_obs, whole._last_obs)
    for weight, other in zip(resumed.policy.parameters(), whole.policy.parameters(), strict=True):
        np.testing.assert_array_equal(weight.detach(), other.detach())


def test_other_seeds_are_other_levels():
    env, again = (make_envs(tiny("fbrl/Counting-v0").env, 0, 2) for _ in range(2))
    again.seed(32)

    def marks(env):
        env.reset()
        return np.stack([env.step(np.zeros(2, dtype=int))[0] for _ in range(20)])

    first = marks(env)
    assert not (first == marks(again)).all()
    env.seed(0)
    np.testing.assert_array_equal(marks(env), first)


def test_none_leaves_the_environments_as_they_are():
    env = FiniteVecEnv([RandomTask])
    assert stack_frames(env, None) is env
    assert stack_frames(env, 1).observation_space.shape == (3,)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (DICT, r"got Discrete\(4\) in 'symbol'"),
        (spaces.Discrete(5), r"got Discrete\(5\)"),
        (spaces.MultiBinary(3), r"got MultiBinary\(3\)"),
        (spaces.Box(-1, 1, ()), r"got Box\(-1.0, 1.0, \(\), float32\)"),
    ],
)
def test_other_observations_are_refused(space, message):
    env = FiniteVecEnv([lambda: RandomTask(space)])
    with pytest.raises(
        ValueError, match=rf"^env.frame_stack needs observations in a Box, or a Dict of them, {message}$"
    ):
        stack_frames(env, 3)


def test_a_dict_of_boxes_is_stacked():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,))})
    stacked = stack_frames(FiniteVecEnv([lambda: RandomTask(space)]), 5).observation_space
    assert {key: part.shape for key, part in stacked.items()} == {"a": (10,), "b": (15,)}


def test_there_is_no_video():
    with pytest.raises(SettingsError, match=r"^--video: env\.frame_stack must be null, got 3$"):
        check_recordable(tiny("fbrl/TMaze-v0").env, "--video")
