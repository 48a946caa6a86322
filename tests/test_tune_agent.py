"""The script as a user runs it: a study, going on with it, an interrupt, and one line for every bad input."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from experiment import files
from experiment.parsing import load_settings
from experiment.settings import SettingsError
from experiment.study import Study
from experiment.tuning import train_all
from tests.test_train_agent import SIGINT_BEFORE, TINY, assert_refused

SCRIPT = Path(__file__).parents[1] / "tune_agent.py"
ONE = "--workers=1"
SPACE = "ppo.learning_rate: {low: 1e-4, high: 1e-2, log: true}\nppo.ent_coef: [0.0, 0.01]\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process, because imports take seconds; hands back exit code, stdout and stderr."""

    def run(*arguments, script=SCRIPT):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tune(run, tmp_path):
    """Runs the script with tiny settings; runs go to tmp_path."""
    return lambda *arguments: run(*TINY, f"--run.folder={tmp_path / 'runs'}", *arguments)


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return file


@pytest.mark.slow
def test_a_study_goes_on_and_its_best_settings_are_trained(run, tune, tmp_path):
    folder = tmp_path / "runs" / "TMaze-v0_feedback_0_study"
    code, out, err = tune("--trials=2", ONE)  # over the default space
    assert (code, err) == (0, "")
    assert f"{folder}: up to 2 trials of fbrl/TMaze-v0, 1 at a time, over ppo.learning_rate, ppo.ent_coef" in out
    assert f"{folder}: 2 finished; the best:" in out
    assert len(Study(folder).optuna.get_trials()) == 2
    code, out, err = tune("--trials=3", ONE)
    assert (code, err) == (0, "")
    assert "trial 2: " in out
    assert "trial 1: " not in out
    assert len(Study(folder).optuna.get_trials()) == 3
    assert tune("--trials=3", ONE)[0] == 0  # nothing is left to do
    assert len(Study(folder).optuna.get_trials()) == 3
    assert {"best.yaml", "space.yaml", "study.db", "history.png", "slice.png", "trial_0002"} <= {
        path.name for path in folder.iterdir()
    }
    code, out, _ = run("--config", folder / "best.yaml", script=SCRIPT.with_name("train_agent.py"))
    assert code == 0
    assert (tmp_path / "runs" / "TMaze-v0_feedback_0" / "finished").exists()

    other = tune("--trials=4", ONE, "--core.window=7")
    assert_refused(
        other, f"{folder}: this study was begun with core.window 4, got 7; another run.name begins a new one"
    )


@pytest.mark.slow
def test_the_space_that_was_searched_can_be_given_again(tune, space, tmp_path):
    assert tune("--trials=1", ONE, f"--space={space}", "--run.name=a")[0] == 0
    written = tmp_path / "runs" / "a_study" / "space.yaml"
    assert tune("--trials=1", ONE, f"--space={written}", "--run.name=b")[0] == 0
    assert (tmp_path / "runs" / "b_study" / "space.yaml").read_text() == written.read_text()
    space.write_text("ppo.ent_coef: [0.0, 0.02]")
    result = tune("--trials=2", ONE, f"--space={space}", "--run.name=a")
    assert_refused(result, "this study searches ppo.learning_rate {'low': 0.0001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--trials must be given: how many trials the study has in all"),
        (["--trials=0"], "--trials must be at least 1 and at most 1,000,000, got 0"),
        (["--trials=many"], "--trials must be a whole number or null, got many"),
        (["--trials=2", "--workers=0"], "--workers must be at least 1 and at most 1,000, got 0"),
        (["--trials=2", "--startup=-1"], "--startup must be at least 1"),
        (["--trials=2", "--warmup=1.5"], "--warmup must be between 0 and 1, got 1.5"),
        (["--trials=2", "--space="], "--space must be the name of a file, got ''"),
        (["--trials=2", "--space=none.yaml"], "--space none.yaml: no such file"),
        (["--trials=2", "--spaces=x"], "unknown setting spaces; the closest: space"),
        (["--trials=2", "--config=none.yaml"], "none.yaml: File does not exist"),
        (["--trials=2", "--ppo.gama=1"], "unknown setting ppo.gama; the closest: ppo.gamma"),
        (["--trials=2", "--ppo.n_steps=12"], "ppo.n_steps must be a multiple of ppo.seq_len = 8, got 12"),
        (["--trials=2", "--env.id=Nowhere-v0"], "env.id Nowhere-v0 with env.kwargs"),
        (["--trials=2", "--run.device=tpu"], "run.device must be auto, cpu, cuda"),
        (["--trials=2", "--run.callbacks=[no.where]"], "run.callbacks must hold import paths"),
        (["--trials=2", "--run.start_from=/no/where"], "/no/where"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_made(tune, tmp_path, arguments, message):
    assert_refused(tune(*arguments), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core.layers: [1, 2]", "space.yaml: unknown setting core.layers; the closest: core.n_layers"),
        ("ppo.gamma: [0.9, high]", "space.yaml: ppo.gamma must be a number, got high"),
        ("ppo.gamma: {low: 0.9, high: 2}", "space.yaml: ppo.gamma must be between 0 and 1, got 2.0"),
        ("run.seed: [1, 2]", "space.yaml: run.seed must be the same in all trials"),
        ("ppo.seq_len: [5, 7]", "space.yaml: none of 200 configurations drawn from the space can be trained"),
        ("[1, 2", "space.yaml: Problems parsing config"),
    ],
)
def test_a_bad_space_is_refused_in_one_line_and_nothing_is_made(tune, space, tmp_path, text, message):
    space.write_text(text)
    assert_refused(tune("--trials=2", f"--space={space}"), message)
    assert list(tmp_path.iterdir()) == [space]


def test_a_study_that_another_process_has_is_refused(tune, space, tmp_path):
    with files.held(tmp_path / "runs" / "mine_study"):
        result = tune("--trials=2", f"--space={space}", "--run.name=mine")
    assert_refused(result, "mine_study: another process is training in it")


@pytest.mark.parametrize("name", ["optuna", "matplotlib"])
def test_without_what_it_needs_the_extra_is_named(tune, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert_refused(tune("--trials=2"), f"tuning needs pip install fbrl[tune] ({name} is missing)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(SIGINT_BEFORE == signal.SIG_IGN, reason="Ctrl-C is ignored in a background job")
def test_ctrl_c_in_a_terminal_saves_the_trials_of_all_workers_and_they_go_on(space, monkeypatch, tmp_path):
    """Reaches the whole process group, as a terminal's does."""
    arguments = [*TINY, f"--run.folder={tmp_path}", "--run.name=mine", "--trials=4", "--workers=2", f"--space={space}"]
    long = ["--ppo.timesteps=1000000", "--run.eval_every=1000000", "--run.checkpoint_every=1000000"]
    command = [sys.executable, str(SCRIPT), *arguments, *long]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    folder = tmp_path / "mine_study"
    try:
        for _ in range(1200):
            if all(list(folder.glob(f"trial_000{n}/events.out*")) for n in range(2)) or process.poll() is not None:
                break
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.splitlines()[-1].startswith("stopped; go on with: python tune_agent.py '--env.kwargs={corridor: 3}' ")
    assert "no trial has finished so far" in out
    study = Study(folder)
    assert [trial.state.name for trial in study.optuna.get_trials()] == ["RUNNING", "RUNNING"]
    for number in range(2):
        run = folder / f"trial_000{number}"
        assert load_settings(run / "config.yaml") == study.settings_of(number)
        assert not (run / ".lock").exists()  # its process has ended

    def go_on(settings, resume, watch):
        resumed.append(resume)
        raise SettingsError("enough")

    resumed = []
    monkeypatch.setattr("experiment.trials.train", go_on)
    assert train_all(study, 2, 1) == 0
    assert resumed == [folder / "trial_0000", folder / "trial_0001"]
