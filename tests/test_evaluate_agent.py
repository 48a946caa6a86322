"""The script as a user runs it: results, files, and one line for every bad input."""

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

import envs
from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.files import FileError
from experiment.parsing import load_settings
from experiment.playing import How, evaluate
from experiment.settings import CoreSettings, EnvSettings, Settings, SettingsError
from fbrl import MemoryPPO
from fbrl.evaluation import AgentError, load_agent, wilson
from fbrl.finite import NotFiniteError
from fbrl.insight.recording import record

SCRIPT = Path(__file__).parents[1] / "evaluate_agent.py"
SIZES = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 4}


class Task(gym.Env):
    """Episodes of five steps, whose third may not be finite; draws no pictures."""

    def __init__(self, observation=0.0, reward=0.0):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
        self.third = np.full(2, observation, np.float32), reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        obs, reward = self.third if self.t == 3 else (np.zeros(2, np.float32), 0.0)
        return obs, reward, self.t == 5, False, {}


class Draws(Task):
    """Draws random numbers in its steps."""

    def step(self, action):
        self.np_random.integers(2)
        return super().step(action)


class OwnEncoder(FlattenExtractor):
    """A user's."""


class Declares(Task):
    """Says that it draws, and does not know the keyword."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}


class Forgets(Declares):
    """Takes the keyword and does nothing with it."""

    def __init__(self, render_mode=None):
        super().__init__()


class Later(Task):
    """Fails while its second episode is played."""

    def reset(self, *, seed=None, options=None):
        self.episodes = getattr(self, "episodes", 0) + 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.episodes == 2 and self.t == 3:
            raise FileNotFoundError("a file of the user's")
        return super().step(action)

    def close(self):
        raise ValueError("already closed")


class Fails(Declares):
    """Lacks what it draws with."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        raise gym.error.DependencyNotInstalled("pygame is not installed")


@pytest.fixture(autouse=True, scope="module")
def tasks():
    names = [f"tests/{task.__name__}-v1" for task in (Task, Declares, Forgets, Later, Fails)]
    for name, task in zip(names, (Task, Declares, Forgets, Later, Fails), strict=True):
        gym.register(name, entry_point=task)
    yield
    for name in names:
        del gym.registry[name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with an untrained agent in last.zip; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    Settings(env=EnvSettings(n_envs=2, kwargs={"corridor": 2}), core=CoreSettings(**SIZES)).save(folder / "config.yaml")
    env = envs.make("fbrl/TMaze-v0", corridor=2)
    MemoryPPO("MlpPolicy", env, device="cpu", seed=0, policy_kwargs={"core_kwargs": SIZES}).save(folder / "last.zip")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """The same folder, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


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


@pytest.mark.slow
def test_in_its_own_process(saved, tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, saved, "--episodes=20", "--device=cpu", f"--json={tmp_path / 'result.json'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "20 episodes, sampled actions, seed 1000" in result.stdout
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["agent"] == str(saved / "last.zip")
    assert (written["task"], written["env_kwargs"]) == ("fbrl/TMaze-v0", {"corridor": 2})
    assert (written["episodes"], written["seed"], written["control"]) == (20, 1000, None)
    assert not written["deterministic"]
    expected = wilson(round(20 * written["success"]), 20)
    assert (written["success"], *written["interval"]) == pytest.approx(expected)
    for name in ("return", "length"):
        low, high = written[f"{name}_interval"]
        assert low < written[name] < high
    assert {"python", "torch"} < written["versions"].keys()


def test_exhaustive_is_exact_and_the_control_forgets(run, saved, tmp_path):
    code, out, err = run(saved, "--exhaustive", "--control=zero-memory", f"--json={tmp_path / 'result.json'}")
    assert (code, err) == (0, "")
    assert "all 2 start states" in out
    assert "most probable actions; exact; memory emptied before every step" in out
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["success"] in (0, 0.5)  # a policy that cannot remember gets no further
    assert written["interval"] == [written["success"]] * 2
    assert written["deterministic"]
    assert written["exhaustive"]
    assert (written["episodes"], written["control"]) == (2, "zero-memory")


def test_the_seed_decides(run, saved):
    first, again, other = (run(saved, "--episodes=10", f"--seed={seed}")[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_another_task_with_the_same_observations(run, copy):
    copy.joinpath("last.zip").rename(copy / "best.zip")
    code, out, _ = run(copy, "--env.kwargs={corridor: 3}", "--episodes=1")
    assert code == 0
    assert "best.zip on fbrl/TMaze-v0 corridor=3\n1 episode, sampled" in out
    assert "none from one episode" in out


def test_video(run, saved, tmp_path):
    code, _, err = run(saved / "last.zip", "--episodes=1", f"--video={tmp_path / 'agent.gif'}")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "agent.gif") as gif:
        assert gif.n_frames > 4
    assert (tmp_path / "agent.gif").stat().st_size < 3e6


def test_a_page_and_stills(run, saved, tmp_path):
    page, stills = tmp_path / "agent.html", tmp_path / "stills"
    code, _, err = run(saved, "--exhaustive", f"--html={page}", f"--stills={stills}")
    assert (code, err) == (0, "")
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert (data["title"], data["task"]) == ("tiny/last.zip", "fbrl/TMaze-v0 corridor=2")
    assert data["summary"][0].startswith("2 episodes were played, ")
    assert {step["marks"]["cue"] for episode in data["episodes"] for step in episode["steps"]} == {"up", "down"}
    assert len(data["pictures"]) > 1
    for still in sorted(stills.iterdir()):
        with Image.open(still) as image:
            assert image.width > 300
    assert len(list(stills.iterdir())) == 2


@pytest.mark.slow
def test_an_agent_that_never_fails_is_also_shown_without_memory(run, saved, tmp_path, monkeypatch):
    def success(*args, **kwargs):
        episode = record(*args, **kwargs)
        return dataclasses.replace(episode, success=not kwargs["zero_memory"])

    monkeypatch.setattr("experiment.insight.record", success)
    assert run(saved, "--episodes=1", f"--html={tmp_path / 'agent.html'}")[0] == 0
    text = re.search(r'type="application/json">(.*?)</script>', (tmp_path / "agent.html").read_text(), re.DOTALL)[1]
    data = json.loads(text)
    assert [(one["outcome"], one["emptied"]) for one in data["episodes"]] == [
        *[("success", False)] * 3,
        *[("failure", True)] * 3,
    ]
    assert data["summary"][-1].startswith("As it never failed, the failures to choose from are its own")


@pytest.mark.slow
def test_diagnosis(run, saved, tmp_path):
    folder = tmp_path / "diagnosis"
    code, out, err = run(saved, "--episodes=12", f"--diagnose={folder}", "--probe=cue,nothing")
    assert (code, err) == (0, "")
    text = (folder / "diagnosis.txt").read_text()
    assert text in out
    told = json.loads((folder / "diagnosis.json").read_text())
    assert (told["task"], told["episodes"]) == ("fbrl/TMaze-v0", 12)
    keys = [finding["key"] for finding in told["findings"]]
    assert keys == [
        *("need", "whole", "emptied", "shuffled", "window", "age_1", "written"),
        *("probe", "probe", "contamination"),
    ]
    assert set(told["findings"][4]["figures"]) == {"2", "1"}  # of a window of four
    assert "No linear probe: info has no entry nothing" in text
    assert "“cue” (2 values" in text
    for chart in ("performance", "ages", "probe_cue", "contamination"):
        with Image.open(folder / f"{chart}.png") as image:
            assert image.width > 600
    assert_refused(run(saved, f"--diagnose={folder}"), f"--diagnose {folder}: exists already")


def test_diagnosis_without_its_extra(run, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.diagnosing.find_spec", lambda name: None if name == "sklearn" else name)
    result = run(saved, f"--diagnose={tmp_path / 'diagnosis'}")
    assert_refused(result, "needs pip install fbrl[diagnose] (sklearn is missing)")


@pytest.mark.slow
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_diagnosis_of_what_keeps_no_steps(run, copy, tmp_path, core):
    env = EnvSettings(kwargs={"corridor": 2}, n_envs=4)
    settings = Settings(env=env, core=CoreSettings(core, d_model=8, n_layers=1))
    settings.save(copy / "config.yaml")
    make_model(settings, make_envs(env, 0, 4)).save(copy / "last.zip")
    code, out, err = run(copy, "--episodes=8", f"--diagnose={tmp_path / 'diagnosis'}")
    assert (code, err) == (0, "")
    assert ("How old what is read is cannot be told" in out) == ("What the layers write" in out) == (core != "none")
    if core == "none":
        assert "This agent has no memory" in out
        assert "No linear probe: the agent has no memory." in out
    else:
        assert "could not be shuffled or cut short" in out
        assert "A linear probe reads “cue”" in out


def test_mp4_without_its_extra(run, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(saved, f"--video={tmp_path / 'agent.mp4'}")
    assert_refused(result, "an .mp4 needs pip install fbrl[video]; a .gif needs nothing more")


@pytest.mark.slow
def test_the_memoryless_agent(run, copy, tmp_path):
    """Stable-Baselines3's own PPO, which has no attention to draw."""
    Settings(env=EnvSettings(kwargs={"corridor": 2}), core=CoreSettings("none")).save(copy / "config.yaml")
    PPO("MlpPolicy", envs.make("fbrl/TMaze-v0"), n_steps=64, device="cpu").save(copy / "last.zip")
    code, out, err = run(copy, "--episodes=2", "--deterministic", f"--video={tmp_path / 'agent.gif'}")
    assert (code, err) == (0, "")
    assert "2 episodes, most probable actions" in out
    assert (tmp_path / "agent.gif").is_file()
    assert run(copy, "--episodes=2", f"--html={tmp_path / 'agent.html'}")[0] == 0
    assert "This agent has no memory" in (tmp_path / "agent.html").read_text()
    assert_refused(run(copy, f"--stills={tmp_path / 'stills'}"), "--stills: the agent's core has no attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes=0"], "--episodes must be at least 1, got 0"),
        (["--episodes=many"], "--episodes must be a whole number or null, got many"),
        (["--episodes=1e30"], "--episodes must be at most 10,000,000, got 1"),
        (["--seed=4294967296"], "--seed must be at most 2,147,483,647, got 4294967296"),
        (["--envs=0"], "--envs must be at least 1, got 0"),
        (["--max_steps=0"], "--max_steps must be at least 1, got 0"),
        (["--json=same.gif", "--video=same.gif"], "--json same.gif: must be another file than that of --video"),
        (["--json=a\0b"], "--json must be the name of a file, got 'a\\x00b'"),
        ([f"--json={'n' * 300}"], "nnn: File name too long"),
        ([f"--stills={'n' * 300}/a"], "there is no folder nnn"),
        (["--json="], "--json must be the name of a file, got ''"),
        (["--device=meta"], "--device must be auto, cpu, cuda, cuda:1, ..., got meta"),
        (["--device=cpu:7"], "--device must be auto, cpu, cuda, cuda:1, ..., got cpu:7"),
        (["--env.kwargs={class_path: os.system}"], "got an unexpected keyword argument 'class_path'"),
        (["--episodes=5", "--exhaustive"], "--episodes cannot go with --exhaustive"),
        (["--seed=-1"], "--seed must be at least 0, got -1"),
        (["--control=one-memory"], "--control must be zero-memory, got one-memory"),
        (["--video=agent.avi"], "--video must end in .gif or .mp4, got agent.avi"),
        (["--probe=cue"], "--probe cue goes with --diagnose only"),
        (["--html=agent.htm"], "--html must end in .html, got agent.htm"),
        (["--html=nowhere/agent.html"], "--html nowhere/agent.html: there is no folder nowhere"),
        (["--stills=nowhere/stills"], "--stills nowhere/stills: there is no folder nowhere"),
        ([f"--stills={SCRIPT.parent}"], f"--stills {SCRIPT.parent}: exists already"),
        (["--json=nowhere/result.json"], "--json nowhere/result.json: there is no folder nowhere"),
        ([f"--json={SCRIPT}"], f"--json {SCRIPT}: exists already"),
        (["--device=abacus"], "--device must be auto, cpu, cuda, cuda:1, ..., got abacus"),
        (["--device=cuda:77"], "got cuda:77"),
        (["--env.id=fbrl/TMaze-v7"], "the closest are: fbrl/TMaze-v0"),
        (["--env.kwargs={corridor: 0}"], "corridor must be a whole number, at least 1, got 0"),
        (["--env.kwargs={corridors: 3}"], "corridors"),
        (["--env.kwargs={previous_action: true}"], "must not hold previous_action; use env.previous_action"),
        (["--env.kwargs={previous_reward: true}"], "must not hold previous_reward; use env.previous_reward"),
        (["--env.kwargs={seed: 3}"], "must not hold seed; use run.seed to train, --seed to evaluate"),
        (["--env.kwargs={render_mode: human}"], "must not hold render_mode; use --video"),
        (["--env.id=MiniGrid-MemoryS7-v0", "--env.kwargs={}"], "the agent's observations are Discrete(4), but those"),
        (["--bogus=1"], "bogus"),
    ],
)
def test_bad_arguments(run, saved, arguments, message):
    assert_refused(run(saved, *arguments), message)


@pytest.mark.parametrize("given", ["--html=a.html", "--stills=a", "--diagnose=a"])
def test_a_task_that_fails_while_it_is_looked_at(run, copy, tmp_path, monkeypatch, given):
    """Kind: a bug of the user's taken for a file that cannot be written; and half of a folder that is left."""
    Settings(env=EnvSettings("tests/Later-v1"), core=CoreSettings(**SIZES)).save(copy / "config.yaml")
    MemoryPPO("MlpPolicy", Later(), device="cpu", policy_kwargs={"core_kwargs": SIZES}).save(copy / "last.zip")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(copy, "--episodes=1", given)
    assert code == 1
    *warnings, first = err[: err.index("Traceback")].splitlines()
    assert first == (
        "error: the environment (tests/Later-v1), step 4 of its episode: FileNotFoundError: a file of the user's"
    )
    assert set(warnings) == {"warning: closing the environments: ValueError: already closed"}
    assert "in step" in err
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_too_many_start_states(run, copy):
    settings = Settings(env=EnvSettings("MiniGrid-MultiRoom-N2-S4-v0"), core=CoreSettings(**SIZES))
    settings.save(copy / "config.yaml")
    env = envs.make(settings.env.id)
    MemoryPPO("MultiInputPolicy", env, device="cpu", policy_kwargs={"core_kwargs": SIZES}).save(copy / "last.zip")
    assert_refused(run(copy, "--exhaustive"), "--exhaustive: MiniGrid-MultiRoom-N2-S4-v0")


def test_a_task_that_draws_after_its_reset_has_no_start_states(run, copy):
    gym.register("tests/Draws-v0", entry_point=Draws)
    try:
        settings = Settings(env=EnvSettings("tests/Draws-v0"), core=CoreSettings(**SIZES))
        settings.save(copy / "config.yaml")
        agent = MemoryPPO("MlpPolicy", Draws(), device="cpu", policy_kwargs={"core_kwargs": SIZES})
        agent.save(copy / "last.zip")
        assert_refused(run(copy, "--exhaustive"), "--exhaustive: tests/Draws-v0 draws random numbers after its reset")
    finally:
        del gym.registry["tests/Draws-v0"]


def test_an_agent_with_classes_of_its_own(run, copy):
    """Nothing of the file is run unless one asks for it."""
    policy_kwargs = {"core_kwargs": SIZES, "features_extractor_class": OwnEncoder}
    env = envs.make("fbrl/TMaze-v0", corridor=2)
    MemoryPPO("MlpPolicy", env, device="cpu", policy_kwargs=policy_kwargs).save(copy / "last.zip")
    result = run(copy, "--episodes=2")
    assert_refused(result, "OwnEncoder, which is rebuilt by the file's own code only; with --trust")
    code, out, err = run(copy, "--episodes=2", "--trust")
    assert (code, err) == (0, "")
    assert "2 episodes" in out


def test_bad_folders(run, copy, tmp_path):
    assert_refused(run(tmp_path / "nothing"), f"{tmp_path / 'nothing'}: no such file or folder")
    assert_refused(run(tmp_path), f"{tmp_path}: holds neither best.zip nor last.zip")
    (copy / "best.zip").write_text("not an agent")
    assert_refused(run(copy), f"{copy / 'best.zip'}: holds no agent")
    (copy / "config.yaml").unlink()
    assert_refused(run(copy), f"{copy / 'config.yaml'}: no such file")


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (CoreSettings(**SIZES | {"window": 5}), "core.window is 4, but 5 in"),
        (CoreSettings("none"), "the agent has a memory, but core.name is none in"),
        (CoreSettings("gru", **SIZES), "the agent's core is FastFeedbackTransformer, but core.name is gru in"),
    ],
)
def test_an_agent_that_config_yaml_does_not_describe(run, copy, core, message):
    Settings(env=EnvSettings(kwargs={"corridor": 2}), core=core).save(copy / "config.yaml")
    assert_refused(run(copy), message)


def test_interrupted(run, saved, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiment.playing.play", interrupt)
    assert run(saved) == (130, "", "")


@pytest.fixture(params=["feedback", "none"])
def spoilt(request, copy):
    """An agent for the tasks above, with and without memory."""
    core = CoreSettings(**SIZES | {"name": request.param})
    Settings(env=EnvSettings("tests/Task-v1", n_envs=2), core=core).save(copy / "config.yaml")
    if request.param == "none":
        PPO("MlpPolicy", Task(), n_steps=64, device="cpu").save(copy / "last.zip")
    else:
        MemoryPPO("MlpPolicy", Task(), device="cpu", policy_kwargs={"core_kwargs": SIZES}).save(copy / "last.zip")
    return copy


@pytest.mark.parametrize("name", ["observation", "reward"])
def test_what_is_not_finite_ends_the_evaluation(run, spoilt, name):
    assert run(spoilt, "--episodes=2")[0] == 0
    assert_refused(run(spoilt, "--episodes=2", f"--env.kwargs={{{name}: .nan}}"), f"{name} must be finite, got nan")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Task", "its render modes are [], without rgb_array"),
        ("Declares", "unexpected keyword argument 'render_mode'"),
        ("Forgets", "made for rgb_array, its render mode is None"),
        ("Fails", "pygame is not installed"),
    ],
)
def test_a_video_of_a_task_without_pictures(run, spoilt, tmp_path, task, message):
    result = run(spoilt, f"--env.id=tests/{task}-v1", f"--video={tmp_path / 'agent.gif'}")
    assert_refused(result, f"--video: tests/{task}-v1 draws no pictures: ")
    assert message in result[2]
    assert not (tmp_path / "agent.gif").exists()
    assert run(spoilt, f"--env.id=tests/{task}-v1", "--episodes=1", f"--html={tmp_path / 'agent.html'}")[0] == 0
    assert "The task draws no pictures." in (tmp_path / "agent.html").read_text()


@pytest.mark.parametrize("error", [SettingsError, AgentError, NotFiniteError, FileError])
def test_errors_of_our_own_are_one_line(run, saved, monkeypatch, error):
    def fail(*_, **__):
        raise error("two\nlines")

    monkeypatch.setattr("experiment.playing.play", fail)
    assert_refused(run(saved), "error: two lines")


@pytest.mark.parametrize("error", [ValueError, FloatingPointError, FileExistsError])
def test_errors_of_others_keep_their_traceback(run, saved, monkeypatch, error):
    """Kind: a bug that looks like bad input."""

    def fail(*_, **__):
        raise error("two\nlines")

    monkeypatch.setattr("experiment.playing.play", fail)
    code, out, err = run(saved)
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"error: {error.__name__}: two lines"
    assert f'test_evaluate_agent.py", line {fail.__code__.co_firstlineno + 1}, in fail' in err


def test_no_more_environments_than_asked_for(saved):
    """Kind: more simulators than a user meant to start; not as many as the training had either."""
    agent, settings = load_agent(saved), load_settings(saved / "config.yaml")
    settings.env.n_envs, made = 64, []
    for how in (How(episodes=20, n_envs=3), How(episodes=20), How(episodes=2)):
        evaluate(agent, settings.env, how, lambda env: made.append(env.num_envs))
    assert made == [3, 8, 2]


def test_an_endless_episode_is_cut(run, saved, tmp_path):
    """Kind: an evaluation that never ends; what was cut is not solved, and is told."""
    task = ("--env.kwargs={corridor: 50}", "--max_steps=7", "--episodes=3")
    code, out, err = run(saved, *task, f"--json={tmp_path / 'result.json'}")
    assert (code, err) == (0, "")
    assert "3 cut after 7 steps, which counts as not solved" in out
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["cut"], written["success"], written["length"]) == (3, 0, 7)
    code, out, _ = run(saved, "--exhaustive", "--env.kwargs={corridor: 50}", "--max_steps=7")
    assert code == 0
    assert "2 cut after 7 steps" in out


def assert_refused(result, message):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_another_task_is_not_handed_the_old_ones_arguments(run, saved):
    """Kind: settings of one task that reach another without a word."""
    code, out, _ = run(saved, "--env.id=fbrl/TMaze-v0", "--episodes=1")
    assert code == 0
    assert "handed" not in out
    gym.register(
        "tests/OtherTMaze-v0", entry_point="envs.tmaze:TMazeEnv", order_enforce=False, disable_env_checker=True
    )
    try:
        code, out, _ = run(saved, "--env.id=tests/OtherTMaze-v0", "--episodes=1")
        assert code == 0
        assert out.startswith("env.kwargs {'corridor': 2} of fbrl/TMaze-v0 are not handed to tests/OtherTMaze-v0; ")
        assert "best.zip on tests/OtherTMaze-v0\n" in out or "last.zip on tests/OtherTMaze-v0\n" in out
        code, out, _ = run(saved, "--env.id=tests/OtherTMaze-v0", "--env.kwargs={corridor: 2}", "--episodes=1")
        assert "handed" not in out
        assert "tests/OtherTMaze-v0 corridor=2" in out
    finally:
        del gym.registry["tests/OtherTMaze-v0"]


@pytest.mark.parametrize("trust", [[], ["--trust"]])
def test_an_agent_of_another_algorithm(run, copy, trust):
    """Kind: an agent that is taken for what it is not."""
    (copy / "last.zip").unlink()
    A2C("MlpPolicy", envs.make("fbrl/TMaze-v0", corridor=2), device="cpu").save(copy / "last.zip")
    assert_refused(run(copy, *trust), "another algorithm, not PPO")
