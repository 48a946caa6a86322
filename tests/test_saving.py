"""Saving, loading and going on; callbacks and wrappers of Stable-Baselines3 as they are."""

import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from fbrl import MemoryPPO
from tests.tasks import CORES, EVERY_CORE, SIZES, VECTOR, collect, make_model, parameters, remembers, sharpen, vec

every_core = pytest.mark.parametrize("core", EVERY_CORE)


def assert_acts_the_same(model, other, batch_size=2):
    """Equal actions and states over more steps than the window."""
    rng = np.random.default_rng(0)
    state = other_state = None
    for step in range(7):
        obs = rng.uniform(-1, 1, (batch_size, 3)).astype(np.float32)
        starts = np.array([step == 3] + [False] * (batch_size - 1))
        actions, state = model.predict(obs, state, starts, deterministic=True)
        others, other_state = other.predict(obs, other_state, starts, deterministic=True)
        np.testing.assert_array_equal(others, actions)
        for array, same in zip(other_state, state, strict=True):
            np.testing.assert_array_equal(same, array)


@every_core
def test_a_loaded_model_acts_the_same(core, tmp_path):
    model = make_model(core).learn(36)
    model.save(tmp_path / "model")
    assert_acts_the_same(model, MemoryPPO.load(tmp_path / "model", device="cpu"), batch_size=5)


@pytest.mark.slow
@every_core
@pytest.mark.parametrize("n_envs", [1, 3, 4])
def test_a_loaded_model_goes_on_with_any_number_of_environments(core, n_envs, tmp_path):
    model = make_model(core).learn(36)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=vec(n_envs), device="cpu")
    assert loaded.seq_len == model.seq_len
    assert loaded.rollout_buffer.n_envs == n_envs
    before = parameters(loaded)
    loaded.learn(24 * n_envs, reset_num_timesteps=False)
    assert loaded.num_timesteps == 36 + 24 * n_envs
    assert len(loaded._last_state[0]) == n_envs
    assert any(not torch.equal(value, before[name]) for name, value in parameters(loaded).items())


def test_a_loaded_model_takes_another_sequence_length(tmp_path):
    make_model().save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=vec(), device="cpu", seq_len=6)
    loaded.learn(36)
    assert loaded.rollout_buffer.seq_len == 6


def test_the_memory_is_not_saved(tmp_path):
    model = make_model().learn(36)
    assert model._last_state is not None
    model.save(tmp_path / "model")
    data, params, variables = load_from_zip_file(tmp_path / "model", device="cpu")
    assert "_last_state" not in data
    assert set(params) == {"policy", "policy.optimizer"}
    assert not variables
    assert "_last_state" not in zipfile.ZipFile(tmp_path / "model.zip").read("data").decode()
    assert MemoryPPO.load(tmp_path / "model", device="cpu")._last_state is None


@every_core
def test_parameters_round_trip(core):
    model, other = make_model(core).learn(36), make_model(core, seed=1)
    other.set_parameters(model.get_parameters())
    assert_acts_the_same(model, other)


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    """Another window is another policy."""
    model = make_model()
    other = {"core_class": CORES["plain"][0], "core_kwargs": SIZES | {"window": 7}}
    with pytest.raises(RuntimeError, match=r"size mismatch for core\.distance"):
        make_model(policy_kwargs=other).set_parameters(model.get_parameters())
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="The specified policy kwargs do not equal the stored policy kwargs"):
        MemoryPPO.load(tmp_path / "model", device="cpu", policy_kwargs=other)


@every_core
def test_learning_twice(core):
    model = make_model(core).learn(36)
    memory, obs = model._last_state, model._last_obs
    model.learn(36, reset_num_timesteps=False)
    assert model.num_timesteps == 72
    # went on from where it was: the first sequences start with the memory that the last rollout ended with
    for part, before in zip(model.rollout_buffer.states[0], memory, strict=True):
        assert torch.equal(part, before)
    first = model.rollout_buffer.observations.reshape(3, 12, 3)[:, 0]
    np.testing.assert_array_equal(first, obs)
    model.learn(36, reset_num_timesteps=True)
    assert model.num_timesteps == 36
    assert model.rollout_buffer.episode_starts.reshape(3, 12)[:, 0].all()


def test_another_environment_of_the_same_number():
    model = make_model().learn(36)
    model.set_env(vec(3))
    model.learn(36, reset_num_timesteps=False)
    assert model.rollout_buffer.episode_starts.reshape(3, 12)[:, 0].all()
    with pytest.raises(AssertionError, match=r"\(2 != 3\).*MemoryPPO\.load"):
        model.set_env(vec(2))


class Stop(BaseCallback):
    """Stops or breaks off learning at its nth step."""

    def __init__(self, n, error=None):
        super().__init__()
        self.n, self.error = n, error

    def _on_step(self):
        if self.n_calls == self.n and self.error:
            raise self.error
        return self.n_calls != self.n


def has_memories(model):
    initial = model.policy.initial_state(model.n_envs)
    return any(not torch.equal(part, empty) for part, empty in zip(model._last_state, initial, strict=True))


def assert_replays(model):
    (batch,) = model.rollout_buffer.get()
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
    torch.testing.assert_close(values.flatten(), batch.old_values, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)


@every_core
def test_going_on_after_a_callback_stopped_in_the_middle_of_a_rollout(core):
    """The memory, the observation and the episode starts are those after the step at which it stopped."""
    model = sharpen(make_model(core, vec(max_length=30)))
    model.learn(36, callback=Stop(7))
    assert model.num_timesteps == 21
    memory = model._last_state
    assert has_memories(model) == remembers(core)  # not the empty memory that the rollout started with
    np.testing.assert_array_equal(model._last_obs, model.env.buf_obs[None])
    collect(model)
    assert_replays(model)
    for part, before in zip(model.rollout_buffer.states[0], memory, strict=True):
        assert torch.equal(part, before)
    model.learn(36, reset_num_timesteps=False)
    assert model.num_timesteps > 21 + 36


@every_core
def test_going_on_after_an_interruption(core):
    """The memory is that before the step at which learning broke off, as the observation is in PPO."""
    model = make_model(core, vec(max_length=30))
    with pytest.raises(KeyboardInterrupt):
        model.learn(36, callback=Stop(7, KeyboardInterrupt()))
    assert has_memories(model) == remembers(core)
    model.learn(36, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in parameters(model).values())


@every_core
def test_callbacks(core, tmp_path):
    evaluate = EvalCallback(vec(2), eval_freq=8, n_eval_episodes=2, verbose=0, best_model_save_path=str(tmp_path))
    checkpoint = CheckpointCallback(save_freq=10, save_path=str(tmp_path))
    stop = StopTrainingOnMaxEpisodes(max_episodes=5)
    model = make_model(core).learn(10_000, callback=[evaluate, checkpoint, stop])
    assert stop.n_episodes >= 15  # of three environments
    assert model.num_timesteps < 10_000
    assert MemoryPPO.load(tmp_path / "best_model", device="cpu").num_timesteps >= 24
    assert MemoryPPO.load(tmp_path / "rl_model_30_steps", device="cpu").num_timesteps == 30


def test_options_of_ppo():
    model = make_model(
        learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        clip_range=LinearSchedule(0.3, 0.1, 1.0),
        clip_range_vf=0.2,
        target_kl=1e-12,
        stats_window_size=4,
        normalize_advantage=False,
        ent_coef=0.01,
    )
    model.learn(72)
    assert model.ep_info_buffer.maxlen == 4
    assert len(model.ep_info_buffer) == 4
    record = model.logger.name_to_value
    assert record["train/clip_range"] == pytest.approx(0.1)
    assert record["train/clip_range_vf"] == 0.2
    assert record["train/learning_rate"] == pytest.approx(1e-4)
    assert model._n_updates == 2  # the target stopped each rollout's first epoch


def test_schedules_are_saved(tmp_path):
    make_model(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0)).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=vec(), device="cpu")
    assert loaded.lr_schedule(0.5) == pytest.approx(5.5e-4)


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar(capsys):
    make_model().learn(36, progress_bar=True)
    assert "36/36" in capsys.readouterr().out


@every_core
def test_normalized_observations_and_rewards(core):
    env = VecNormalize(vec(), gamma=0.99)
    model = make_model(core, env).learn(36)
    assert model.get_vec_normalize_env() is env
    collect(model)
    assert_replays(model)
    expected = env.normalize_obs(env.get_original_obs())
    np.testing.assert_allclose(model._last_obs, expected, rtol=0, atol=1e-5)


def test_stacked_frames():
    env = VecFrameStack(vec(observation_space=spaces.Dict({"vector": VECTOR})), 2)
    model = make_model(env=env, policy="MultiInputPolicy")
    assert model.observation_space["vector"].shape == (6,)
    model.learn(36)
    collect(model)
    assert_replays(model)
