"""Learning curves: gathered from run folders, drawn from what was gathered."""

import json
from pathlib import Path

import pytest
from PIL import Image
from stable_baselines3 import PPO

from benchmarks.curves import draw, gather, kind_of
from fbrl.callbacks import NOT_SAVED
from fbrl.runs import create_run
from fbrl.settings import Settings, SettingsError
from train_agent import make_envs, make_model


def untrained_run(folder: Path, task: str, core: str, success: list[float | None]) -> Path:
    settings = Settings()
    settings.env.id, settings.env.n_envs = task, 1
    settings.core.name, settings.core.d_model, settings.core.window = core, 8, 4
    settings.ppo.batch_size = settings.ppo.n_steps
    settings.run.folder, settings.run.device = str(folder), "cpu"
    run = create_run(settings)
    model: PPO = make_model(settings, make_envs(settings.env, 0, 1))
    model.save(run / "best.zip", exclude=NOT_SAVED)
    lines = [
        {"timesteps": 100 * i, "success": value, "return": 0.0, "length": 1.0} for i, value in enumerate(success, 1)
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_gather_and_draw(tmp_path):
    runs = [
        untrained_run(tmp_path, "fbrl/TMaze-v0", "feedback", [0.5, 1.0]),
        untrained_run(tmp_path, "fbrl/TMaze-v0", "none", [0.5, 0.25, 0.5]),
    ]
    target = tmp_path / "tmaze.json"
    gather(target, runs)
    data = json.loads(target.read_text())
    assert data["task"] == "fbrl/TMaze-v0"
    assert [run["core"] for run in data["runs"]] == ["feedback", "none"]
    assert [run["start_states"] for run in data["runs"]] == [2, 2]
    assert all(0 <= run["exhaustive_success"] <= 1 for run in data["runs"])
    assert "exhaustive_success_zero_memory" in data["runs"][0]
    assert data["runs"][1]["evaluations"]["success"] == [0.5, 0.25, 0.5]
    assert data["runs"][0]["versions"]["torch"]

    draw(target, tmp_path / "tmaze.png")
    with Image.open(tmp_path / "tmaze.png") as picture:
        assert picture.size == (1050, 600)
    with pytest.raises(SettingsError, match="exists already"):
        gather(target, runs)
    assert json.loads(target.read_text()) == data


def test_a_task_with_too_many_start_states(tmp_path):
    """There are no exact figures, and the curve is drawn all the same."""
    run = untrained_run(tmp_path, "MiniGrid-DoorKey-8x8-v0", "feedback", [0.0, 1.0])
    gather(tmp_path / "x.json", [run])
    (found,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert found["exhaustive_success"] is found["exhaustive_success_zero_memory"] is found["start_states"] is None
    draw(tmp_path / "x.json", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("core", "ppo", "kind"),
    [
        ("feedback", {"passes": None}, "Feedback Transformer"),
        ("feedback", {}, "Feedback Transformer"),  # a run of before there were passes
        ("feedback_plain", {"passes": None}, "Feedback Transformer, plain form"),
        ("feedback", {"passes": 1}, "1 parallel pass"),
        ("feedback", {"passes": 2}, "2 parallel passes"),
        ("none", {"passes": None}, "memoryless control"),
    ],
)
def test_kinds_of_runs(core, ppo, kind):
    assert kind_of({"core": core, "settings": {"ppo": ppo}}) == kind
