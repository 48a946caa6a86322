"""Agents go to the Hub and come back as they were, by the real client and a Hub on this machine."""

import base64
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from experiment.agents import find_agent, make_model
from experiment.checkpoints import save_checkpoint
from experiment.environments import evaluation_envs, make_envs
from experiment.parsing import load_settings
from experiment.saved import load
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings
from fbrl import MemoryPPO
from fbrl.hub.__main__ import main
from fbrl.hub.agent import FILES, HubError, as_safetensors, read_agent
from fbrl.hub.transfer import pull, push
from tests.hub.server import LocalHub
from tests.tasks import RandomTask

constants = pytest.importorskip("huggingface_hub.constants", reason="needs pip install fbrl[hub]")
bars = pytest.importorskip("huggingface_hub.utils", reason="needs pip install fbrl[hub]")
safetensors = pytest.importorskip("safetensors.torch", reason="needs pip install fbrl[hub]")

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "agents/memory_s7_view3"
SIZES = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 4}
REPO = "someone/an-agent"


class Runs:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with nobody's repository, and a token that it takes."""
    local = LocalHub()
    with local.serving() as address:
        at(monkeypatch, address)
        monkeypatch.setenv("HF_TOKEN", local.token)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield local


def at(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)  # of programs that are started
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def no_bars():
    bars.disable_progress_bars()
    yield
    bars.enable_progress_bars()


@pytest.fixture
def run(capsys):
    """Runs the command in this process; hands back exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An untrained agent's folder, of a run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    settings = Settings(
        EnvSettings(kwargs={"corridor": 2}),
        CoreSettings(**SIZES),
        PPOSettings(seq_len=4, n_steps=8, batch_size=8),
        RunSettings(folder="/home/someone/runs", name="small"),
    )
    settings.save(folder / "config.yaml")
    save_checkpoint(make_model(settings, make_envs(settings.env, 0, 2)), folder, settings)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewritten(file, **members):
    """A zip's content, with members replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in dict.fromkeys([*old.namelist(), *members]):
            new.writestr(name, members.get(name, b"") if name in members else old.read(name))
    return buffer.getvalue()


def damaged(file, member):
    """A zip's content, with another last byte of a member."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        start = content.index(archive.read(member))
        content[start + archive.getinfo(member).file_size - 1] ^= 255
    return bytes(content)


def actions(folder, steps=15):
    """What an agent does in the first steps of three episodes."""
    checkpoint, settings = find_agent(str(folder))
    agent, env = load(checkpoint, settings, "cpu"), evaluation_envs(settings.env, 0, 3)
    obs, state, starts, done = env.reset(), None, np.ones(3, bool), []
    for _ in range(steps):
        taken, state = agent.predict(obs, state, starts, deterministic=True)
        done.append(taken)
        obs, _, starts, _ = env.step(taken)
    env.close()
    return np.array(done)


def test_a_shipped_agent_goes_and_comes_back(hub, tmp_path, monkeypatch):
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    folder = shutil.copytree(SHIPPED, tmp_path / "agent")
    shutil.copy(ROOT / "docs/_static/memory_s7_view3.gif", folder / "replay.gif")
    said = push(folder, REPO)
    assert len(hub.repos[REPO]) == 2, "one commit, besides that of the new repository"
    pushed = {"config.yaml", "best.zip", "model.safetensors", "README.md", "evaluation.json", "versions.json"}
    assert set(hub.repos[REPO][-1]) == pushed | {"replay.gif"}
    assert len(said.splitlines()) == 1, "nothing is missing"
    assert pull(REPO, tmp_path / "back").endswith(f"play it: python evaluate_agent.py {tmp_path}/back")
    back = contents(tmp_path / "back")
    assert set(back) == pushed | {"replay.gif"}
    assert back["best.zip"] == (SHIPPED / "best.zip").read_bytes()
    mine, theirs = (load_settings(folder / "config.yaml") for folder in (SHIPPED, tmp_path / "back"))
    assert mine == theirs
    monkeypatch.undo()
    played = actions(tmp_path / "back")
    assert len(np.unique(played)) > 1
    np.testing.assert_array_equal(played, actions(SHIPPED))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_weights_are_in_a_file_without_pickles(tmp_path):
    """One name a tensor, as the Hub counts them; ``load_model`` puts them back under all."""
    checkpoint, settings = find_agent(str(SHIPPED))
    policy, weights = load(checkpoint, settings, "cpu").policy, read_agent(SHIPPED).weights
    (tmp_path / "weights").write_bytes(as_safetensors(weights))
    kept = safetensors.load_file(tmp_path / "weights")
    assert 0 < len(kept) < len(weights), "the encoder has several names"
    sizes = {part.data_ptr(): part.numel() for part in policy.state_dict().values()}
    assert sum(weight.numel() for weight in kept.values()) == sum(sizes.values())
    for part in policy.state_dict().values():
        part.zero_()
    safetensors.load_model(policy, tmp_path / "weights")
    for name, weight in policy.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


@pytest.mark.slow
def test_as_a_user_runs_it(hub, run, tmp_path):
    code, out, err = run("push", SHIPPED, REPO)
    assert (code, err) == (0, "")
    assert f"no film; python evaluate_agent.py {SHIPPED} --video {SHIPPED}/replay.gif makes it" in out
    env = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fbrl.hub", "pull", REPO]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("play it: python evaluate_agent.py an-agent\n")
    assert (tmp_path / "an-agent/best.zip").is_file()


@pytest.mark.parametrize("entry", ["policy_class", "policy_kwargs", "ep_info_buffer"])
def test_code_in_the_arguments_is_not_run(entry, hub, small, tmp_path):
    left = tmp_path / "left"
    files = contents(small)
    with zipfile.ZipFile(small / "last.zip") as file:
        data = json.loads(file.read("data"))
    bad = pickle.dumps(Runs(left))
    data[entry] = {":type:": "?", ":serialized:": base64.b64encode(bad).decode()}
    hub.put(REPO, files | {"last.zip": rewritten(small / "last.zip", data=json.dumps(data))})
    pull(REPO, tmp_path / "back")
    assert (tmp_path / "back/last.zip").is_file()
    assert not left.exists()
    pickle.loads(bad)
    assert left.exists(), "the file is as bad as it should be"


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth", "resume.pkl"])
def test_code_in_the_members_is_not_run(member, hub, small, tmp_path):
    left, bad = tmp_path / "left", io.BytesIO()
    torch.save(Runs(left), bad)
    hub.put(REPO, contents(small) | {"last.zip": rewritten(small / "last.zip", **{member: bad.getvalue()})})
    if member == "policy.pth":  # the one that is read
        with pytest.raises(HubError, match=r"someone/an-agent: last.zip: holds no agent \(UnpicklingError"):
            pull(REPO, tmp_path / "back")
        assert not (tmp_path / "back").exists()
    else:
        pull(REPO, tmp_path / "back")
    assert not left.exists()
    bad.seek(0)
    torch.load(bad, weights_only=False)
    assert left.exists(), "the file is as bad as it should be"


def test_a_run_goes_without_what_only_it_needs(hub, small, tmp_path):
    """No resume.pkl, and no folders of this machine; what was not made is said with the command that makes it."""
    said = push(small, REPO).splitlines()
    assert [line.partition(";")[0] for line in said[1:]] == ["no evaluation", "no film"]
    pull(REPO, tmp_path / "back")
    with zipfile.ZipFile(small / "last.zip") as mine, zipfile.ZipFile(tmp_path / "back/last.zip") as theirs:
        assert set(mine.namelist()) - set(theirs.namelist()) == {"resume.pkl"}
        assert all(mine.read(name) == theirs.read(name) for name in theirs.namelist())
    assert yaml.safe_load((tmp_path / "back/config.yaml").read_text())["run"].keys() >= {"seed"}
    assert b"/home/someone" not in (tmp_path / "back/config.yaml").read_bytes()
    np.testing.assert_array_equal(actions(tmp_path / "back"), actions(small))


def test_the_evaluation_and_the_card_are_those_of_the_agent(hub, small, run, tmp_path):
    folder = shutil.copytree(small, tmp_path / "agent")
    settings = load_settings(folder / "config.yaml").env
    played = {"agent": f"{folder}/last.zip", "task": settings.id, "env_kwargs": settings.kwargs, "trained_steps": 0}
    played |= {"return": 0.25, "success": None, "episodes": 9, "exhaustive": False, "deterministic": False}
    (folder / "evaluation.json").write_text(json.dumps(played))
    assert run("push", folder, REPO)[0] == 0
    assert json.loads(hub.repos[REPO][-1]["evaluation.json"]) == played | {"agent": "last.zip"}
    assert b"| return | 0.250 (9 episodes, sampled actions) |" in hub.repos[REPO][-1]["README.md"]
    for name, content, expected in (
        (
            "evaluation.json",
            json.dumps(played | {"trained_steps": 1}),
            "is of an agent after 1 steps, and this one has",
        ),
        ("evaluation.json", "{", "Expecting property name"),
        ("evaluation.json", "[" * 100_000, "maximum recursion depth"),
        ("README.md", "---\n- 1\n---\n", "its metadata must be names and values"),
    ):
        before = (folder / name).read_text() if (folder / name).exists() else ""
        (folder / name).write_text(content)
        code, out, err = run("push", folder, REPO)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {folder}: {name}: {expected}")
        (folder / name).write_text(before)
    assert len(hub.repos[REPO]) == 2


def test_only_known_files_come(hub, small, tmp_path):
    hub.put(REPO, contents(small) | {"config.py": b"1 / 0", "sub/best.zip": b"?", "runs.pkl": b"?"})
    pull(REPO, tmp_path)  # which is empty
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "last.zip"}
    assert not any("config.py" in line or "sub" in line or "runs.pkl" in line for line in hub.asked)


def test_an_agent_beside_the_one_that_was_checked_does_not_come(hub, small, tmp_path):
    hub.put(REPO, contents(small) | {"best.zip": (small / "last.zip").read_bytes(), "last.zip": b"?"})
    pull(REPO, tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"config.yaml", "best.zip"}


def test_a_link_to_an_empty_folder_is_left(hub, small, run, tmp_path):
    hub.put(REPO, contents(small))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    code, out, err = run("pull", REPO, tmp_path / "link")
    expected = f"error: {tmp_path}/link: exists already and would be overwritten; give a new or an empty folder\n"
    assert (code, out, err) == (2, "", expected)
    assert hub.asked == []


def test_a_revision(hub, small, tmp_path):
    hub.put(REPO, contents(small))
    hub.put(REPO, contents(small) | {"README.md": b"newer"})
    pull(REPO, tmp_path / "old", revision=hub.sha(0))
    pull(REPO, tmp_path / "new")
    assert "README.md" in contents(tmp_path / "new").keys() - contents(tmp_path / "old").keys()


def test_private(hub, small, run):
    assert run("push", small, REPO, "--private")[0] == 0
    assert hub.private[REPO]
    assert run("push", small, REPO, "--private")[0] == 0, "again"
    assert run("push", small, "someone/public")[0] == 0
    before = len(hub.repos["someone/public"])
    code, _, err = run("push", small, "someone/public", "--private")
    assert (code, err) == (
        2,
        "error: someone/public: is public already, and --private would not hide what is pushed\n",
    )
    assert len(hub.repos["someone/public"]) == before


def test_an_agent_of_the_library_without_its_settings(hub, run, tmp_path):
    MemoryPPO("MlpPolicy", RandomTask(action_space=spaces.Discrete(2))).save(tmp_path / "best.zip")
    code, _, err = run("push", tmp_path, REPO)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path}: config.yaml: no such file" in err


NOT_AGENTS = {
    "no zip": ({"last.zip": None}, "holds neither best.zip nor last.zip"),
    "no settings": ({"config.yaml": None}, "config.yaml: no such file"),
    "settings of something else": ({"config.yaml": b"env: {}\ncore: {}"}, "config.yaml: must hold the groups env"),
    "a list": ({"config.yaml": b"[1]"}, "config.yaml: must hold the groups env"),
    "no YAML": ({"config.yaml": b"env: ["}, "config.yaml: no YAML: "),
    "code in YAML": ({"config.yaml": b"env: !!python/object/apply:os.getcwd []"}, "config.yaml: no YAML: "),
    "no text": ({"config.yaml": b"\xff\xfe\xff"}, "config.yaml: cannot be read"),
    "large settings": ({"config.yaml": b" " * 1_000_001}, "config.yaml: must be at most 1,000,000 bytes"),
    "no zip file": ({"last.zip": b"PK"}, "last.zip: holds no agent (BadZipFile"),
    "a damaged zip file": ({"last.zip": "damaged"}, "last.zip: its member policy.optimizer.pth is damaged"),
    "weights that are others": (
        {"model.safetensors": "others"},
        "model.safetensors: holds other weights than last.zip",
    ),
    "no weights": ({"model.safetensors": b"?"}, "model.safetensors: no safetensors file"),
}


@pytest.mark.parametrize("what", NOT_AGENTS)
def test_what_is_no_agent_is_refused_both_ways(what, hub, small, run, tmp_path):
    change, expected = NOT_AGENTS[what]
    files = contents(small) | change
    if change.get("model.safetensors") == "others":
        files["model.safetensors"] = safetensors.save({"log_std": torch.zeros(2)})
    if change.get("last.zip") == "damaged":
        files["last.zip"] = damaged(small / "last.zip", "policy.optimizer.pth")
    files = {name: content for name, content in files.items() if content is not None}
    hub.put(REPO, files)
    code, out, err = run("pull", REPO, tmp_path / "back")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {REPO}: {expected}")
    assert list(tmp_path.iterdir()) == []
    if "safetensors" in expected:  # made anew when it is pushed
        return
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        (tmp_path / "mine" / name).write_bytes(content)
    code, out, err = run("push", tmp_path / "mine", "someone/new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {tmp_path}/mine: {expected}")
    assert "someone/new" not in hub.repos


@pytest.mark.parametrize("member", ["data", "policy.pth"])
def test_a_zip_without_its_members_is_refused(member, hub, small, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(small / "last.zip") as old, zipfile.ZipFile(buffer, "w") as new:
        for name in set(old.namelist()) - {member}:
            new.writestr(name, old.read(name))
    hub.put(REPO, contents(small) | {"last.zip": buffer.getvalue()})
    with pytest.raises(HubError, match=f"last.zip: holds no agent: it has no member {member}"):
        pull(REPO, tmp_path / "back")


@pytest.mark.parametrize("weights", [{}, {"a": 1}, [torch.zeros(2)]], ids=str)
def test_weights_that_are_none_are_refused(weights, hub, small, tmp_path):
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    hub.put(REPO, contents(small) | {"last.zip": rewritten(small / "last.zip", **{"policy.pth": buffer.getvalue()})})
    with pytest.raises(HubError, match=r"last.zip: holds no agent: (there are no weights|its weights must)"):
        pull(REPO, tmp_path / "back")


@pytest.mark.parametrize(
    "repo", ["", "name", "a/b/c", "a/b c", "a/b--c", "../b", "a/..", "a/b.git", "a/é", "https://x/y"]
)
@pytest.mark.parametrize("command", ["push", "pull"])
def test_names_that_are_none_are_refused(repo, command, hub, small, run, tmp_path):
    given = (small, repo) if command == "push" else (repo, tmp_path / "back")
    code, out, err = run(command, *given)
    assert (code, out) == (2, "")
    assert err == f"error: the repository must be user/name, of letters, digits, '-', '_' and '.', got {repo!r}\n"
    assert hub.asked == []


def test_places_that_are_none_are_refused(hub, small, run, tmp_path):
    hub.put(REPO, contents(small))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for given, expected in (
        (("push", tmp_path / "nowhere", REPO), "nowhere: no such folder; expected one with config.yaml and best.zip"),
        (("push", small / "last.zip", REPO), "last.zip: no such folder"),
        (("pull", REPO, tmp_path / "full"), "full: exists already and would be overwritten"),
        (("pull", REPO, tmp_path / "full/file"), "file: exists already and would be overwritten"),
        (("pull", REPO, tmp_path / "no/where"), "no/where: there is no folder"),
        (("push", small), "the following arguments are required: repo"),
        (("pull", REPO, tmp_path / "new", "--branch", "x"), "unrecognized arguments: --branch x"),
        ((), "the following arguments are required: command"),
        (("send",), "argument command: invalid choice: 'send'"),
    ):
        code, out, err = run(*given)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert expected in err
    assert hub.asked == []
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_all_of_an_agent_comes_or_nothing(hub, small, tmp_path, monkeypatch):
    """A kill between two of its files."""
    hub.put(REPO, contents(small))
    replaced, replace = [], os.replace

    def dies(source, target):
        replaced.append(target)
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    (tmp_path / "back").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("fbrl.hub.transfer.os.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            pull(REPO, tmp_path / "back")
    assert len(replaced) == 3
    assert [path for path in (tmp_path / "back").iterdir()] == []
    pull(REPO, tmp_path / "back")
    np.testing.assert_array_equal(actions(tmp_path / "back"), actions(small))


def test_the_hubs_own_refusals_are_one_line(hub, small, run, tmp_path, monkeypatch):
    hub.put(REPO, contents(small))

    def line(*given):
        code, out, err = run(*given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    back = tmp_path / "back"
    assert "someone/other: the Hub has no such repository, or your token may not see it" in line(
        "pull", "someone/other", back
    )
    assert f"{REPO}: has no revision v9" in line("pull", REPO, back, "--revision", "v9")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "is the token right" in line("push", small, REPO)
    hub.broken = 400
    for given in (("push", small, REPO), ("pull", REPO, back)):
        assert f"{REPO}: the Hub " in line(*given)
    hub.broken = None
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.asked)
    assert line("push", small, REPO).startswith("error: no token of the Hugging Face Hub: hf auth login")
    assert len(hub.asked) == before
    assert not back.exists()
    assert len(hub.repos[REPO]) == 1


def test_without_a_network(small, run, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        at(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        for given in (("push", small, REPO), ("pull", REPO, tmp_path / "back")):
            code, out, err = run(*given)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"{REPO}: the Hub cannot be asked" in err
    assert not (tmp_path / "back").exists()


def test_without_what_it_needs(small, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for given in (("push", small, REPO), ("pull", REPO, tmp_path / "back")):
        code, _, err = run(*given)
        assert (code, err.count("\n")) == (2, 1)
        assert "pip install fbrl[hub]" in err


def test_every_known_file_has_its_plain_name():
    assert len(set(FILES)) == len(FILES)
    assert all(Path(name).name == name and "*" not in name for name in FILES)
