"""The script as a user runs it: results, files, interrupts, and one line for every bad input."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiment import rules as rules_module
from experiment.callbacks import MemoryFigures
from experiment.files import held
from experiment.parsing import load_settings
from experiment.settings import CoreName
from fbrl import MemoryPPO
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.forms import Form
from fbrl.cores.memoryless import Memoryless
from fbrl.cores.names import CORES
from fbrl.cores.rnn import GRU, LSTM
from fbrl.cores.transformer_xl import TransformerXL
from fbrl.evaluation import play
from fbrl.vec_env import FiniteVecEnv

SCRIPT = Path(__file__).parents[1] / "train_agent.py"
SIGINT_BEFORE = signal.getsignal(signal.SIGINT)  # ignored where the tests run as a background job
TINY = (
    *("--env.kwargs={corridor: 3}", "--env.n_envs=2"),
    *("--core.d_model=8", "--core.n_layers=1", "--core.n_heads=2", "--core.window=4"),
    *("--ppo.timesteps=128", "--ppo.n_steps=16", "--ppo.seq_len=8", "--ppo.batch_size=16", "--ppo.n_epochs=1"),
    *("--run.eval_every=32", "--run.eval_episodes=4", "--run.checkpoint_every=64", "--run.device=cpu"),
)


class Task(gym.Env):
    """Episodes of five steps; the spaces and what goes wrong are subclasses'."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    worst, reward = 0.0, 0.0
    steps = 0  # of all episodes

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        self.steps += 1
        bad = self.steps == 53  # in the fourth rollout, after the first checkpoint
        obs = np.full(2, self.worst if bad else 0.0, np.float32)
        return obs, self.reward if bad else 0.0, self.left == 0, False, {}


class NaNObservation(Task):
    worst = np.nan


class NaNReward(Task):
    reward = np.nan


class TupleTask(Task):
    observation_space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])


class TextTask(Task):
    observation_space = spaces.Text(5)


class TextInDictTask(Task):
    observation_space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(5)})


class TupleActionTask(Task):
    action_space = spaces.Tuple([spaces.Discrete(2)])


class EndlessActionTask(Task):
    action_space = spaces.Box(-np.inf, np.inf, (2,))


class FailingTask(Task):
    def step(self, action):
        if self.steps == 53:
            raise ValueError("a bug of the user's")
        return super().step(action)


class UnmakeableTask(Task):
    def __init__(self, how="bug"):
        if how == "argument":
            raise ValueError("how must be bug")
        if how == "type":  # which Gymnasium raises anew
            len(how.count("t"))
        if how == "end":
            raise SystemExit("no licence")
        self.nothing.at_all()


TASKS = [
    FailingTask,
    UnmakeableTask,
    NaNObservation,
    NaNReward,
    TupleTask,
    TextTask,
    TextInDictTask,
    TupleActionTask,
    EndlessActionTask,
]


@pytest.fixture(autouse=True, scope="module")
def tasks():
    for task in TASKS:
        gym.register(f"tests/{task.__name__}-v0", entry_point=task)
    yield
    for task in TASKS:
        del gym.registry[f"tests/{task.__name__}-v0"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process, because imports take seconds; hands back exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train(run, tmp_path):
    """Runs the script with tiny settings; runs go to tmp_path."""
    return lambda *arguments: run(*TINY, f"--run.folder={tmp_path}", "--run.progress_bar=false", *arguments)


def interrupt_at_64(figures):
    """Instead of ``MemoryFigures._on_rollout_end``: Ctrl-C in the rollout that ends with step 64."""
    if figures.model.num_timesteps == 64:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupted(train, monkeypatch, tmp_path):
    """A run that was interrupted in its second rollout, of 64 steps, and what the script said."""

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", interrupt_at_64)
        result = train("--run.name=tiny", "--run.checkpoint_every=1000")
    return tmp_path / "tiny", result


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scalars(folder):
    """Tag -> steps and values of all TensorBoard events in a run's folder."""
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def weights(file, algorithm=MemoryPPO):
    return algorithm.load(file, device="cpu").policy.state_dict()


def edit(folder, old, new):
    text = (folder / "config.yaml").read_text()
    assert text.count(old) == 1
    (folder / "config.yaml").write_text(text.replace(old, new))


def assert_refused(result, message):
    """Exit code 2, and one line, the last and for itself, that says why."""
    code, _, err = result
    assert code == 2
    assert err.endswith("\n")
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in f"{line}\n"
    assert "Traceback" not in err


def test_a_run_and_its_control(train, tmp_path):
    code, out, err = train("--run.control=true", "--run.seed=3", "--ppo.ent_coef_end=0.0")
    assert (code, err) == (0, "")
    last = out.splitlines()[-3:]
    assert last[0] == "fbrl/TMaze-v0, 20 episodes, the most probable action, 95 % intervals:"
    for line, core in zip(last[1:], ("feedback", "none"), strict=True):
        assert re.fullmatch(
            rf" *{core}  success \d\.\d{{3}} \[\d\.\d{{3}}, \d\.\d{{3}}\]  return -?\d\.\d{{3}}  length \d+\.\d", line
        )
    memory, control = tmp_path / "TMaze-v0_feedback_3", tmp_path / "TMaze-v0_none_3"
    for folder, algorithm in ((memory, MemoryPPO), (control, PPO)):
        names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
        expected = {"config.yaml", "versions.json", "evaluations.jsonl", "best.zip", "last.zip"}
        assert names == expected | {"finished"}
        assert json.loads((folder / "versions.json").read_text())["threads"] == torch.get_num_threads()
        evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        assert [line["timesteps"] for line in evaluations] == [32, 64, 96, 128]
        assert all(0 <= line["success"] <= 1 for line in evaluations)
        assert algorithm.load(folder / "last.zip", device="cpu").num_timesteps == 128
        best = algorithm.load(folder / "best.zip", device="cpu").num_timesteps
        assert best == max(evaluations, key=lambda line: (line["success"], line["timesteps"]))["timesteps"]

        logged = scalars(folder)
        common = ("rollout/success_rate", "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps")
        losses = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
        more = ("explained_variance", "learning_rate", "ent_coef")
        assert {*common, *(f"train/{name}" for name in losses + more)} < logged.keys()
        figures = {"memory/mix_0", "memory/mix_1", "memory/mean_age_1", "memory/read_1"}
        assert {tag for tag in logged if tag.startswith("memory/")} == (figures if folder == memory else set())
        for key in ("success", "return", "length"):
            written = [(line["timesteps"], pytest.approx(line[key])) for line in evaluations]
            assert logged[f"eval/{key}"] == written, "at the steps of the evaluations"
        assert np.isfinite(
            [value for tag in logged if tag != "train/explained_variance" for _, value in logged[tag]]
        ).all()

    settings, others = load_settings(memory / "config.yaml"), load_settings(control / "config.yaml")
    assert (settings.core.name, others.core.name) == ("feedback", "none")
    assert (settings.run.seed, settings.env.kwargs, settings.ppo.seq_len) == (3, {"corridor": 3}, 8)
    others.core.name = "feedback"
    assert others == settings


def test_a_named_run_and_its_control_have_folders_of_their_own(train, tmp_path):
    code, _, _ = train("--run.control=true", "--run.name=mine", "--ppo.timesteps=32")
    assert code == 0
    assert (tmp_path / "mine" / "finished").exists()
    assert load_settings(tmp_path / "mine_control" / "config.yaml").core.name == "none"


def test_the_seed_decides(train, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train("--ppo.timesteps=64", f"--run.name={name}", f"--run.seed={seed}")[0] == 0
    first, again, other = (weights(tmp_path / name / "last.zip") for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_minigrid(train, tmp_path):
    arguments = ("--env.id=MiniGrid-MemoryS7-v0", "--env.kwargs={max_steps: 6}", "--ppo.timesteps=32")
    assert train(*arguments)[0] == 0
    assert "MiniGridEncoder" in str(MemoryPPO.load(tmp_path / "MiniGrid-MemoryS7-v0_feedback_0" / "last.zip").policy)


ENVPOOL = ("--env.id=MiniGrid-LavaGapS5-v0", "--env.kwargs={agent_view_size: 3}", "--env.engine=envpool")


def test_envpool_trains_and_minigrid_evaluates(train, monkeypatch, tmp_path):
    pytest.importorskip("envpool")
    played = []

    def note(agent, env, *args, **kwargs):
        played.append(type(env))
        return play(agent, env, *args, **kwargs)

    monkeypatch.setattr("experiment.evaluating.play", note)
    monkeypatch.setattr("experiment.training.play", note)
    code, out, err = train(*ENVPOOL, "--run.name=tiny")
    assert (code, err) == (0, "")
    assert re.search(r"\n +feedback  success ", out)
    assert played == [FiniteVecEnv] * 5  # four during the training, one after it
    logged = scalars(tmp_path / "tiny")
    for tag in ("rollout/success_rate", "rollout/ep_rew_mean", "rollout/ep_len_mean"):
        assert len(logged[tag]) >= 2
    assert json.loads((tmp_path / "tiny" / "versions.json").read_text())["envpool"]


@pytest.mark.slow
def test_a_run_in_envpool_goes_on_with_new_episodes(run, train, monkeypatch, tmp_path):
    pytest.importorskip("envpool")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", interrupt_at_64)
        assert train(*ENVPOOL, "--run.name=tiny")[0] == 130
    code, out, _ = run("--resume", tmp_path / "tiny")
    assert code == 0
    assert "going on from 64 of 128 steps" in out
    assert MemoryPPO.load(tmp_path / "tiny" / "last.zip", device="cpu").num_timesteps == 128


def test_what_envpool_lacks_is_refused(train, tmp_path):
    pytest.importorskip("envpool")
    result = train("--env.kwargs={}", "--env.engine=envpool")
    assert_refused(result, "env.id fbrl/TMaze-v0 with env.kwargs {} cannot be made by env.engine envpool: env_id must")
    assert list(tmp_path.iterdir()) == []


def test_without_envpool_the_extra_is_named(train, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "envpool", None)  # as if it were not installed
    assert_refused(train(*ENVPOOL), "EnvPool is not installed: pip install fbrl[envpool]")
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_success(train, tmp_path):
    code, out, _ = train("--env.id=CartPole-v1", "--env.kwargs={}", "--ppo.timesteps=32", "--core.name=none")
    assert code == 0
    assert re.search(r"\n +none  return \d+\.\d{3}  length \d+\.\d\n$", out)


def test_the_training_stops_at_a_success_rate(train, tmp_path):
    code, _, _ = train("--run.stop_at_success=0", "--run.name=tiny", "--ppo.timesteps=1000000")
    assert code == 0
    assert MemoryPPO.load(tmp_path / "tiny" / "last.zip", device="cpu").num_timesteps == 34  # a step late
    assert (tmp_path / "tiny" / "finished").exists()


def test_an_interrupt_saves_and_the_run_goes_on_as_if_nothing_had_been(run, train, interrupted, tmp_path):
    folder, (code, out, err) = interrupted
    assert code == 130
    assert out.endswith(f"{folder}: saved at 64 steps; go on with: python train_agent.py --resume {folder}\n")
    assert "saving after this update" in err
    assert not (folder / "finished").exists()
    assert signal.getsignal(signal.SIGINT) is SIGINT_BEFORE

    code, out, _ = run("--resume", folder)
    assert code == 0
    assert out.startswith(f"{folder}: going on from 64 of 128 steps\n")
    assert re.search(r"\n +feedback  success ", out)
    assert train("--run.name=whole", "--run.checkpoint_every=1000")[0] == 0
    resumed, whole = weights(folder / "last.zip"), weights(tmp_path / "whole" / "last.zip")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    for name in ("evaluations.jsonl",):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert sorted({step for step, _ in scalars(folder)["train/loss"]})[-1] >= 96


def test_an_interrupt_in_the_last_update(run, train, monkeypatch, tmp_path):
    """Saved, and neither evaluated nor followed by the control: the user wants to have the machine back."""

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", interrupt_at_64)
        code, out, _ = train("--run.name=tiny", "--ppo.timesteps=64", "--run.control=true")
    assert code == 130
    assert "saved at 64 steps" in out
    assert not (tmp_path / "tiny_control").exists()
    code, out, _ = run("--resume", tmp_path / "tiny")
    assert code == 0
    assert re.search(r"\n +feedback  success .*\n +none  success ", out)


@pytest.mark.slow
def test_interrupted_in_its_own_process(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        SCRIPT,
        *TINY,
        f"--run.folder={tmp_path}",
        "--run.name=tiny",
        "--ppo.timesteps=100000000",
    ]
    process = subprocess.Popen(
        [*command, "--run.eval_every=100000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    folder = tmp_path / "tiny"
    try:
        for _ in range(1200):
            if (folder / "evaluations.jsonl").exists() or process.poll() is not None:  # the training is under way
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    saved = re.search(r"tiny: saved at ([\d,]+) steps; go on with: python train_agent\.py --resume (\S+)\n$", out)
    assert saved[2] == str(folder)
    steps = int(saved[1].replace(",", ""))
    assert MemoryPPO.load(folder / "last.zip", device="cpu").num_timesteps == steps

    edit(folder, "timesteps: 100000000", f"timesteps: {steps + 64}")
    result = subprocess.run(
        [sys.executable, SCRIPT, "--resume", folder], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert f"going on from {steps:,} of {steps + 64:,} steps" in result.stdout
    assert re.search(r"\n +feedback  success \d\.\d{3} ", result.stdout)
    assert "100%" in result.stderr  # the progress bar
    assert MemoryPPO.load(folder / "last.zip", device="cpu").num_timesteps == steps + 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ppo.gama=0.9"], "unknown setting ppo.gama; the closest: ppo.gamma"),
        (["--ppo.gamma=high"], "ppo.gamma must be a number, got high"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--ppo.n_steps=12"], "ppo.n_steps must be a multiple of ppo.seq_len = 8, got 12"),
        (["--ppo.batch_size=20"], "ppo.batch_size must be a multiple of ppo.seq_len = 8, got 20"),
        (["--env.id=fbrl/TMaze-v7"], "the closest are: fbrl/TMaze-v0"),
        (["--env.id=MiniGrid-MemoryS12-v0", "--env.kwargs={}"], "MiniGrid-MemoryS11-v0"),
        (["--env.kwargs={corridor: 0}"], "corridor must be a whole number, at least 1, got 0"),
        (["--env.frame_stack=0"], "env.frame_stack must be at least 1, got 0"),
        (["--env.frame_stack=3"], "env.frame_stack needs observations in a Box, or a Dict of them, got Discrete(4)"),
        (
            ["--env.frame_stack=3", "--env.id=MiniGrid-MemoryS7-v0", "--env.kwargs={}"],
            "env.frame_stack needs observations in a Box, or a Dict of them, got Discrete(4) in 'direction'",
        ),
        (["--env.id=tests/TupleTask-v0", "--env.kwargs={}"], "observation_space must be one of Box, "),
        (["--env.id=tests/TextTask-v0", "--env.kwargs={}"], "or a Dict of them, got Text"),
        (["--env.id=tests/TextTask-v0", "--env.kwargs={}", "--core.name=none"], "or a Dict of them, got Text"),
        (["--env.id=tests/TextInDictTask-v0", "--env.kwargs={}"], "observation_space['b'] must be one of Box"),
        (["--env.id=tests/TupleActionTask-v0", "--env.kwargs={}"], "action_space must be one of Box, "),
        (["--env.id=tests/EndlessActionTask-v0", "--env.kwargs={}"], "must have finite bounds, got -inf to inf"),
        (["--env.kwargs={seed: 3}"], "env.kwargs must not hold seed; use run.seed"),
        (["--env.kwargs={seed: 3}", "--env.engine=envpool"], "env.kwargs must not hold seed; use run.seed"),
        (
            ["--env.engine=envpool"],
            "env.engine envpool: kwargs must hold agent_view_size only for EnvPool, got corridor",
        ),
        (["--env.engine=genpool"], "env.engine must be one of 'minigrid', 'envpool', got genpool"),
        (["--run.device=abacus"], "run.device must be auto, cpu, cuda"),
        (["--run.folder=/dev/null"], "/dev/null"),
        (["--resume="], "--resume must be the folder of a run, got ''"),
        (["--resume=a\0b"], "--resume must be the folder of a run, got 'a\\x00b'"),
        (["--run.name=../../x"], "run.name must be a folder inside run.folder, got ../../x"),
        (["--run.name=a\0b"], "run.name must be text without control characters"),
        (["--run.name=3", "--core.d_model=null"], "core.d_model must be a whole number, got null"),
        (["--run.device=meta"], "run.device must be auto, cpu, cuda, cuda:1, ..., got meta"),
        (["--run.threads=1e8"], "run.threads must be at most 1,000, got 100000000"),
        (["--env.kwargs={class_path: os.system}"], "got an unexpected keyword argument 'class_path'"),
        (["--run.start_from=nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_bad_input(train, tmp_path, arguments, message):
    assert_refused(train(*arguments), message)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has ended; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [*TINY, "--ppo.timesteps=32", f"--run.folder={folder}", "--run.name=tiny", "--run.progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder / "tiny"


def test_a_folder_that_holds_a_run(run, finished):
    before = contents(finished)
    arguments = (*TINY, f"--run.folder={finished.parent}")
    assert_refused(run(*arguments, "--run.name=tiny"), "tiny already holds a run; choose another run.name")
    assert_refused(run("--resume", finished), "this run has finished; python evaluate_agent.py")
    assert_refused(run("--resume", finished, "--ppo.timesteps=16"), "ppo.timesteps must be more than 32, which")
    assert contents(finished) == before


def test_a_control_whose_folder_holds_a_run(run, finished, tmp_path):
    """Refused before the training, not after it."""
    shutil.copytree(finished, tmp_path / "tiny_control")
    before = contents(tmp_path)
    result = run(*TINY, f"--run.folder={tmp_path}", "--run.name=tiny", "--run.control=true")
    assert_refused(result, "tiny_control already holds a run")
    assert contents(tmp_path) == before


def test_what_resume_refuses(run, interrupted, tmp_path):
    folder, _ = interrupted
    before = contents(folder)
    (tmp_path / "empty").mkdir()
    assert_refused(run("--resume", tmp_path / "empty"), "empty: holds no run; expected a folder with config.yaml")
    assert_refused(run("--resume", tmp_path / "nowhere"), "nowhere: holds no run")
    for arguments in (
        ("--resume", folder, "--ppo.gamma=0.5"),
        ("--ppo.gamma=0.5", f"--resume={folder}"),
        (f"--resume={folder}", "--run.seed", "1"),
    ):
        assert_refused(run(*arguments), "--resume takes the run's own settings and no others, got --")
    (folder / "last.zip").rename(tmp_path / "last.zip")
    assert_refused(run("--resume", folder), "holds no checkpoint to resume: last.zip is missing")
    (tmp_path / "last.zip").rename(folder / "last.zip")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("window: 4", "window: 5", "config.yaml must be 4, which the checkpoint was made with, got 5"),
        ("id: fbrl/TMaze-v0", "id: CartPole-v1", "env.id "),
        ("corridor: 3", "corridor: 4", "env.kwargs "),
        ("name: feedback", "name: none", "core.name "),
        ("gamma: 0.99", "gamma: 0.9", "ppo.gamma "),
        ("gamma: 0.99", "gama: 0.99", "unknown setting ppo.gama"),
    ],
)
def test_a_checkpoint_of_other_settings(run, interrupted, old, new, message):
    folder, _ = interrupted
    edit(folder, old, new)
    before = contents(folder)
    assert_refused(run("--resume", folder), message)
    assert contents(folder) == before


def test_the_agent_of_another_window(run, interrupted, tmp_path):
    """last.zip of one run in the folder of another."""
    folder, _ = interrupted
    model = MemoryPPO.load(folder / "last.zip", device="cpu")
    core_kwargs = model.policy.core_kwargs | {"window": 6}
    env = gym.make("CartPole-v1")
    MemoryPPO("MlpPolicy", env, device="cpu", policy_kwargs={"core_kwargs": core_kwargs}).save(
        tmp_path / "cartpole.zip"
    )
    task = model.observation_space, model.action_space
    other = Task()
    other.observation_space, other.action_space = task
    MemoryPPO("MlpPolicy", other, device="cpu", policy_kwargs={"core_kwargs": core_kwargs}).save(tmp_path / "other.zip")
    with zipfile.ZipFile(folder / "last.zip") as archive:
        resume = archive.read("resume.pkl")
    for name, message in (("other", "core.window is 6, but 4 in"), ("cartpole", "the checkpoint cannot be read")):
        shutil.copy(tmp_path / f"{name}.zip", folder / "last.zip")
        assert_refused(run("--resume", folder), "last.zip is an agent without resume.pkl")
        with zipfile.ZipFile(folder / "last.zip", "a") as archive:
            archive.writestr("resume.pkl", resume)
        assert_refused(run("--resume", folder), message)


SIZES = {"d_model", "n_layers"}
ALL_SIZES = {*SIZES, "n_heads", "window", "d_feedforward"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("core", "core_class", "given"),
    [
        ("feedback_plain", FeedbackTransformer, ALL_SIZES),
        ("gru", GRU, SIZES),
        ("lstm", LSTM, SIZES),
        ("transformer_xl", TransformerXL, {*ALL_SIZES, "gate"}),
        ("gtrxl", TransformerXL, {*ALL_SIZES, "gate"}),
        ("memoryless", Memoryless, {*SIZES, "d_feedforward"}),
    ],
)
def test_every_core_by_one_setting(train, tmp_path, core, core_class, given):
    """Trains, plays, and is made with the sizes that it takes."""
    code, out, _ = train(f"--core.name={core}", "--run.name=tiny")
    assert code == 0
    assert re.search(rf"\n *{core}  success ", out)
    policy = MemoryPPO.load(tmp_path / "tiny" / "best.zip").policy
    assert type(policy.core) is core_class
    assert policy.core_kwargs.keys() == given
    assert policy.core_kwargs.get("gate", False) == (core == "gtrxl")


def test_every_core_has_a_name():
    assert {*get_args(CoreName)} == {*CORES, "none"}


@pytest.mark.slow
@pytest.mark.parametrize("core", ["feedback", "none"])
@pytest.mark.parametrize(
    ("task", "message"),
    [("NaNObservation", "observation must be finite, got nan"), ("NaNReward", "reward must be finite, got nan")],
)
def test_what_is_not_finite_ends_the_training(train, run, tmp_path, task, message, core):
    arguments = (f"--env.id=tests/{task}-v0", "--env.kwargs={}", f"--core.name={core}", "--run.name=tiny")
    result = train(*arguments, "--run.progress_bar=true", "--run.eval_every=1000")
    assert_refused(result, message)
    where = rf"environment \d \(tests/{task}-v0\), step \d of its episode: {message}"
    line = rf"error: {where}; {tmp_path}/tiny: saved as of 96 steps; go on with: python train_agent.py --resume"
    assert re.match(line, result[2].splitlines()[-1])
    assert (PPO if core == "none" else MemoryPPO).load(tmp_path / "tiny" / "last.zip").num_timesteps == 96
    assert not (tmp_path / "tiny" / "finished").exists()


def test_a_loss_that_is_not_finite_ends_the_training(train, monkeypatch, tmp_path):
    from stable_baselines3.common.buffers import RolloutBuffer

    compute = RolloutBuffer.compute_returns_and_advantage

    def spoil(buffer, *args, **kwargs):
        compute(buffer, *args, **kwargs)
        spoil.rollouts += 1
        if spoil.rollouts >= 5:  # twice a rollout where values get their units from it
            buffer.returns[:] = np.nan

    spoil.rollouts = 0
    monkeypatch.setattr(RolloutBuffer, "compute_returns_and_advantage", spoil)
    assert_refused(train("--run.name=tiny"), "the returns of the rollout are not finite")
    assert MemoryPPO.load(tmp_path / "tiny" / "last.zip").num_timesteps == 64


@pytest.mark.parametrize("form", get_args(Form))
def test_the_form_reaches_the_core(train, monkeypatch, form):
    if form == "compiled":
        pytest.importorskip("numba")
    if form == "triton":
        pytest.skip("not on a CPU")
    seen = []
    monkeypatch.setattr(MemoryFigures, "_on_rollout_end", lambda self: seen.append(self.model.policy.core.form))
    code, _, err = train(f"--core.form={form}", "--run.device=cpu")
    assert code == 0, err
    assert set(seen) == {form}


def test_a_form_that_cannot_be_had(train, monkeypatch):
    """One line, and exit code 2."""
    monkeypatch.setattr(rules_module, "cannot_compile", lambda: "numba (none)")
    code, _, err = train("--core.form=compiled", "--run.device=cpu")
    assert (code, err) == (2, "error: core.form must be auto, fast or plain without numba (none), got compiled\n")
    code, _, err = train("--core.form=triton", "--run.device=cpu")
    assert (code, err) == (2, "error: core.form must be auto, fast or plain where run.device is cpu, got triton\n")
    code, _, err = train("--core.form=quick")
    assert code == 2
    assert "core.form" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("setting", ["true", "false"])
def test_cuda_graphs_reach_the_core(train, monkeypatch, setting):
    seen = []
    monkeypatch.setattr(MemoryFigures, "_on_rollout_end", lambda self: seen.append(self.model.policy.core.cuda_graphs))
    code, _, err = train(f"--run.cuda_graphs={setting}")
    assert code == 0, err
    assert set(seen) == {setting == "true"}


def test_a_run_that_was_killed_before_its_first_checkpoint(run, train, monkeypatch, tmp_path):
    """Kind: a name that is taken by nothing. It can be given again, and --resume starts the run."""

    def die(*_):
        raise KeyboardInterrupt

    for again in (lambda: train("--run.name=tiny"), lambda: run("--resume", tmp_path / "tiny")):
        with monkeypatch.context() as patch:
            patch.setattr("experiment.training.save_checkpoint", die)
            assert train("--run.name=tiny")[0] == 130
        assert {path.name for path in (tmp_path / "tiny").iterdir()} == {"config.yaml", "versions.json"}
        code, _, err = again()
        assert (code, err) == (0, "")
        assert (tmp_path / "tiny" / "finished").exists()
        shutil.rmtree(tmp_path / "tiny")


def test_a_run_that_was_killed_before_its_second_checkpoint(run, train, monkeypatch, tmp_path):
    """The first is written before the first step, so that every run that has a name can be resumed, exactly."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", die)
        assert train("--run.name=tiny")[0] == 130
    code, out, _ = run("--resume", tmp_path / "tiny")
    assert code == 0
    assert "going on from 0 of 128 steps" in out
    assert "new episodes" not in out
    assert train("--run.name=whole")[0] == 0
    resumed, whole = weights(tmp_path / "tiny" / "last.zip"), weights(tmp_path / "whole" / "last.zip")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_run_that_another_process_trains(run, train, interrupted):
    """Kind: two processes that write one folder."""
    folder, _ = interrupted
    before = contents(folder)
    with held(folder):
        assert_refused(run("--resume", folder), "tiny: another process is training in it")
    assert contents(folder) == before


@pytest.mark.parametrize("core", ["feedback", "none"])
def test_an_error_of_the_task_keeps_its_traceback(train, run, tmp_path, core):
    """Kind: a bug of the user's own, of any type, taken for bad input: neither file nor line, and nothing saved."""
    arguments = ("--env.id=tests/FailingTask-v0", "--env.kwargs={}", f"--core.name={core}", "--run.name=tiny")
    code, _, err = train(*arguments, "--run.eval_every=1000")
    assert code == 1
    first, *trace = err.splitlines()
    folder = tmp_path / "tiny"
    assert re.fullmatch(
        r"error: environment \d \(tests/FailingTask-v0\), step \d of its episode: ValueError: a bug of the user's; "
        rf"{folder}: saved as of 96 steps; go on with: python train_agent\.py --resume {folder}",
        first,
    )
    assert trace[0] == "Traceback (most recent call last):"
    assert any(re.search(r'test_train_agent\.py", line \d+, in step', line) for line in trace)
    assert trace[-1] == "ValueError: a bug of the user's"
    assert (PPO if core == "none" else MemoryPPO).load(folder / "last.zip").num_timesteps == 96


def test_a_task_that_cannot_be_made_says_where(train, tmp_path):
    """Bad arguments are one line, with the place in the user's file; anything else keeps its traceback too."""
    result = train("--env.id=tests/UnmakeableTask-v0", "--env.kwargs={how: argument}")
    place = UnmakeableTask.__init__.__code__.co_firstlineno + 2
    assert_refused(result, f"cannot be made: how must be bug ({__file__}, line {place})")
    result = train("--env.id=tests/UnmakeableTask-v0", "--env.kwargs={how: type}")
    assert_refused(result, f"({__file__}, line {place + 2})\n")
    result = train("--env.id=tests/UnmakeableTask-v0", "--env.kwargs={why: argument}")
    assert_refused(result, "unexpected keyword argument 'why'")
    assert "line" not in result[2], "no place in the user's file is at fault"
    for how, why in (
        ("bug", "AttributeError: 'UnmakeableTask' object has no attribute 'nothing'"),
        ("end", "SystemExit: no licence"),
    ):
        code, _, err = train("--env.id=tests/UnmakeableTask-v0", f"--env.kwargs={{how: {how}}}")
        assert code == 1
        assert f"cannot be made: {why}" in err.splitlines()[0]
        assert "Traceback" in err
    assert list(tmp_path.iterdir()) == []


def test_the_events_of_a_killed_run_are_those_of_an_uninterrupted_one(run, train, monkeypatch, tmp_path):
    """Kind: a log that is ahead of the checkpoint, after a kill."""

    original = MemoryFigures._on_rollout_end

    def die(figures):
        original(figures)
        if figures.model.num_timesteps == 128:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", die)
        assert train("--run.name=tiny")[0] == 130  # at 128 steps, of which the checkpoint holds 64
    assert run("--resume", tmp_path / "tiny")[0] == 0
    assert train("--run.name=whole")[0] == 0
    found, expected = scalars(tmp_path / "tiny"), scalars(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for tag in found.keys() - {tag for tag in found if tag.startswith("time/")}:
        assert found[tag] == expected[tag], tag


def test_a_curriculum_in_two_commands(train, tmp_path):
    """S7, then S9 from its agent; the control starts from new weights, as it has no memory."""
    memory = ("--env.kwargs={}", "--ppo.timesteps=32", "--run.eval_max_steps=20", "--run.eval_every=1000")
    assert train("--env.id=fbrl/MemoryS7-View3-v0", *memory, "--run.name=s7")[0] == 0
    more = (f"--run.start_from={tmp_path / 's7'}", "--run.name=s9")
    code, _, err = train("--env.id=fbrl/MemoryS9-View3-v0", *memory, *more, "--run.control=true")
    assert (code, err) == (0, "")
    assert load_settings(tmp_path / "s9" / "config.yaml").run.start_from == str(tmp_path / "s7")


def test_a_finished_run_and_its_control_are_trained_longer(train, run, tmp_path):
    assert train("--run.name=tiny", "--run.control=true", "--ppo.timesteps=32")[0] == 0
    code, out, _ = run("--resume", tmp_path / "tiny", "--ppo.timesteps=6.4e1")
    assert code == 0
    assert out.count("going on from 32 of 64 steps") == 2
    for name, algorithm in (("tiny", MemoryPPO), ("tiny_control", PPO)):
        assert algorithm.load(tmp_path / name / "last.zip", device="cpu").num_timesteps == 64
