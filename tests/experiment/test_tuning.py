"""Studies: real ones of a few trials on a tiny T-maze, and what is worked out by hand of scores and reports."""

import os
import signal
import sqlite3
import subprocess
import threading
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("optuna")

from experiment import files
from experiment.callbacks import MemoryFigures
from experiment.findings import table, write_findings
from experiment.parsing import load_settings
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.space import read_space
from experiment.study import DATABASE, Study, begin, study_folder
from experiment.training import train
from experiment.trials import Reports, end_with, main, run_trial, said_of, score
from experiment.tuning import How, pays_novelty, tune
from fbrl.vec_env import TaskError

SPACE = {
    "ppo.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "core.d_model": [6, 10],
    "ppo.n_steps": [16, 24],
}
AGAIN = "python tune_agent.py --again"


def configuration(folder, **run):
    """A tiny T-maze: seconds a trial."""
    run = {"eval_every": 64, "eval_episodes": 5, "device": "cpu", "folder": str(folder), **run}
    return Settings(
        env=EnvSettings(n_envs=2, kwargs={"corridor": 3}),
        core=CoreSettings(d_model=6, n_layers=1, n_heads=2, window=5),
        ppo=PPOSettings(timesteps=192, n_steps=16, seq_len=8, batch_size=16, n_epochs=1),
        run=RunSettings(**run),
    )


def study_in(folder, settings, space=SPACE, startup=2, warmup=0):
    folder.mkdir(parents=True, exist_ok=True)
    return begin(folder, settings, space, startup, warmup)


def states(study):
    return [trial.state.name for trial in study.optuna.get_trials()]


def drawn(study):
    return [trial.params for trial in study.optuna.get_trials()]


def interrupt_at(step):
    """Instead of ``MemoryFigures._on_rollout_end``: Ctrl-C in the rollout that ends with this step, in trial 1."""

    def ends(figures):
        if figures.model.num_timesteps == step and "trial_0001" in str(figures.logger.dir):
            os.kill(os.getpid(), signal.SIGINT)

    return ends


def write_space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "ppo.learning_rate: {low: 1e-4, high: 1e-2, log: true}\ncore.d_model: [6, 10]\nppo.n_steps: [16, 24]"
    )
    return file


class Choice(gym.Env):
    """One step an episode: the fifth of eleven actions is right."""

    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(11)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(3, np.float32), {}

    def step(self, action):
        right = action == 4
        return np.ones(3, np.float32), float(right), True, False, {"is_success": bool(right)}


class Moving(Choice):
    """Real numbers, after the first step of an episode."""

    def step(self, action):
        return np.full(3, 0.25, np.float32), 0.0, False, False, {}


class Failing(Choice):
    """A bug in the environment, in its 40th step; none in evaluations, which come later."""

    steps, broken = 0, True

    def step(self, action):
        type(self).steps += 1
        if self.steps == 40 and self.broken:
            raise KeyError("a bug of the user's")
        return super().step(action)


class Huge(Choice):
    """A reward that is not finite, in the 40th step of the second training in this process."""

    steps = 0

    def step(self, action):
        type(self).steps += 1
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.steps == 300 else reward, *rest


@pytest.fixture(autouse=True)
def tasks():
    for task in (Choice, Moving, Failing, Huge):
        task.steps = 0
        gym.register(f"tests/{task.__name__}-v0", entry_point=task)
    yield
    for task in (Choice, Moving, Failing, Huge):
        del gym.registry[f"tests/{task.__name__}-v0"]


def of_task(settings, task):
    return replace(settings, env=replace(settings.env, id=f"tests/{task.__name__}-v0", kwargs={}))


def test_the_score_by_hand():
    def line(steps, success):
        return {"timesteps": steps, "success": success, "return": success - 5}

    lines = [line(100, 0.5), line(300, 0.9), line(400, 0.8)]
    found = score(lines, 500)  # 100 steps of 0.5, 200 of 0.9, then 0.8 to the end
    assert found == ("success", 0.9, pytest.approx((50 + 180 + 160) / 500))
    assert found.value == pytest.approx(0.9 * 0.9 + 0.1 * 0.78)
    assert score([line(520, 1.0)], 500) == ("success", 1.0, 1.0)  # the last rollout goes beyond the end
    without = [one | {"success": None} for one in lines]
    assert score(without, 500) == ("return", -4.1, pytest.approx(0.78 - 5))


def test_success_counts_more_than_how_soon_it_comes():
    later = score([{"timesteps": steps, "success": float(steps == 500), "return": 0} for steps in (100, 400, 500)], 500)
    sooner = score([{"timesteps": 100, "success": 0.85, "return": 0}], 500)
    assert later.mean < sooner.mean
    assert later.value > sooner.value


def reports(prunes=False, **settings):
    said = []
    trial = SimpleNamespace(report=lambda value, step: said.append((step, value)), should_prune=lambda: prunes)
    base = configuration("runs", **settings)
    return Reports(trial, replace(base, ppo=replace(base.ppo, timesteps=300)), known={64}), said


def test_evaluations_are_reported_for_the_steps_they_were_due_at():
    report, said = reports()
    assert not report({"timesteps": 80, "success": 0.25, "return": 3.0})
    assert said == []  # of step 64, which was reported before
    assert not report({"timesteps": 199, "success": 0.5, "return": 3.0})
    assert said == [(128, 0.5), (192, 0.5)]
    assert not report({"timesteps": 320, "success": None, "return": 7.0})
    assert said[2:] == [(256, 7.0)]


def test_a_success_that_ends_the_training_counts_to_its_end_and_is_not_pruned():
    report, said = reports(prunes=True, stop_at_success=0.9)
    assert not report({"timesteps": 130, "success": 0.95, "return": 3.0})
    assert said == [(128, 0.95), (192, 0.95), (256, 0.95)]
    assert report({"timesteps": 140, "success": 0.8, "return": 3.0})
    assert report.pruned


@pytest.mark.slow
def test_a_study_its_files_and_its_best_settings(tmp_path, capsys):
    settings = configuration(tmp_path, name="mine", control=True, progress_bar=False)
    tune(settings, How(4, write_space(tmp_path), workers=1, startup=4), AGAIN)
    folder, out = tmp_path / "mine_study", capsys.readouterr().out
    assert folder == study_folder(settings)
    study = Study(folder)
    assert states(study) == ["COMPLETE"] * 4
    assert drawn(study)[0] == {"ppo.learning_rate": 5e-4, "core.d_model": 6, "ppo.n_steps": 16}  # the configuration's
    assert len({params["ppo.learning_rate"] for params in drawn(study)}) == 4
    for trial in study.optuna.get_trials():
        run = folder / f"trial_{trial.number:04}"
        assert {path.name for path in run.iterdir()} >= {"config.yaml", "best.zip", "last.zip", "finished"}
        trained = load_settings(run / "config.yaml")
        assert trained.core.d_model == trial.params["core.d_model"]
        assert (trained.run.threads, trained.run.control, trained.ppo.timesteps) == (1, False, 192)
        assert sorted(trial.intermediate_values) == [64, 128, 192]
        assert f"trial {trial.number}: success {trial.user_attrs['best']:.3f}, mean" in out
        assert trial.value == pytest.approx(0.9 * trial.user_attrs["best"] + 0.1 * trial.user_attrs["mean"])
    best = study.optuna.best_trial
    found = load_settings(folder / "best.yaml")
    assert found.ppo.learning_rate == best.params["ppo.learning_rate"]
    assert found.run == settings.run
    assert replace(found, core=settings.core, ppo=settings.ppo) == settings
    assert found.ppo.timesteps == settings.ppo.timesteps
    plots = {path.name for path in folder.glob("*.png")}
    enough = len({trial.value for trial in study.optuna.get_trials()}) > 1
    assert plots == {"history.png", "intermediate_values.png", "slice.png"} | ({"importances.png"} if enough else set())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    rows = table(study).splitlines()
    assert rows[0].split() == ["trial", "success", "mean", "value", "learning_rate", "d_model", "n_steps"]
    assert int(rows[1].split()[0]) == best.number
    assert rows == [line for line in out.splitlines() if line in rows]

    assert train(found) == tmp_path / "mine"  # best.yaml is a configuration like any other


@pytest.mark.slow
def test_the_same_seed_is_the_same_study_and_an_interrupted_one_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    space = write_space(tmp_path)
    tune(configuration(tmp_path / "a"), How(4, space, workers=1, startup=3), AGAIN)
    b = configuration(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFigures, "_on_rollout_end", interrupt_at(96))
        with pytest.raises(SystemExit) as stop:
            tune(b, How(3, space, workers=1, startup=3), AGAIN)
    assert stop.value.code == 130
    assert states(Study(study_folder(b))) == ["COMPLETE", "RUNNING"]
    tune(b, How(3, space, workers=1, startup=3), AGAIN)
    assert states(Study(study_folder(b))) == ["COMPLETE"] * 3
    tune(b, How(4, space, workers=1, startup=3), AGAIN)  # up to four in all
    first, other = Study(study_folder(configuration(tmp_path / "a"))), Study(study_folder(b))
    assert drawn(first) == drawn(other)
    for one, again in zip(first.optuna.get_trials(), other.optuna.get_trials(), strict=True):
        assert (one.state, one.intermediate_values, one.value) == (again.state, again.intermediate_values, again.value)

    c = configuration(tmp_path / "c", seed=3)
    tune(c, How(2, space, workers=1), AGAIN)
    assert drawn(Study(study_folder(c)))[1] != drawn(first)[1]


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MemoryFigures, "_on_rollout_end", interrupt_at(96))
    settings = configuration(tmp_path)
    with pytest.raises(SystemExit):
        tune(settings, How(3, write_space(tmp_path), workers=1), AGAIN)
    out = capsys.readouterr().out
    assert out.endswith(f"stopped; go on with: {AGAIN}\n")
    assert "train_agent.py --resume" not in out
    assert (study_folder(settings) / "best.yaml").is_file()  # of what had finished


@pytest.mark.slow
def test_what_learns_nothing_is_pruned(tmp_path, capsys):
    """The trial that learns is first; those that cannot are ended at their first evaluation."""
    settings = of_task(configuration(tmp_path, eval_every=320, checkpoint_every=10**6), Choice)
    ppo = replace(settings.ppo, timesteps=960, learning_rate=0.02, n_epochs=4, ent_coef=0.0)
    settings = replace(settings, ppo=ppo)
    space = tmp_path / "space.yaml"
    space.write_text("ppo.learning_rate: [0.02, 1e-12, 2e-12]")
    tune(settings, How(4, space, workers=1, startup=1, warmup=0.5), AGAIN)
    study = Study(study_folder(settings))
    for trial in study.optuna.get_trials():
        learns = trial.params["ppo.learning_rate"] == 0.02
        assert trial.state.name == ("COMPLETE" if learns else "PRUNED")
        assert len(trial.intermediate_values) == (3 if learns else 2)  # the first is before the half
        assert trial.user_attrs["best"] == float(learns)
    assert states(study).count("PRUNED") >= 1
    run = study.folder / f"trial_{states(study).index('PRUNED'):04}"
    assert not (run / "finished").exists()  # it can be trained on
    assert "pruned after 640 steps, best success 0.000" in capsys.readouterr().out
    assert train(load_settings(run / "config.yaml"), run) == run
    assert (run / "finished").exists()


@pytest.mark.slow
def test_what_cannot_be_trained_fails_with_a_line_and_the_others_go_on(tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text("ppo.seq_len: [7, 8]")
    settings = configuration(tmp_path)
    tune(settings, How(5, space, workers=1), AGAIN)
    study, out = Study(study_folder(settings)), capsys.readouterr().out
    assert "% of the configurations in the space cannot be trained, such as: ppo.n_steps must be" in out
    for trial in study.optuna.get_trials():
        bad = trial.params["ppo.seq_len"] == 7
        assert trial.state.name == ("FAIL" if bad else "COMPLETE")
        assert (study.folder / f"trial_{trial.number:04}").exists() != bad
        if bad:
            assert f"trial {trial.number}: failed: ppo.n_steps must be a multiple of ppo.seq_len = 7, got 16\n" in out
    assert set(states(study)) == {"FAIL", "COMPLETE"}


@pytest.mark.slow
def test_a_reward_that_is_not_finite_makes_a_failed_trial(tmp_path, capsys):
    settings = of_task(configuration(tmp_path), Huge)
    tune(settings, How(3, write_space(tmp_path), workers=1), AGAIN)
    study = Study(study_folder(settings))
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    out = capsys.readouterr().out
    assert f"trial {states(study).index('FAIL')}: failed: " in out
    assert "must be finite, got nan" in out


@pytest.mark.slow
def test_a_bug_in_the_environment_is_raised_and_its_trial_goes_on_afterwards(tmp_path, monkeypatch):
    settings = of_task(configuration(tmp_path), Failing)
    with pytest.raises(TaskError, match="KeyError") as error:
        tune(settings, How(2, write_space(tmp_path), workers=1), AGAIN)
    assert isinstance(error.value.__cause__, KeyError)
    assert error.value.__notes__[-1] == f"the study goes on with: {AGAIN}"
    assert states(Study(study_folder(settings))) == ["RUNNING"]
    monkeypatch.setattr(Failing, "broken", False)
    tune(settings, How(2, write_space(tmp_path), workers=1), AGAIN)
    assert states(Study(study_folder(settings))) == ["COMPLETE", "COMPLETE"]


def test_a_kill_while_a_trial_is_drawn(tmp_path, monkeypatch):
    """Kind: what is written in several transactions, of which some are missing. The configuration's own trial, too."""
    settings, file = configuration(tmp_path), write_space(tmp_path)
    expected = study_in(tmp_path / "whole", settings, read_space(file))
    expected.ask(1)
    folder, drawn_first = study_folder(settings), []
    from optuna import Trial

    suggest = Trial._suggest

    def dies(trial, name, distribution):
        if len(drawn_first) == 1:
            raise KeyboardInterrupt
        drawn_first.append(name)
        return suggest(trial, name, distribution)

    study = study_in(folder, settings, read_space(file))
    with monkeypatch.context() as patch:
        patch.setattr(Trial, "_suggest", dies)
        with pytest.raises(KeyboardInterrupt):
            study.ask(2)
    assert [len(params) for params in drawn(Study(folder))] == [1]
    tune(settings, How(1, file, workers=1, startup=2, warmup=0), AGAIN)
    study = Study(folder)
    assert states(study) == ["COMPLETE"]
    assert drawn(study)[0].keys() == drawn(expected)[0].keys()


def test_a_disk_that_is_full_for_the_study(tmp_path, monkeypatch):
    """After it was begun; the trial's training goes on afterwards."""
    from sqlalchemy.exc import OperationalError

    def full(reports, line):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    settings, file = configuration(tmp_path), write_space(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Reports, "__call__", full)
        with pytest.raises(SettingsError, match=r"study\.db cannot be used as a study: .*disk is full") as error:
            tune(settings, How(1, file, workers=1), AGAIN)
    assert error.value.__notes__[-1] == f"the study goes on with: {AGAIN}"
    tune(settings, How(1, file, workers=1), AGAIN)
    assert states(Study(study_folder(settings))) == ["COMPLETE"]


def test_where_nothing_has_finished_it_is_said(tmp_path):
    study = study_in(tmp_path / "study", configuration(tmp_path), {"ppo.seq_len": [7, 8]})
    study.ask(1)
    study.fail(0, "the reason")
    with pytest.raises(SettingsError, match="no trial has finished so far; the last to fail: the reason"):
        write_findings(study)
    assert not (study.folder / "best.yaml").exists()


@pytest.mark.slow
def test_two_workers_on_one_study(tmp_path, capfd):
    settings = configuration(tmp_path)
    tune(settings, How(2, write_space(tmp_path), workers=2), AGAIN)
    study = Study(study_folder(settings))
    assert states(study) == ["COMPLETE"] * 2
    assert all((study.folder / f"trial_{number:04}" / "finished").exists() for number in range(2))
    out = capfd.readouterr().out
    assert all(f"trial {number}: success" in out for number in range(2))
    one, other = study.optuna.get_trials()
    assert one.datetime_start < other.datetime_complete  # at the same time
    assert other.datetime_start < one.datetime_complete


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_trial_and_another_goes_on(tmp_path, monkeypatch, capfd):
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        if len(started) == 1:
            started[0].kill()
        return started[-1]

    monkeypatch.setattr("experiment.workers.subprocess.Popen", start)
    settings = configuration(tmp_path)
    tune(settings, How(2, write_space(tmp_path), workers=2), AGAIN)
    study = Study(study_folder(settings))
    assert states(study) == ["FAIL", "COMPLETE"]
    assert "trial 0: failed: its process was ended by signal 9" in capfd.readouterr().out


@pytest.mark.slow
def test_an_error_in_a_worker_ends_the_study_with_its_code(tmp_path, capfd):
    settings = configuration(tmp_path)
    study = study_in(study_folder(settings), settings, read_space(write_space(tmp_path)))
    with files.held(study.folder / "trial_0000"), pytest.raises(SystemExit) as stop:  # as another program would
        tune(settings, How(1, write_space(tmp_path), workers=2), AGAIN)
    assert stop.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert said[0] == f"error: {study.folder / 'trial_0000'}: another process is training in it"
    assert said[1] == f"stopped by the error above; go on with: {AGAIN}"
    assert states(study) == ["RUNNING"]


def test_a_process_of_a_worker_tells_what_became_of_its_trial(tmp_path):
    settings = configuration(tmp_path)
    study = study_in(tmp_path / "study", settings)
    assert study.ask(2) == 0
    main([str(study.folder), "0", str(os.getppid())])
    assert states(study) == ["COMPLETE"]
    assert said_of(study, 0).endswith("after 192 steps; the best so far")


def test_a_process_asks_itself_to_save_once_its_parent_is_gone(monkeypatch):
    parents, asked, heard = iter([5, 5, 1]), [], threading.Event()
    monkeypatch.setattr("experiment.trials.time.sleep", lambda seconds: None)
    monkeypatch.setattr("experiment.trials.os.getppid", lambda: next(parents))
    monkeypatch.setattr("experiment.trials.os.kill", lambda *what: (asked.append(what), heard.set()))
    end_with(5)
    assert heard.wait(10)
    assert asked == [(os.getpid(), signal.SIGTERM)]
    assert list(parents) == []  # not sooner


def test_a_run_that_had_finished_before_its_trial_was_told_is_not_trained_again(tmp_path, monkeypatch):
    settings = configuration(tmp_path)
    study = study_in(tmp_path / "study", settings)
    assert study.ask(1) == 0
    train(study.settings_of(0))
    monkeypatch.setattr("experiment.trials.train", None)
    assert run_trial(study, 0)
    assert states(study) == ["COMPLETE"]


@pytest.mark.parametrize(
    ("change", "space", "message"),
    [
        ({"seed": 7}, SPACE, "this study was begun with run.seed 0, got 7; another run.name begins a new one"),
        ({"eval_every": 32}, SPACE, "this study was begun with run.eval_every 64, got 32"),
        ({}, {"core.d_model": [6, 10]}, "this study searches ppo.learning_rate {'low': 0.0001"),
        ({}, SPACE | {"ppo.gamma": [0.9, 0.99]}, "this study searches ppo.gamma not at all, got [0.9, 0.99]"),
    ],
)
def test_another_configuration_or_space_than_the_studys_is_refused(tmp_path, change, space, message):
    folder = tmp_path / "study"
    study_in(folder, configuration(tmp_path))
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(SettingsError) as error:
        study_in(folder, configuration(tmp_path, **change), space)
    assert message in str(error.value)
    assert (folder / DATABASE).read_bytes() == before


def test_what_does_not_matter_may_differ(tmp_path):
    study_in(tmp_path / "study", configuration(tmp_path))
    again = configuration(tmp_path, checkpoint_every=7, progress_bar=False, threads=2)
    assert study_in(tmp_path / "study", again).settings.run.threads == 2


@pytest.mark.parametrize("name", ["a ?b", "50%20#c", "é"])
def test_the_folder_may_have_any_name(tmp_path, name):
    study = study_in(tmp_path / name, configuration(tmp_path))
    assert (tmp_path / name / DATABASE).is_file()
    assert study.ask(5) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_is_no_study_is_refused(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(SettingsError, match="cannot be used as a study"):
        study_in(folder, configuration(tmp_path))
    (folder / DATABASE).unlink()
    with pytest.raises(SettingsError, match="holds no study"):
        Study(folder)
    (folder / "mine.txt").touch()
    with pytest.raises(SettingsError, match=r"already holds something that is no study; choose another run\.name"):
        study_in(folder, configuration(tmp_path))


@pytest.mark.slow
def test_a_study_whose_process_was_killed_before_it_began_begins(tmp_path):
    folder = tmp_path / "study"
    study = study_in(folder, configuration(tmp_path))
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("DELETE FROM study_user_attributes WHERE key = 'settings'")
    database.close()
    del study
    study = study_in(folder, configuration(tmp_path))
    assert states(study) == ["WAITING"]  # the configuration itself, once
    assert (study.ask(2), study.ask(2), study.ask(2)) == (0, 1, None)


def test_which_tasks_can_pay_for_novelty(tmp_path):
    assert pays_novelty(configuration(tmp_path))
    at_rest = of_task(configuration(tmp_path), Moving)  # its first observations are zeros
    assert not pays_novelty(at_rest)
