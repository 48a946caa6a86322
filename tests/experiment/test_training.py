"""Trainings that end early, and how many environments they make."""

import os
import re
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from experiment import training
from experiment.agents import make_model
from experiment.callbacks import MemoryFigures
from experiment.environments import training_envs
from experiment.files import FileError
from experiment.parsing import load_settings
from experiment.saved import start_from
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.training import final_line, train
from fbrl import MemoryPPO
from fbrl.evaluation import AgentError
from fbrl.vec_env import TaskError

ID = "tests/Counted-v0"
UPDATES, ROLLOUT = 4, 16


class Counted(gym.Env):
    """Counts its instances; episodes of ``length`` steps, or endless ones; fails in the ``fails``-th step of all."""

    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
    made = open = most = steps = 0

    def __init__(self, length=5, at_once=99, fails=None, success=False):
        if Counted.open == at_once:
            raise RuntimeError("no more licences")
        Counted.made += 1
        Counted.open += 1
        Counted.most = max(Counted.most, Counted.open)
        self.length, self.fails, self.success = length, fails, success
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        Counted.steps += 1
        if Counted.steps == self.fails:
            raise ZeroDivisionError("of the user's own")
        info = {"is_success": bool(action)} if self.success and self.t == self.length else {}
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self.t == self.length, False, info

    def close(self):
        if not self.closed:
            self.closed = True
            Counted.open -= 1


@pytest.fixture(autouse=True)
def task():
    Counted.made = Counted.open = Counted.most = Counted.steps = 0
    gym.register(ID, entry_point=Counted)
    yield
    del gym.registry[ID]


@pytest.fixture
def settings(tmp_path):
    def make(env_id=ID, core="feedback", n_envs=1, **kwargs):
        run = {"name": "run", "eval_every": 32, "eval_episodes": 2, "eval_envs": 1, "checkpoint_every": 10**6}
        run |= {name: kwargs.pop(name) for name in list(kwargs) if name in RunSettings.__dataclass_fields__}
        return Settings(
            EnvSettings(env_id, n_envs=n_envs, kwargs=kwargs),
            CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
            PPOSettings(UPDATES * ROLLOUT, n_steps=ROLLOUT // n_envs, seq_len=4, batch_size=16, n_epochs=1),
            RunSettings(folder=str(tmp_path), device="cpu", progress_bar=False, **run),
        )

    return make


def weights(folder):
    return MemoryPPO.load(folder / "last.zip", device="cpu").policy.state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(("eval_envs", "eval_episodes"), [(1, 2), (RunSettings.eval_envs, 1)])
def test_a_task_that_allows_two_instances_trains_to_the_end(settings, eval_envs, eval_episodes):
    """Kind: more simulators than asked for. One to train in, one to evaluate in, and all are closed."""
    given = settings(at_once=2, eval_envs=eval_envs, eval_episodes=eval_episodes)
    folder = train(given)
    assert (folder / "finished").exists()
    assert Counted.open == 0
    assert "return 5.000" in final_line(given, folder)
    assert (Counted.most, Counted.open) == (2, 0)
    assert Counted.made == 3, "one to train in, one to evaluate in, one for the last evaluation"


@pytest.mark.parametrize(("n_envs", "eval_envs", "episodes"), [(4, 3, 2), (2, 3, 7)])
def test_no_more_environments_are_made_than_asked_for(settings, n_envs, eval_envs, episodes):
    train(settings(n_envs=n_envs, eval_envs=eval_envs, eval_episodes=episodes))
    assert Counted.made == Counted.most == n_envs + min(eval_envs, episodes)
    assert Counted.open == 0


def test_a_resumed_run_makes_no_more(settings, monkeypatch, tmp_path):
    def interrupt(figures):
        if figures.model.num_timesteps == 2 * ROLLOUT:
            os.kill(os.getpid(), signal.SIGTERM)

    given = settings(at_once=2)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", interrupt)
        with pytest.raises(SystemExit):
            train(given)
    assert Counted.open == 0
    Counted.made = 0
    folder = train(given, tmp_path / "run")
    assert (folder / "finished").exists()
    assert Counted.made <= 2
    assert Counted.open <= 0  # those that were unpickled are closed, and never counted as open


@pytest.mark.parametrize("core", ["feedback", "none"])
def test_an_error_of_the_task_saves_the_last_finished_update(settings, tmp_path, capsys, core):
    """Kind: an exception that loses everything since the last checkpoint."""
    given = settings(core=core, fails=3 * ROLLOUT + 7, eval_every=10**6)  # in the fourth rollout
    with pytest.raises(TaskError, match=r"environment 0 \(tests/Counted-v0\), step \d of its episode: Zero") as error:
        train(given)
    folder = tmp_path / "run"
    note = f"{folder}: saved as of 48 steps; go on with: python train_agent.py --resume {folder}"
    assert error.value.__notes__ == [note]
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert Counted.open == 0

    Counted.steps = 1000  # it does not fail again
    capsys.readouterr()
    assert train(given, folder) == folder
    out = capsys.readouterr().out
    assert f"{folder}: goes on with new episodes: an error ended them\n" in out
    assert "going on from 48 of 64 steps" in out
    assert (folder / "finished").exists()


def test_an_error_in_the_very_first_reset(settings, monkeypatch, tmp_path):
    """Kind: an error of the task that an error of our own takes the place of."""

    def reset(env, **kwargs):
        raise StopIteration("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Counted, "reset", reset)
        with pytest.raises(TaskError, match=r"step 0 of its episode: StopIteration: no more") as error:
            train(settings())
    assert "saved as of 0 steps" in error.value.__notes__[0]
    assert train(settings(), tmp_path / "run") == tmp_path / "run"


@pytest.mark.parametrize("error", [ValueError("a\nb"), SystemExit("a b")])
def test_an_error_in_closing_loses_nothing(settings, monkeypatch, capsys, error):
    def close(env):
        raise error

    monkeypatch.setattr(Counted, "close", close)
    assert (train(settings()) / "finished").exists()
    warning, *_ = capsys.readouterr().err.splitlines()
    assert warning == f"warning: closing the environments: {type(error).__name__}: a b"


def test_an_error_in_an_update_saves_the_weights_before_it(settings, monkeypatch, tmp_path):
    """Not those that half of the update has made."""
    given = settings(eval_every=10**6)
    seen = []
    original = MemoryPPO.train

    def fail(model):
        if model.num_timesteps == 3 * ROLLOUT:
            seen.append({name: value.clone() for name, value in model.policy.state_dict().items()})
            original(model)
            raise MemoryError("in the update")
        original(model)

    monkeypatch.setattr(MemoryPPO, "train", fail)
    with pytest.raises(MemoryError) as error:
        train(given)
    assert "saved as of 32 steps" in error.value.__notes__[0]
    saved = MemoryPPO.load(tmp_path / "run" / "last.zip", device="cpu")
    assert saved.num_timesteps == 2 * ROLLOUT
    for name, value in saved.policy.state_dict().items():
        if not name.startswith(("value_scale", "value_net")):  # the units of the values move before the first step
            torch.testing.assert_close(value, seen[0][name], rtol=0, atol=0)


def test_an_error_in_an_evaluation(settings, tmp_path):
    given = settings(fails=2 * ROLLOUT + 4)  # the first evaluation comes after two rollouts
    with pytest.raises(TaskError) as error:
        train(given)
    assert "saved as of 32 steps" in error.value.__notes__[0]
    assert Counted.open == 0


def test_where_nothing_newer_can_be_saved(settings, monkeypatch, tmp_path):
    """A full disk: the checkpoint before stays, and the line names the file."""
    given = settings(fails=3 * ROLLOUT + 7, eval_every=10**6)
    write = training.files.write

    def full(path, data):
        if path.name == "last.zip" and Counted.steps > ROLLOUT:
            raise FileError(f"{path} cannot be written: No space left on device")
        write(path, data)

    monkeypatch.setattr(training.files, "write", full)
    with pytest.raises(TaskError) as error:
        train(given)
    folder = tmp_path / "run"
    full_disk = f"({folder}/last.zip cannot be written: No space left on device)"
    assert error.value.__notes__ == [
        f"{folder}: saved as of 0 steps {full_disk}; go on with: python train_agent.py --resume {folder}"
    ]


def test_an_endless_episode_ends_neither_evaluation_nor_training(settings, tmp_path):
    """Kind: an evaluation that never ends."""
    given = settings(length=0, eval_max_steps=11)
    folder = train(given)
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    assert all(re.search(r'"length": 11.0, "cut": 2}$', line) for line in lines)
    assert "20 cut after 11 steps" in final_line(given, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("last", [False, True])
def test_an_interrupt_is_heard_in_an_evaluation(settings, monkeypatch, tmp_path, capsys, number, last):
    """In one on the way, and in the last. It ends the evaluation, and the run is saved."""
    given = settings(length=0, eval_max_steps=10**9, eval_every=10**6 if last else 32)
    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("this is run with nohup")
    trained = (UPDATES if last else 2) * ROLLOUT
    step = Counted.step

    def interrupting(task, action):
        if Counted.steps == trained + 50:
            os.kill(os.getpid(), number)
        return step(task, action)

    monkeypatch.setattr(Counted, "step", interrupting)
    with pytest.raises(SystemExit) as end:
        train(given)
    assert end.value.code == 130
    assert f"saved at {trained} steps; go on with: " in capsys.readouterr().out
    assert Counted.steps < trained + 60
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == ""


def test_nohup_is_respected(settings, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(MemoryFigures, "_on_rollout_end", lambda figures: os.kill(os.getpid(), signal.SIGHUP))
        assert (train(settings()) / "finished").exists()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluations_act_as_the_setting_says(settings, monkeypatch, deterministic):
    """And leave what the training draws as it is: the weights are the same however much is evaluated."""
    acted, original = [], MemoryPPO.predict

    def note(*args, **kwargs):
        acted.append(kwargs["deterministic"])
        return original(*args, **kwargs)

    monkeypatch.setattr(MemoryPPO, "predict", note)
    often = train(settings(eval_deterministic=deterministic, eval_every=1, name="often"))
    final = final_line(settings(eval_deterministic=deterministic), often)
    assert set(acted) == {deterministic}
    assert final == final_line(settings(eval_deterministic=deterministic), often)
    seldom = train(settings(eval_deterministic=deterministic, eval_every=10**6, name="seldom"))
    assert equal(weights(often), weights(seldom))


def test_stopping_at_a_success_that_is_never_reported_is_told(settings, capsys):
    """Kind: a setting that has no effect, without a word."""
    train(settings(stop_at_success=0.5))
    first, second, *others = capsys.readouterr().out.splitlines()
    assert "feedback core on" in first
    assert second.startswith("run.stop_at_success has no effect: the task does not report success")
    assert not any("stop_at_success" in line for line in others)
    train(settings(stop_at_success=0.0, success=True, name="other"))
    assert "has no effect" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_is_trained_longer(settings, tmp_path, capsys, finished):
    """Kind: going on with other settings. Schedules are those of the new length; what was is kept."""
    given = settings(success=True)
    given.ppo.ent_coef_end = 0.0
    folder = train(given)
    lines = (folder / "evaluations.jsonl").read_text()
    if not finished:
        (folder / "finished").unlink()
    capsys.readouterr()
    given.ppo.timesteps = 2 * UPDATES * ROLLOUT
    assert train(given, folder) == folder
    out = capsys.readouterr().out
    assert "going on from 64 of 128 steps" in out
    assert "schedules are those of 128 steps now; the learning rate goes on at 0.00025" in out
    assert (folder / "finished").exists()
    assert load_settings(folder / "config.yaml") == given
    assert (folder / "evaluations.jsonl").read_text().startswith(lines)
    assert MemoryPPO.load(folder / "last.zip", device="cpu").num_timesteps == 128

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given.ppo.timesteps = 100
    with pytest.raises(SettingsError, match=r"^ppo\.timesteps must be more than 128, which .*/run has made, got 100$"):
        train(given, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_new_run_starts_from_an_agent(settings, tmp_path):
    """On another task of the same spaces; with its weights, and a new optimiser and new counters."""
    first = train(settings())
    given = settings(name="second", length=3, start_from=str(first))
    env = training_envs(given)
    model = make_model(given, env)
    start_from(model, given)
    assert equal(model.policy.state_dict(), MemoryPPO.load(first / "best.zip", device="cpu").policy.state_dict())
    assert (model.num_timesteps, model.policy.optimizer.state_dict()["state"]) == (0, {})
    second = train(given)
    assert MemoryPPO.load(second / "last.zip", device="cpu").num_timesteps == 64
    assert not equal(weights(second), weights(first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 5}, r"core\.window must be 4, as of that agent, got 5"),
        ({"core": "gru"}, r"core\.name must be feedback, as of that agent, got gru"),
        ({"env_id": "CartPole-v1"}, r"the agent is of other observations, actions or layers: .* there and .* here"),
        ({"net_arch": [16, 16]}, "the agent is of other observations, actions or layers: only .* has mlp_extractor"),
    ],
)
def test_an_agent_that_a_run_cannot_start_from(settings, tmp_path, change, message):
    first = train(settings())
    window, net_arch = change.pop("window", None), change.pop("net_arch", None)
    given = settings(name="second", start_from=str(first), **change)
    given.core.window = window or given.core.window
    given.ppo.net_arch = net_arch or given.ppo.net_arch
    with pytest.raises(SettingsError, match=rf"^run\.start_from {first}/best\.zip: {message}"):
        train(given)
    assert not (tmp_path / "second").exists()
    given.run.start_from = str(tmp_path / "nowhere")
    with pytest.raises(AgentError, match=r"^run\.start_from: .*nowhere: no such file or folder"):
        train(given)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    "sizes",
    [
        {"core.d_model": 100_000, "core.d_feedforward": 100_000},
        {"core.d_model": 40_000},  # which a system may grant, and end the process for using it
        {"core.window": 1_000_000, "ppo.n_steps": 4096, "ppo.seq_len": 4},  # memories before every sequence
    ],
)
def test_what_does_not_fit_into_memory_is_refused(settings, tmp_path, sizes):
    given = settings()
    for name, value in sizes.items():
        group, _, key = name.partition(".")
        setattr(getattr(given, group), key, value)
    message = (
        r"the agent and its rollouts do not fit into memory: they take [\d,]+ GiB or more, and this machine has \d+"
    )
    with pytest.raises(SettingsError, match=message):
        train(given)
    assert not (tmp_path / "run").exists()


def test_what_a_system_does_not_grant_is_refused(settings, monkeypatch):
    """Where the machine's memory is not known, or less of it is left."""
    monkeypatch.setattr("experiment.sizes.memory_of_machine", lambda: None)
    given = settings()
    given.core.d_model = given.core.d_feedforward = 100_000
    with pytest.raises(SettingsError, match="the agent and its rollouts do not fit into memory; smaller ones of core"):
        train(given)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("action_space", spaces.Discrete(3, start=-1)),
        ("action_space", spaces.MultiDiscrete([2, 3], start=[0, 1])),
        ("observation_space", spaces.Discrete(5, start=2)),
    ],
)
def test_the_agent_without_memory_refuses_spaces_that_do_not_start_at_zero(settings, monkeypatch, name, space):
    """Kind: attributes of a space beyond its size. Stable-Baselines3's own PPO would act outside of the space."""
    monkeypatch.setattr(Counted, name, space)
    env = training_envs(settings())
    for given, setting in ((settings(core="none"), "core.name: none"), (settings(control=True), "run.control: true")):
        with pytest.raises(SettingsError, match=f"^{setting}: {name} must start at 0 for an agent without memory"):
            make_model(given, env)
    assert isinstance(make_model(settings(), env), MemoryPPO), "the agent with a memory takes them"
