"""Going on exactly where a run stopped."""

import pickle
import random
import threading
import zipfile

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from experiment.agents import make_model as model_of
from experiment.callbacks import Checkpoint, EntropySchedule
from experiment.checkpoints import load_checkpoint, save_checkpoint
from experiment.environments import make_envs
from experiment.episodes import pack
from experiment.files import FileError
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from fbrl import MemoryPPO
from tests.tasks import RandomTask, StopAt, make_model, parameters, vec

UPDATES, ROLLOUT = 5, 32  # in all; environment steps of one


def tiny(task="fbrl/TMaze-v0", core="feedback", **kwargs):
    return Settings(
        EnvSettings(task, n_envs=2, kwargs=kwargs),
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(UPDATES * ROLLOUT, 1e-3, 1e-4, n_steps=16, seq_len=8, batch_size=16, n_epochs=2, ent_coef_end=0.0),
        RunSettings(device="cpu", eval_episodes=2),
    )


def start(settings):
    return model_of(settings, make_envs(settings.env, settings.run.seed, settings.env.n_envs))


def learn(model, settings, *callbacks):
    """To the end of the run, as the script does."""
    callbacks = [EntropySchedule(settings.ppo.ent_coef, settings.ppo.ent_coef_end), *callbacks]
    return model.learn(settings.ppo.timesteps - model.num_timesteps, callbacks, reset_num_timesteps=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flat(value):
    """Every tensor and number in nested dicts and lists."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in flat(value[key])]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, (list, tuple)) else [value]


def assert_equal(value, expected):
    leaves, expected_leaves = flat(value), flat(expected)
    assert len(leaves) == len(expected_leaves)
    for leaf, other in zip(leaves, expected_leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))


@pytest.mark.parametrize("core", ["feedback", "none"])
@pytest.mark.parametrize("task", ["fbrl/TMaze-v0", "MiniGrid-MemoryS7-v0", "fbrl/Counting-v0"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(core, task, tmp_path):
    settings = tiny(task, core)
    whole = learn(start(settings), settings)
    end = random.getstate(), np.random.get_state(), torch.get_rng_state()

    checkpoint = Checkpoint(tmp_path, settings)
    stopped = learn(start(settings), settings, checkpoint, StopAt(checkpoint, 2 * ROLLOUT))
    assert checkpoint.stopped
    assert checkpoint.saved_at == 2 * ROLLOUT
    del stopped
    random.seed(77)  # another process has other random states and environments
    np.random.seed(77)
    torch.manual_seed(77)
    resumed = load_checkpoint(tmp_path, settings, lambda: make_envs(settings.env, 99, settings.env.n_envs))
    assert type(resumed) is (PPO if core == "none" else MemoryPPO)
    assert resumed.num_timesteps == 2 * ROLLOUT
    learn(resumed, settings)

    assert_equal(parameters(resumed), parameters(whole))
    assert_equal(resumed.policy.optimizer.state_dict(), whole.policy.optimizer.state_dict())
    assert resumed.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    for name in ("num_timesteps", "_n_updates", "_current_progress_remaining", "ent_coef", "_last_obs"):
        assert_equal(getattr(resumed, name), getattr(whole, name))
    assert_equal(resumed._last_episode_starts, whole._last_episode_starts)
    if core != "none":
        assert_equal(resumed._last_state, whole._last_state)
    episodes = [[(e["r"], e["l"]) for e in model.ep_info_buffer] for model in (resumed, whole)]
    assert episodes[0] == episodes[1]
    assert (random.getstate(), torch.get_rng_state().tolist()) == (end[0], end[2].tolist())
    assert_equal(np.random.get_state(), end[1])


def test_random_states_come_back(tmp_path):
    model, settings = make_model(), tiny()
    save_checkpoint(model, tmp_path, settings)
    drawn = random.random(), np.random.random(), torch.rand(1)
    load_checkpoint(tmp_path, settings, vec)
    assert (random.random(), np.random.random(), torch.rand(1)) == drawn


class LockedTask(RandomTask):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_environments_that_cannot_be_pickled_start_new_episodes(tmp_path):
    model = make_model(env=vec(task=LockedTask)).learn(36)
    save_checkpoint(model, tmp_path, tiny())
    env = vec(task=LockedTask)
    resumed = load_checkpoint(tmp_path, tiny(), lambda: env)
    assert resumed.env is env
    assert_equal(parameters(resumed), parameters(model))
    assert resumed._last_obs is None
    assert env._seeds == [36, 37, 38], "other episodes than those of the run's start"
    resumed.learn(36, reset_num_timesteps=False)
    assert resumed.num_timesteps == 72
    assert resumed.rollout_buffer.episode_starts.reshape(3, 12)[:, 0].all()


def test_a_checkpoint_is_whole_at_every_moment(tmp_path, monkeypatch):
    """Wherever saving dies, what was there can still be resumed, exactly, and is all that is there."""
    settings, model = tiny(), make_model().learn(36)
    save_checkpoint(model, tmp_path, settings)
    saved, before = parameters(model), contents(tmp_path)
    model.learn(36, reset_num_timesteps=False)

    def die(*_):
        raise OSError("no space left")

    for name in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(name, die)
            with pytest.raises(FileError, match=r"last\.zip cannot be written: no space left"):
                save_checkpoint(model, tmp_path, settings)
        assert contents(tmp_path) == before
        resumed = load_checkpoint(tmp_path, settings, vec)
        assert_equal(parameters(resumed), saved)
        assert resumed._last_obs is not None


def as_two_files(folder):
    """A checkpoint as version 0.1.0 wrote it."""
    with zipfile.ZipFile(folder / "last.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    state = pickle.loads(members.pop("resume.pkl"))
    state["env"] = state["env"].data
    with zipfile.ZipFile(folder / "last.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    (folder / "resume.pkl").write_bytes(cloudpickle.dumps(state))


def test_a_checkpoint_of_two_files_goes_on_exactly_and_becomes_one(tmp_path):
    settings, model = tiny(), make_model().learn(36)
    save_checkpoint(model, tmp_path, settings)
    as_two_files(tmp_path)
    resumed = load_checkpoint(tmp_path, settings, vec)
    assert_equal(resumed._last_obs, model._last_obs)
    assert_equal(resumed._last_state, model._last_state)
    save_checkpoint(resumed, tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["last.zip"]


def test_a_process_that_died_between_the_two_files_starts_new_episodes(tmp_path, capsys):
    """Which is what checkpoints were until they were one file."""
    settings, model = tiny(), make_model().learn(36)
    save_checkpoint(model, tmp_path, settings)
    as_two_files(tmp_path)
    older = (tmp_path / "resume.pkl").read_bytes()
    model.learn(36, reset_num_timesteps=False)
    save_checkpoint(model, tmp_path, settings)
    as_two_files(tmp_path)
    (tmp_path / "resume.pkl").write_bytes(older)
    resumed = load_checkpoint(tmp_path, settings, vec)
    assert resumed.num_timesteps == 72
    assert_equal(parameters(resumed), parameters(model))
    assert resumed._last_obs is None
    assert resumed._last_state is None
    assert capsys.readouterr().out == (
        f"{tmp_path}: goes on with new episodes: the process that saved it died between two files\n"
    )


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    settings, model = tiny(), make_model().learn(36)
    save_checkpoint(model, tmp_path, settings)
    before = contents(tmp_path)
    model.policy.value_net.bias.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the weights are not finite after 36 steps; nothing was saved"):
        save_checkpoint(model, tmp_path, settings)
    assert contents(tmp_path) == before


def test_missing_and_broken_checkpoints(tmp_path):
    settings = tiny()
    with pytest.raises(SettingsError, match=r"holds no checkpoint to resume: last\.zip is missing"):
        load_checkpoint(tmp_path, settings, vec)
    save_checkpoint(make_model(), tmp_path, settings)
    as_two_files(tmp_path)
    whole = contents(tmp_path)
    for name in ("last.zip", "resume.pkl"):
        (tmp_path / name).write_bytes(whole[name][:100])
        with pytest.raises(SettingsError, match="the checkpoint cannot be read"):
            load_checkpoint(tmp_path, settings, vec)
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / "resume.pkl").unlink()
    with pytest.raises(SettingsError, match=r"last\.zip is an agent without resume\.pkl"):
        load_checkpoint(tmp_path, settings, vec)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("env", "id", "MiniGrid-MemoryS7-v0"),
        ("env", "kwargs", {"corridor": 4}),
        ("env", "engine", "envpool"),
        ("core", "window", 5),
        ("ppo", "gamma", 0.5),
    ],
)
def test_other_settings_are_refused(group, name, value, tmp_path):
    save_checkpoint(make_model(), tmp_path, tiny(corridor=3))
    other = tiny(corridor=3)
    setattr(getattr(other, group), name, value)
    with pytest.raises(SettingsError, match=rf"{group}\.{name} in .*config\.yaml must be .*, got "):
        load_checkpoint(tmp_path, other, vec)


def test_the_length_and_the_run_may_change(tmp_path):
    save_checkpoint(make_model().learn(36), tmp_path, tiny())
    other = tiny()
    other.ppo.timesteps, other.run.eval_every, other.run.checkpoint_every = 10**6, 7, 7
    assert load_checkpoint(tmp_path, other, vec).num_timesteps == 36


def test_a_checkpoint_from_before_a_setting_was_there(tmp_path):
    """It was made with what is the default now."""
    model, settings = make_model().learn(36), tiny()
    save_checkpoint(model, tmp_path, settings)
    as_two_files(tmp_path)
    state = cloudpickle.loads((tmp_path / "resume.pkl").read_bytes())
    del state["settings"]["env"]["engine"]
    (tmp_path / "resume.pkl").write_bytes(cloudpickle.dumps(state))
    assert load_checkpoint(tmp_path, settings, vec).num_timesteps == 36
    settings.env.engine = "envpool"
    with pytest.raises(SettingsError, match=r"env\.engine in .*config\.yaml must be minigrid, .*, got envpool"):
        load_checkpoint(tmp_path, settings, vec)


def test_environments_of_envpool_start_new_episodes(tmp_path):
    pytest.importorskip("envpool")
    settings = tiny("MiniGrid-LavaGapS5-v0")
    settings.env.engine = "envpool"
    model = learn(start(settings), settings)
    save_checkpoint(model, tmp_path, settings)
    assert pack(model.env).data is None
    resumed = load_checkpoint(tmp_path, settings, lambda: make_envs(settings.env, 0, 2))
    assert_equal(parameters(resumed), parameters(model))
    assert resumed._last_obs is None
    resumed.learn(ROLLOUT, reset_num_timesteps=False)
    assert resumed.num_timesteps == (UPDATES + 1) * ROLLOUT


@pytest.mark.parametrize("engine", ["minigrid", "envpool"])
def test_the_novelty_bonus_goes_on_where_it_was(engine, tmp_path):
    """Bit for bit, with what the episodes have shown; with new episodes, in how far the bonus has fallen."""
    if engine == "envpool":
        pytest.importorskip("envpool")

    def settings():
        made = tiny("MiniGrid-LavaGapS5-v0")
        made.env.engine, made.env.novelty, made.env.novelty_steps = engine, 0.25, 2 * UPDATES * ROLLOUT
        return made

    whole = learn(start(settings()), settings())
    stopping = settings()
    checkpoint = Checkpoint(tmp_path, stopping)
    learn(start(stopping), stopping, checkpoint, StopAt(checkpoint, 3 * ROLLOUT))
    resumed = load_checkpoint(tmp_path, settings(), lambda: make_envs(settings().env, 0, 2))
    assert resumed.num_timesteps == 3 * ROLLOUT
    assert resumed.env.steps_done == 3 * ROLLOUT
    assert resumed.env.bonus == pytest.approx(0.25 * 0.7)
    learn(resumed, settings())
    if engine == "minigrid":
        assert_equal(parameters(resumed), parameters(whole))
        np.testing.assert_array_equal(resumed.rollout_buffer.rewards, whole.rollout_buffer.rewards)


def test_gymnasium_environments_are_restored_where_they_stood(tmp_path):
    model = make_model().learn(36)
    save_checkpoint(model, tmp_path, tiny())
    resumed = load_checkpoint(tmp_path, tiny(), vec)
    for one, other in zip(resumed.env.envs, model.env.envs, strict=True):
        assert isinstance(one, gym.Env)
        assert one.unwrapped.left == other.unwrapped.left
        assert one.unwrapped.np_random.random() == other.unwrapped.np_random.random()
