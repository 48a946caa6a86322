"""Suites of runs: read, trained, never trained twice, taken up again, told in tables."""

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks.learning import compare, intervals, results, tables, train
from benchmarks.learning.suite import ROOT, SUITES, identity, load_suite
from experiment.settings import RunSettings, Settings, SettingsError

TINY = """
about: a test
tasks:
  maze:
    env: {id: fbrl/TMaze-v0, n_envs: 2, kwargs: {corridor: 3}}
    ppo: {n_steps: 32, batch_size: 64, seq_len: 16, timesteps: 128}
    run: {eval_every: 64, eval_episodes: 3, checkpoint_every: 64}
cores:
  feedback: {core: {d_model: 8, window: 4, n_heads: 2}}
  lstm: {core: {d_model: 8}}
seeds: [3, 5]
parameters: free
"""


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def command(tmp_path, file, *more):
    return ["run", str(file), "--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), *more]


def test_a_suite_says_its_runs(tiny, tmp_path):
    suite = load_suite(tiny, tmp_path / "runs", tmp_path / "results")
    assert [run.name for run in suite.runs] == ["maze_feedback_3", "maze_lstm_3", "maze_feedback_5", "maze_lstm_5"]
    settings = suite.runs[1].settings
    assert (settings.core.name, settings.core.d_model, settings.env.kwargs) == ("lstm", 8, {"corridor": 3})
    assert (settings.run.seed, settings.run.threads, settings.ppo.timesteps) == (3, 1, 128)
    assert suite.runs[1].folder == tmp_path / "runs" / "tiny" / "maze_lstm_3"
    assert suite.runs[1].result_file == tmp_path / "results" / "tiny" / "maze_lstm_3.json"


def test_a_task_starts_from_a_configuration(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        "about: a\ntasks: {s9: {config: configs/memory_s9_view3.yaml, ppo: {timesteps: 7}}}\n"
        "cores: {small: {core: {name: gru, d_model: 12}}}\nseeds: [0]\n"
    )
    settings = load_suite(file).runs[0].settings
    assert (settings.env.id, settings.ppo.timesteps, settings.ppo.batch_size) == ("fbrl/MemoryS9-View3-v0", 7, 1024)
    assert (settings.core.name, settings.core.d_model, settings.core.window) == ("gru", 12, 32)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [3, 5]", "seeds: [3, -1]", r"seeds must be a list of whole numbers from 0 on, got \[3, -1\]"),
        ("seeds: [3, 5]", "seed: [3]", "must hold about, tasks, cores and seeds"),
        ("lstm: {core: {d_model: 8}}", "lstm: {core: {d_modle: 8}}", "maze with lstm: .*core.d_modle"),
        ("lstm: {core: {d_model: 8}}", "lstm: {run: {seed: 1}}", "cores.lstm must hold any of core, env, ppo"),
        ("  maze:", "  ma/ze:", "tasks must map names of letters"),
        ("parameters: free", "parameters: some", "parameters must be equal or free, got some"),
        ("id: fbrl/TMaze-v0", "id: [", "not a YAML file"),
        (
            "seeds: [3, 5]",
            "seeds: [3, 3]",
            "every run must have a name of its own, got maze_feedback_3, maze_l",
        ),
        ("lstm: {core: {d_model: 8}}", "lstm: {core: 8}", "cores.lstm.core must be a mapping of settings, got 8"),
        ("    env:", "    config: 3\n    env:", "tasks.maze.config must be a file, got 3"),
        ("    env:", "    config: nowhere.yaml\n    env:", "tasks.maze.config: .*nowhere.yaml: no such file"),
    ],
)
def test_a_bad_suite_is_refused_in_one_line(tiny, old, new, message):
    assert old in TINY
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(SettingsError, match=message) as error:
        load_suite(tiny)
    assert str(tiny) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_suite_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(SettingsError, match=r"no such file; the suites are .*recall.yaml"):
        load_suite(tmp_path / "none.yaml")


def test_cores_of_unequal_size_are_refused(tiny):
    fair = TINY.replace("parameters: free\n", "")
    tiny.write_text(fair)
    suite = load_suite(tiny)
    suite.check_parameters()
    assert suite.parameters == {("maze", "feedback"): 1135, ("maze", "lstm"): 1244}  # 9.6 % more
    tiny.write_text(fair.replace("lstm: {core: {d_model: 8}}", "lstm: {core: {d_model: 9}}"))
    message = "on maze, all cores must have as many parameters within 10 %, got 1,135 of feedback and 1,543 of lstm"
    with pytest.raises(SettingsError, match=message):
        load_suite(tiny).check_parameters()


@pytest.mark.parametrize("file", sorted(SUITES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_suites_of_this_repository_are_fair(file):
    suite = load_suite(file)
    suite.check_parameters()  # raises where they are not
    assert set(suite.parameters) == {(task, core) for task in suite.tasks for core in suite.cores}


@pytest.mark.slow
def test_runs_are_trained_once_and_told(tiny, tmp_path, capsys, monkeypatch):
    tiny.write_text(TINY.replace("[3, 5]", "[5]"))
    compare.main(command(tmp_path, tiny, "--workers", "2"))
    assert "tiny: 2 of 2 runs to do" in capsys.readouterr().out
    suite = load_suite(tiny, tmp_path / "runs", tmp_path / "results")
    results = [compare.read_result(run) for run in suite.runs]
    for run, result in zip(suite.runs, results, strict=True):
        assert (result["task"], result["core"], result["seed"]) == (run.task, run.core, run.seed)
        assert (result["finished"], result["exact"], result["episodes"]) == (True, True, 2)
        assert result["success"] in (0, 0.5, 1)
        assert result["evaluations"]["timesteps"] == [64, 128]
        assert result["steps"] == 128
        assert result["steps_per_second"] > 0
        assert result["parameters"] == suite.parameters[run.task, run.core]
    written = [run.result_file.stat().st_mtime_ns for run in suite.runs]

    monkeypatch.setattr(train, "start", lambda *_: pytest.fail("trained again"))
    compare.main(command(tmp_path, tiny))
    assert "tiny: 0 of 2 runs to do" in capsys.readouterr().out
    assert [run.result_file.stat().st_mtime_ns for run in suite.runs] == written

    other = tmp_path / "other.yaml"  # under other names, but with the settings of one run
    other.write_text(tiny.read_text().replace("maze:", "alley:").replace("lstm: {core: {", "L: {core: {name: gru, "))
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_local", lambda to_do, _: to_train.extend(run.name for run in to_do))
        to_train: list[str] = []
        compare.main(command(tmp_path, other))
    assert to_train == ["alley_L_5"]
    taken = json.loads((tmp_path / "results" / "other" / "alley_feedback_5.json").read_text())
    assert taken == results[0] | {"suite": "other", "task": "alley", "taken_from": "tiny"}

    tables.write_csv(results, tmp_path / "x.csv")
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["5", "5"]
    assert rows[0]["success_interval"] == f"{results[0]['success']:.6g}..{results[0]['success']:.6g}"
    tables.draw(suite, results, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (728, 546)
    monkeypatch.setattr(tables, "MANY", 1)  # where runs ended, in the place of curves
    tables.draw(suite, results, tmp_path / "y.png")
    assert (tmp_path / "y.png").read_bytes() != (tmp_path / "x.png").read_bytes()

    tiny.write_text(tiny.read_text().replace("corridor: 3", "corridor: 4"))
    with pytest.raises(SettingsError, match=r"made with other settings than tiny says \(env.kwargs"):
        compare.main(command(tmp_path, tiny))


@pytest.mark.slow
def test_an_interrupted_suite_goes_on(tiny, tmp_path):
    """Ctrl-C lets the runs save; the same command takes them up where they were."""
    tiny.write_text(TINY.replace("timesteps: 128", "timesteps: 64000").replace("[3, 5]", "[3]"))
    arguments = [sys.executable, "-m", "benchmarks.learning.compare", *command(tmp_path, tiny, "--workers", "2")]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folders = [tmp_path / "runs" / "tiny" / f"maze_{core}_3" for core in ("feedback", "lstm")]
    deadline = time.monotonic() + 120
    while not all((folder / "last.zip").exists() for folder in folders):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert not (tmp_path / "results").exists()

    for file in (tiny, *(folder / "config.yaml" for folder in folders)):  # a shorter way to the end
        file.write_text(file.read_text().replace("timesteps: 64000", "timesteps: 128"))
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "2 of 2 runs to do" in again.stdout
    for folder in folders:
        assert "going on from" in folder.with_name(f"{folder.name}.log").read_text()
        result = json.loads((tmp_path / "results" / "tiny" / f"{folder.name}.json").read_text())
        assert result["finished"]


def test_what_is_asked_for_in_vain_is_refused(tiny, tmp_path):
    with pytest.raises(SettingsError, match="--only zzz: no run of tiny; such as maze_feedback_3"):
        compare.main(command(tmp_path, tiny, "--only", "zzz"))
    with pytest.raises(SettingsError, match="run takes no run folders, got x"):
        compare.main(["run", str(tiny), "x"])


@pytest.mark.slow
def test_a_folder_is_taken_over_once(tiny, tmp_path):
    """What was trained by hand becomes the result of the run that has its settings; less never replaces more."""
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    compare.main(command(tmp_path, tiny))
    suite = load_suite(tiny, tmp_path / "runs", tmp_path / "results")
    run = suite.runs[0]
    written = run.result_file.read_text()
    run.result_file.unlink()
    compare.record(suite, [run.folder])
    assert run.result_file.read_text() == written
    with pytest.raises(SettingsError, match=r"maze_feedback_3\.json is finished"):
        compare.record(suite, [run.folder])
    run.result_file.write_text(written.replace('"finished": true', '"finished": false'))
    with pytest.raises(SettingsError, match="has 128 steps already, this 128"):
        compare.record(suite, [run.folder])
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: 0.5"))
    with pytest.raises(SettingsError, match="no run of tiny has its settings"):
        compare.record(suite, [run.folder])


@pytest.mark.parametrize(
    ("name", "value"), [("start_from", "agents/tmaze_20"), ("eval_deterministic", False), ("eval_max_steps", 100)]
)
def test_what_a_run_starts_from_and_how_it_is_evaluated_decide_its_result(name, value):
    result, other = identity(Settings()), identity(Settings(run=RunSettings(**{name: value})))
    assert not results.differences(result, identity(Settings()))
    assert results.differences(result, other).startswith(f"run.{name} ")
    del result["run"][name]  # one from before there was the setting
    assert results.differences(result, other).startswith(f"run.{name} ")


@pytest.mark.slow
def test_a_folder_with_other_settings_is_not_a_result(tiny, tmp_path, capsys, monkeypatch):
    """It is neither taken up nor told, whether it has finished or not."""
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    compare.main(command(tmp_path, tiny, "--only", "lstm"))
    suite = load_suite(tiny, tmp_path / "runs", tmp_path / "results")
    (run,) = [run for run in suite.runs if run.core == "lstm"]
    with monkeypatch.context() as patch:  # runs are checked in threads, which share one
        patch.setattr(os, "chdir", lambda _: pytest.fail("the working directory was changed"))
        results.check_folder(run, run.folder)
    run.result_file.unlink()
    tiny.write_text(tiny.read_text().replace("timesteps: 128", "timesteps: 192"))
    for finished in (True, False):
        if not finished:
            (run.folder / "finished").unlink()
        with pytest.raises(SettingsError, match="1 of 1 runs failed"):
            compare.main(command(tmp_path, tiny, "--only", "lstm"))
        error = capsys.readouterr().err
        assert "maze_lstm_3: made with other settings than maze_lstm_3 (ppo.timesteps 128, not 192)" in error
    with pytest.raises(SettingsError, match="made with other settings"):
        compare.record(load_suite(tiny, tmp_path / "runs", tmp_path / "results"), [])
    assert not run.result_file.exists()


@pytest.mark.slow
def test_a_finished_result_stays(tiny, tmp_path, monkeypatch):
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    compare.main(command(tmp_path, tiny, "--only", "lstm"))
    suite = load_suite(tiny, tmp_path / "runs", tmp_path / "results")
    (run,) = [run for run in suite.runs if run.core == "lstm"]
    written = run.result_file.read_text()
    results.keep(run, json.loads(written) | {"success": -1})
    assert run.result_file.read_text() == written
    # another process has finished it since the list of what is to do was made
    monkeypatch.setattr(train, "start", lambda *_: pytest.fail("trained again"))
    elsewhere = load_suite(tiny, tmp_path / "other", tmp_path / "results")
    (again,) = [run for run in elsewhere.runs if run.core == "lstm"]
    assert train.Trainer().train(again) == json.loads(written)


@pytest.mark.slow
def test_two_at_once_do_not_train_the_same_run(tiny, tmp_path, capsys):
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    lock = tmp_path / "runs" / "tiny" / "maze_lstm_3.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="1 of 2 runs failed"):
            compare.main(command(tmp_path, tiny, "--workers", "1"))
    assert "maze_lstm_3: another process trains it" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny" / "maze_lstm_3").exists()


def test_ray_trains_the_same_suite(tiny, tmp_path):
    """On a cluster of this machine alone; skipped where Ray is not installed."""
    pytest.importorskip("ray")
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    arguments = [sys.executable, "-m", "benchmarks.learning.compare", *command(tmp_path, tiny)]
    done = subprocess.run([*arguments, "--ray"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for run in load_suite(tiny, tmp_path / "runs", tmp_path / "results").runs:
        assert compare.read_result(run)["finished"]
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tiny: 0 of 2 runs to do" in again.stdout


def test_ray_is_asked_for_by_name_where_it_is_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"--ray: Ray is not installed: pip install fbrl\[ray\]"):
        compare.main(command(tmp_path, tiny, "--ray"))


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(tiny, tmp_path, capsys):
    tiny.write_text(TINY.replace("lstm: {core: {d_model: 8}}", "none: {env: {kwargs: {corridor: 0}}}"))
    with pytest.raises(SettingsError, match="cannot be made"):  # before anything is trained
        compare.main(command(tmp_path, tiny))
    tiny.write_text(TINY.replace("[3, 5]", "[3]"))
    broken = tmp_path / "runs" / "tiny" / "maze_lstm_3"
    broken.mkdir(parents=True)
    (broken / "last.zip").write_text("broken")
    with pytest.raises(SettingsError, match="1 of 2 runs failed"):
        compare.main(command(tmp_path, tiny))
    assert "maze_lstm_3: training failed, see" in capsys.readouterr().err
    assert (tmp_path / "results" / "tiny" / "maze_feedback_3.json").exists()
    assert not (tmp_path / "results" / "tiny" / "maze_lstm_3.json").exists()


def result(core, seed, success, finished=True, task="maze"):
    return {
        "task": task, "core": core, "seed": seed, "success": success, "finished": finished,
        "steps": 2_000_000, "steps_to_95": 500_000 if success >= 0.95 else None, "parameters": 1234,
    }  # fmt: skip


def test_the_table_of_a_suite(tiny):
    """Without the columns that take more seeds: IQM, better than LSTM."""
    results = [result("feedback", seed, 1.0) for seed in (3, 5)]
    results += [result("lstm", 3, 0.5), result("lstm", 5, 0.4, False)]
    assert tables.table(load_suite(tiny), results).splitlines() == [
        "| task | core | parameters | seeds | success | solved | steps to 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| maze | feedback | 1,234 | 2 of 2 | 1.00 [1.00, 1.00] | 1.00 [0.34, 1.00] | 0.50 M, 0.50 M |",
        "| maze | lstm | 1,234 | 1 of 2, unfinished: 0.40 at 2.00 M | 0.50 | 0.00 [0.00, 0.79] | never |",
    ]
    assert tables.table(load_suite(tiny), []).splitlines()[::2] == [
        "| task | core | seeds |",
        "| maze | feedback | 0 of 2 |",
    ]


def test_better_is_said_from_three_seeds_on(tiny):
    tiny.write_text(TINY.replace("[3, 5]", "[3, 5, 7]"))
    suite = load_suite(tiny)
    results = [result(core, seed, success) for core, success in (("feedback", 1.0), ("lstm", 0.5)) for seed in (3, 5)]
    results += [result("feedback", 7, 1.0)]
    assert "better than LSTM" not in tables.table(suite, results)
    results += [result("lstm", 7, 1.0)]
    head, _, row, _ = tables.table(suite, results).splitlines()
    assert head.split("|")[6].strip() == "better than LSTM"
    value, low, high = (float(number) for number in re.findall(r"\d\.\d\d", row.split("|")[6]))
    assert value == 0.83  # 6 pairs won, 3 tied
    assert low <= value <= high


def test_all_tasks_together_where_each_has_as_many_seeds(tiny):
    second = (
        "  hall:\n    env: {id: fbrl/TMaze-v0, n_envs: 2}\n    ppo: {n_steps: 32, batch_size: 64, seq_len: 16}\ncores:"
    )
    tiny.write_text(TINY.replace("cores:", second))
    suite = load_suite(tiny)
    results = [result("feedback", seed, success, task="maze") for seed, success in ((3, 1.0), (5, 0.5))]
    results.append(result("feedback", 3, 1.0, task="hall"))
    assert not any(row.startswith("| all") for row in tables.table(suite, results).splitlines())
    results.append(result("feedback", 5, 1.0, task="hall"))
    (row,) = [row for row in tables.table(suite, results).splitlines() if row.startswith("| all")]
    # the middle two of 0.5, 1, 1, 1 have a mean of 1
    assert row.startswith("| all | feedback |  | 2 of each task | 0.88 [0.75, 1.00] | 1.00 [")


def test_a_task_that_reports_no_success_is_compared_by_its_return(tiny):
    scored = result("feedback", 3, 1.0) | {"success": None, "return": -0.25, "steps_to_95": None}
    head, _, row, _ = tables.table(load_suite(tiny), [scored]).splitlines()
    assert head == "| task | core | parameters | seeds | return |"
    assert row == "| maze | feedback | 1,234 | 1 of 2 | -0.25 |"


def test_tables_go_between_their_marks():
    text = "a\n<!-- suite x -->\nold\n<!-- end -->\nb\n<!-- suite y -->\n<!-- end -->\n"
    assert tables.put_into(text, "suite x", "new") == (
        "a\n<!-- suite x -->\n\nnew\n\n<!-- end -->\nb\n<!-- suite y -->\n<!-- end -->\n"
    )
    with pytest.raises(SettingsError, match=r"RESULTS\.md: holds no <!-- suite z --> followed by"):
        tables.put_into(text, "suite z", "new")


def test_statistics_by_hand():
    a, b = np.array([0.0, 0.5, 1.0, 1.0]), np.array([0.5, 0.5, 0.5])
    assert intervals.mean([a]).value == 0.625
    assert intervals.mean([a, b]).value == 4 / 7
    assert intervals.interquartile_mean([a]).value == 0.75  # of 0.5 and 1
    # pairs (a, b): 0 loses, 0.5 ties, 1 and 1 win
    assert intervals.probability_of_improvement([a], [b]).value == (0 + 0.5 + 1 + 1) / 4
    # of two tasks: the mean of what each gives
    assert intervals.probability_of_improvement([a, a], [b, a]).value == (2.5 / 4 + 0.5) / 2
    assert np.isnan(intervals.mean([np.array([1.0])]).low)


def test_the_bootstrap_draws_each_task_on_its_own():
    """Two tasks whose seeds agree leave nothing to draw, however far apart the tasks are; one that mixes them would."""
    apart = intervals.mean([np.zeros(5), np.ones(5)])
    assert apart == (0.5, 0.5, 0.5)
    spread = intervals.mean([np.array([0.0, 1.0] * 4)])
    assert 0.1 < spread.low < 0.3 < 0.7 < spread.high < 0.9


def test_committed_tables_and_rows_are_those_of_the_committed_results(tmp_path):
    """What RESULTS.md says is what the result files say."""
    text, everything = tables.PAGE.read_text(), []
    assert tables.put_others(text) == text
    for file in sorted(SUITES.glob("*.yaml")):
        suite = load_suite(file)
        results = tables.read_results(suite)  # raises where their settings are not the suite's
        everything += results
        assert tables.put_into(text, f"suite {suite.name}", tables.table(suite, results)) == text
    tables.write_csv(everything, tmp_path / "compare.csv")
    assert (tmp_path / "compare.csv").read_text() == tables.CSV.read_text()
