"""Normalized observations and rewards: in training, in evaluations, in the agent's file, and after --resume."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from experiment.agents import find_agent, make_model
from experiment.callbacks import Checkpoint
from experiment.checkpoints import load_checkpoint, save_checkpoint
from experiment.environments import evaluation_envs, training_envs
from experiment.playing import How, evaluate
from experiment.saved import load, start_from
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.training import train
from fbrl.evaluation import load_agent
from fbrl.normalizing import normalize
from fbrl.vec_env import FiniteVecEnv
from tests.tasks import DICT, RandomTask, StopAt, parameters

ID = "tests/Far-v0"


class Far(gym.Env):
    """Observations around 1000, of two very different deviations; the reward is large."""

    def __init__(self, as_dict=False):
        box = spaces.Box(-np.inf, np.inf, (2,))
        self.as_dict = as_dict
        self.observation_space = spaces.Dict({"vector": box, "symbol": spaces.Discrete(3)}) if as_dict else box
        self.action_space = spaces.Box(-1, 1, (1,))

    def _observe(self):
        obs = (1000 + self.np_random.normal(size=2) * [100, 10]).astype(np.float32)
        return {"vector": obs, "symbol": 1} if self.as_dict else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        return self._observe(), 500.0 * float(action[0]), False, self.t == 7, {}


@pytest.fixture(autouse=True, scope="module")
def task():
    gym.register(ID, entry_point=Far)
    yield
    del gym.registry[ID]


def tiny(folder=".", core="feedback", name="run", **kwargs):
    ppo = {"n_steps": 32, "seq_len": 8, "batch_size": 32, "n_epochs": 2}
    return Settings(
        EnvSettings(ID, n_envs=2, kwargs=kwargs, normalize_observations=True, normalize_rewards=True),
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(256, **ppo),
        RunSettings(name, str(folder), device="cpu", eval_every=128, eval_episodes=3, progress_bar=False),
    )


@pytest.mark.parametrize("core", ["feedback", "none"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_statistics_go_where_the_agent_goes(tmp_path, core, as_dict):
    """An agent from a file takes what the task shows, and does what it does in the environments it was trained in."""
    settings = tiny(tmp_path, core, as_dict=as_dict)
    folder = train(settings)
    for file in ("last.zip", "best.zip"):
        agents = [load_agent(folder / file, "cpu"), load(folder / file, settings, "cpu")]
        bare = (
            PPO.load(folder / file, device="cpu")
            if core == "none"
            else type(agents[0]).load(folder / file, device="cpu")
        )
        raw = evaluation_envs(settings.env, 5, 3)
        obs = raw.reset()
        model = load_checkpoint(folder, settings, lambda: training_envs(settings))
        assert isinstance(model.env, VecNormalize)
        expected, _ = bare.predict(model.env.normalize_obs(obs), deterministic=True)
        for agent in agents:
            got, _ = agent.predict(obs, deterministic=True)
            if file == "last.zip":
                np.testing.assert_array_equal(got, expected)
                assert not np.array_equal(got, bare.predict(obs, deterministic=True)[0])
    checkpoint, found = find_agent(str(folder))
    summary = evaluate(load(checkpoint, found, "cpu"), found.env, How(episodes=4))
    assert summary.length.value == 7


@pytest.mark.parametrize("normalized", [True, False])
def test_an_agent_is_not_started_from_in_other_units(tmp_path, normalized):
    """Its weights would see observations that they do not know."""
    first, second = tiny(tmp_path), tiny(tmp_path)
    first.env.normalize_observations, second.env.normalize_observations = normalized, not normalized
    folder = train(first)
    second.run.start_from = str(folder)
    model = make_model(second, training_envs(second))
    message = f"env.normalize_observations must be {str(normalized).lower()}, as of that agent"
    with pytest.raises(SettingsError, match=message):
        start_from(model, second)
    second.env.normalize_observations = normalized
    start_from(make_model(second, training_envs(second)), second)


def test_observations_are_in_units_of_what_was_seen(tmp_path):
    model = make_model(tiny(), training_envs(tiny()))
    model.learn(256)
    obs = model.rollout_buffer.observations.reshape(-1, 2)
    assert np.abs(obs.mean(axis=0)).max() < 1
    assert 0.5 < obs.std(axis=0).min() < obs.std(axis=0).max() < 2
    assert np.abs(model.env.get_original_obs()).max() > 500


def test_evaluations_neither_change_the_statistics_nor_see_other_rewards(tmp_path):
    settings = tiny(tmp_path)
    settings.run.eval_every = 64
    often = train(settings)
    settings.run.name, settings.run.eval_every = "seldom", 10**6
    seldom = train(settings)
    one, other = (load_agent(folder / "last.zip", "cpu").policy.state_dict() for folder in (often, seldom))
    assert all(torch.equal(one[name], other[name]) for name in other)
    returns = [
        float(line.split('"return": ')[1].split(",")[0])
        for line in (often / "evaluations.jsonl").read_text().splitlines()
    ]
    assert max(map(abs, returns)) > 30, "the task's own rewards"


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    settings = tiny()
    whole = make_model(settings, training_envs(settings)).learn(256)
    checkpoint = Checkpoint(tmp_path, settings)
    make_model(settings, training_envs(settings)).learn(256, [checkpoint, StopAt(checkpoint, 128)])
    resumed = load_checkpoint(tmp_path, settings, lambda: training_envs(settings))
    assert resumed._last_obs is not None
    resumed.learn(128, reset_num_timesteps=False)
    for name, value in parameters(whole).items():
        assert torch.equal(parameters(resumed)[name], value)
    np.testing.assert_array_equal(resumed.env.obs_rms.mean, whole.env.obs_rms.mean)


def test_new_episodes_go_on_with_the_statistics(tmp_path, monkeypatch):
    settings = tiny()
    model = make_model(settings, training_envs(settings)).learn(128)
    monkeypatch.setattr("experiment.episodes.KNOWN", set())
    save_checkpoint(model, tmp_path, settings)
    resumed = load_checkpoint(tmp_path, settings, lambda: training_envs(settings))
    assert resumed._last_obs is None
    for name in ("obs_rms", "ret_rms"):
        mine, kept = getattr(resumed.env, name), getattr(model.env, name)
        np.testing.assert_array_equal(mine.mean, kept.mean)
        np.testing.assert_array_equal(mine.var, kept.var)
        assert mine.count == kept.count


@pytest.mark.parametrize("env_id", ["fbrl/TMaze-v0", "MiniGrid-MemoryS7-v0", "FrozenLake-v1"])
def test_symbols_are_refused(tmp_path, env_id):
    settings = tiny(tmp_path)
    settings.env.id = env_id
    with pytest.raises(SettingsError, match=r"env\.normalize_observations needs observations in real numbers, got "):
        train(settings)
    assert list(tmp_path.iterdir()) == []
    settings.env.normalize_observations = False
    assert isinstance(training_envs(settings), VecNormalize)  # rewards are numbers everywhere


def test_of_a_dict_the_numbers_are_normalized():
    env = normalize(FiniteVecEnv([lambda: RandomTask(DICT)]), True, False, 0.9)
    assert env.norm_obs_keys == ["vector"]
    assert normalize(env, False, False, 0.9) is env


def test_the_settings_of_a_control_task_in_the_zoo(tmp_path):
    """gSDE, layers, activation, initial deviation, linear clip range: what RL Baselines3 Zoo tunes."""
    for core in ("feedback", "none"):
        settings = tiny(tmp_path, core, name=core)
        settings.ppo = PPOSettings(
            64, n_steps=32, seq_len=8, batch_size=32, n_epochs=1, net_arch=[16], activation="gelu", ortho_init=False,
            use_sde=True, sde_sample_freq=4, log_std_init=-2.0, clip_range=0.4, clip_range_end=0.2,
        )  # fmt: skip
        folder = train(settings)
        agent = load(folder / "last.zip", settings, "cpu")
        assert agent.use_sde
        assert isinstance(agent.policy.mlp_extractor.policy_net[1], torch.nn.GELU)
        assert agent.policy.log_std.mean().item() == pytest.approx(-2, abs=0.1)
        trained = load_agent(folder / "last.zip", "cpu")
        assert (trained.sde_sample_freq, trained.policy.ortho_init) == (4, False)
        assert trained.clip_range(0.5) == pytest.approx(0.3)
    settings.env.id, settings.env.normalize_observations = "CartPole-v1", False
    settings.run.name = "other"
    with pytest.raises(SettingsError, match=r"ppo\.use_sde must be false for actions that are not in a Box, got Disc"):
        train(settings)
