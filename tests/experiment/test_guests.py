"""Callbacks of others in a run."""

import json
import os

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from experiment.guests import Guests, find, invite
from experiment.parsing import load_settings
from experiment.settings import SettingsError
from experiment.training import train
from tests.experiment.test_board import settings
from tests.tasks import collect, make_model


class Counts(BaseCallback):
    """Writes what it was called for to the run's folder."""

    def __init__(self, folder, verbose=0):
        super().__init__(verbose)
        self.folder, self.called = folder, dict.fromkeys(("start", "step", "rollout", "end"), 0)

    def _on_training_start(self):
        self.called["start"] += 1

    def _on_step(self):
        self.called["step"] += 1
        return True

    def _on_rollout_end(self):
        self.called["rollout"] += 1

    def _on_training_end(self):
        self.called["end"] += 1
        (self.folder / "called.json").write_text(json.dumps(self.called))


class Stops(BaseCallback):
    """Ends the training in its fifth step."""

    def _on_step(self):
        return self.n_calls < 5


class Demands(BaseCallback):
    def __init__(self, height):
        super().__init__()


def make_counts(settings, folder):
    assert settings.core.window == 4
    return Counts(folder)


def no_callback():
    return 3


NUMBER = 3
HERE = "tests.experiment.test_guests"


@pytest.mark.parametrize("name", ["Counts", "make_counts"])
def test_a_callback_is_called(tmp_path, name):
    folder = train(settings(tmp_path, callbacks=[f"{HERE}.{name}"]))
    called = json.loads((folder / "called.json").read_text())
    assert called == {"start": 1, "step": 64, "rollout": 2, "end": 1}
    assert load_settings(folder / "config.yaml").run.callbacks == [f"{HERE}.{name}"]


def test_one_that_stops_ends_the_training_after_the_update(tmp_path):
    folder = train(settings(tmp_path, callbacks=[f"{HERE}.Stops"]))
    steps = [json.loads(line)["timesteps"] for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert 128 <= steps[-1] < 256


def test_all_are_called_where_one_stops(tmp_path):
    one, other = Stops(), Counts(tmp_path)
    guests = Guests([one, other])
    collect(make_model(), callback=guests)  # twelve steps
    assert (guests.ended, one.n_calls, other.called["step"]) == (True, 12, 12)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Counts", "run.callbacks must hold import paths such as wandb.integration.sb3.WandbCallback, got Counts"),
        ("no.such.Callback", "got no.such.Callback: No module named 'no'"),
        (f"{HERE}.Nothing", f"got {HERE}.Nothing: module"),
        (f"{HERE}.NUMBER", f"run.callbacks must hold classes or functions, got {HERE}.NUMBER, a int"),
        (".no.Callback", "run.callbacks must hold import paths such as .*, got .no.Callback: "),
        (f"{HERE}.Demands", f"run.callbacks: {HERE}.Demands needs height; only settings and folder can be given"),
        ("builtins.dict", "run.callbacks: builtins.dict makes no callback, but a dict"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path, path, message):
    with pytest.raises(SettingsError, match=message):
        find(path)
    with pytest.raises(SettingsError, match=message):
        train(settings(tmp_path, callbacks=[path]))
    assert not (tmp_path / "run").exists()


def test_what_makes_no_callback(tmp_path):
    with pytest.raises(SettingsError, match="makes no callback, but a int"):
        invite(settings(tmp_path, callbacks=[f"{HERE}.no_callback"]), tmp_path)


@pytest.mark.filterwarnings("ignore")  # what wandb warns of is its own
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs pip install fbrl[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(settings(tmp_path, callbacks=["wandb.integration.sb3.WandbCallback"]))
    assert wandb.run is None  # it was ended
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    logged = b"".join(file.read_bytes() for file in runs[0].glob("*.wandb"))
    for said in (b"eval/success", b"memory/read_1", b"corridor", b"MemoryPPO"):  # figures, settings, the algorithm
        assert said in logged
    assert os.environ["WANDB_MODE"] == "offline"
