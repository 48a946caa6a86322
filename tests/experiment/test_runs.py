"""Run folders."""

import json

import pytest
import torch

from experiment.files import FileError, held
from experiment.parsing import load_settings
from experiment.runs import create_run, never_began, note_resumed, run_folder, run_path
from experiment.settings import EnvSettings, RunSettings, Settings, SettingsError


def tiny(folder, name=None):
    return Settings(EnvSettings(n_envs=2, kwargs={"corridor": 3}), run=RunSettings(name, str(folder)))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_new_run(tmp_path):
    settings = tiny(tmp_path / "some" / "where")
    folder = create_run(settings)
    assert folder == tmp_path / "some" / "where" / "TMaze-v0_feedback_0"
    assert load_settings(folder / "config.yaml") == settings
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "fbrl", "stable-baselines3", "gymnasium", "numpy", "machine", "threads", "gpu"} < versions.keys()
    assert "commit" in versions
    if versions["commit"] is not None:  # None where the code is not in a git repository
        assert len(versions["commit"].removesuffix("+")) == 40


def test_where_a_run_is_taken_up_again_is_noted(tmp_path, monkeypatch):
    settings = tiny(tmp_path)
    folder = create_run(settings)
    before = json.loads((folder / "versions.json").read_text())
    note_resumed(folder, 100)
    monkeypatch.setattr("experiment.runs.versions", lambda: before | {"torch": "9.9"})
    note_resumed(folder, 200)
    after = json.loads((folder / "versions.json").read_text())
    assert after == before | {"resumed": [{"timesteps": 100}, {"timesteps": 200, "torch": "9.9"}]}


def test_a_folder_that_holds_something_is_refused(tmp_path):
    settings = Settings(run=RunSettings(name="taken", folder=str(tmp_path)))
    (tmp_path / "taken").mkdir()
    assert run_folder(settings) == tmp_path / "taken"  # empty: free
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "taken")
    for make in (create_run, run_folder):
        with pytest.raises(SettingsError, match=r"taken already holds a run; choose another run\.name"):
            make(settings)
    assert contents(tmp_path / "taken") == before
    settings.run.name = "file"
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file already holds a run"):
        create_run(settings)


def test_versions_that_a_killed_process_left_unfinished_do_not_stop_a_run(tmp_path):
    """Kind: what an earlier version wrote in place."""
    folder = create_run(tiny(tmp_path))
    (folder / "versions.json").write_text('{"python": "3.1')
    note_resumed(folder, 100)
    after = json.loads((folder / "versions.json").read_text())
    assert after["resumed"][0]["timesteps"] == 100
    assert "python" in after["resumed"][0]


def test_a_run_that_ended_before_its_first_checkpoint_does_not_hold_its_name(tmp_path):
    """Kind: a name that is taken by nothing that could be resumed."""
    settings = tiny(tmp_path, "early")
    folder = tmp_path / "early"
    folder.mkdir()
    for left in ("versions.json.tmp", "versions.json", ".lock", "config.yaml.tmp", "config.yaml", "last.zip.tmp"):
        (folder / left).write_text("")
        assert run_folder(settings) == folder
    assert never_began(folder)
    create_run(settings)
    assert load_settings(folder / "config.yaml") == settings
    (folder / "last.zip").write_text("")
    with pytest.raises(SettingsError, match=rf"early already holds a run; .*, or --resume {folder}$"):
        run_folder(settings)


@pytest.mark.parametrize("name", ["config.yaml", "evaluations.jsonl", "best.zip", "notes.txt"])
def test_resume_is_offered_only_where_there_is_something_to_resume(tmp_path, name):
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / name).write_text("")
    with pytest.raises(SettingsError, match=r"choose another run\.name, or delete the folder$"):
        run_folder(tiny(tmp_path, "taken"))
    assert not never_began(folder)


def test_two_starts_at_once_have_one_folder(tmp_path):
    folder = tmp_path / "tiny"
    with held(folder):
        create_run(tiny(tmp_path, "tiny"))
        with pytest.raises(FileError, match="tiny: another process is training in it"), held(folder):
            pass
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "versions.json"}


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("fbrl/TMaze-v0", "TMaze-v0_feedback_0"),
        ("my_package:Cue-v0", "my_package_Cue-v0_feedback_0"),
        ('a<b>|"c?*\\-v0', "a_b___c___-v0_feedback_0"),
    ],
)
def test_a_default_name_that_every_system_takes(env_id, name):
    """Kind: a folder's name that some system forbids; the id of a task in a module of one's own has a colon."""
    assert run_path(Settings(EnvSettings(env_id))).name == name
