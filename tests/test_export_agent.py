"""The script that exports an agent, and the example that plays what it writes."""

import runpy
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

import envs
from experiment.agents import make_model
from experiment.checkpoints import agent_bytes
from experiment.environments import training_envs
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings
from fbrl import MemoryPPO
from fbrl.cores.names import CORES, core_kwargs
from fbrl.encoders import MiniGridEncoder
from tests.tasks import RandomTask

ROOT = Path(__file__).parents[1]
SIZES = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 4}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process; hands back exit code, stdout and stderr."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def save_agent(folder, task, core="feedback", **kwargs):
    folder.mkdir()
    env = envs.make(task, **kwargs)
    Settings(env=EnvSettings(id=task, kwargs=kwargs), core=CoreSettings(**SIZES, name=core)).save(
        folder / "config.yaml"
    )
    if core == "none":
        PPO("MlpPolicy", env, device="cpu").save(folder / "best.zip")
    else:
        policy = "MlpPolicy" if task == "fbrl/TMaze-v0" else "MultiInputPolicy"
        encoder = {} if policy == "MlpPolicy" else {"features_extractor_class": MiniGridEncoder}
        policy_kwargs = {"core_class": CORES[core][0], "core_kwargs": core_kwargs(core, SIZES), **encoder}
        MemoryPPO(policy, env, device="cpu", seed=0, policy_kwargs=policy_kwargs).save(folder / "best.zip")
    return folder


@pytest.mark.slow
def test_pt2(run, tmp_path):
    agent = save_agent(tmp_path / "agent", "fbrl/TMaze-v0", corridor=2)
    code, out, err = run("export_agent.py", agent, tmp_path / "agent.pt2", "--keys-values")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/agent.pt2: one step of {agent}/best.zip, the feedback core")
    program = torch.export.load(tmp_path / "agent.pt2")
    assert any(
        "memory.keys" in str(spec.arg) or "keys" in spec.arg.name for spec in program.graph_signature.input_specs
    )


def test_onnx_plays_minigrid_without_fbrl(run, tmp_path):
    pytest.importorskip("onnxscript", reason="needs pip install fbrl[onnx]")
    pytest.importorskip("onnxruntime", reason="needs pip install fbrl[onnx]")
    agent = save_agent(tmp_path / "agent", "MiniGrid-MemoryS7-v0")
    code, out, err = run("export_agent.py", agent, tmp_path / "agent.onnx")
    assert (code, err) == (0, "")
    assert "the feedback core" in out
    source = (ROOT / "examples/play_onnx.py").read_text()
    assert "torch" not in source
    assert "import fbrl" not in source
    code, out, err = run("examples/play_onnx.py", tmp_path / "agent.onnx", "MiniGrid-MemoryS7-v0")
    assert (code, err) == (0, "")
    assert out.endswith("of 20 episodes solved\n")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("agent.txt", "FILE must end in .onnx or .pt2, got"),
        ("missing/agent.pt2", "there is no folder"),
        ("taken.pt2", "exists already and would be overwritten"),
        (f"{'n' * 300}.pt2", "n.pt2: File name too long"),
        ("a\nb.pt2", "FILE must be the name of a file, got"),
    ],
)
def test_files_that_cannot_be_written(run, tmp_path, file, message):
    (tmp_path / "taken.pt2").touch()
    code, out, err = run("export_agent.py", tmp_path, tmp_path / file)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_half_of_a_program_is_none(run, tmp_path, monkeypatch, error):
    def fail(policy, file, keys_values):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("fbrl.export.save_program", fail)
    agent = save_agent(tmp_path / "agent", "fbrl/TMaze-v0")
    code, _, err = run("export_agent.py", agent, tmp_path / "agent.pt2")
    if isinstance(error, OSError):
        assert (code, err) == (2, f"error: {tmp_path}/agent.pt2 cannot be written: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_agents_that_cannot_be_exported(run, tmp_path):
    without = save_agent(tmp_path / "without", "fbrl/TMaze-v0", core="none")
    code, _, err = run("export_agent.py", without, tmp_path / "agent.pt2")
    assert code == 2
    assert "core.name none is Stable-Baselines3's own PPO" in err
    gru = save_agent(tmp_path / "gru", "fbrl/TMaze-v0", core="gru")
    code, _, err = run("export_agent.py", gru, tmp_path / "agent.pt2", "--keys-values")
    assert (code, err) == (2, f"error: {gru}/best.zip: --keys-values needs core.name feedback, got gru\n")
    code, _, err = run("export_agent.py", tmp_path / "nowhere", tmp_path / "agent.pt2")
    assert code == 2
    assert "no such file or folder" in err
    assert not (tmp_path / "agent.pt2").exists()


class FromTwo(RandomTask):
    """Its actions count from 2."""

    def __init__(self):
        super().__init__(action_space=spaces.Discrete(3, start=2))


@pytest.mark.parametrize(
    ("task", "env", "message"),
    [
        ("tests/FromTwo-v0", {}, "best.zip: an exported step counts from 0, got Discrete(3, start=2)"),
        (
            "Pendulum-v1",
            {"normalize_observations": True},
            "best.zip: env.normalize_observations is true, and an exported step holds no statistics",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_what_an_exported_step_would_get_wrong_is_refused(run, tmp_path, task, env, message, ending):
    gym.registry.pop("tests/FromTwo-v0", None)
    gym.register("tests/FromTwo-v0", entry_point=FromTwo)
    sizes = PPOSettings(n_steps=16, seq_len=8, batch_size=16)
    settings = Settings(EnvSettings(task, 2, **env), CoreSettings(**SIZES), sizes, RunSettings(device="cpu"))
    folder = tmp_path / "agent"
    folder.mkdir()
    settings.save(folder / "config.yaml")
    model = make_model(settings, training_envs(settings))
    (folder / "best.zip").write_bytes(agent_bytes(model))
    code, out, err = run("export_agent.py", folder, tmp_path / f"agent.{ending}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / f"agent.{ending}").exists()


def test_without_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    agent = save_agent(tmp_path / "agent", "fbrl/TMaze-v0")
    code, _, err = run("export_agent.py", agent, tmp_path / "agent.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install fbrl[onnx]" in err
