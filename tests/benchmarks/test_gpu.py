"""``make gpu``: parts that fail or take too long are reported, and what the machine needs is found."""

import json
import sys
import time

import pytest

from benchmarks.speed import gpu, gpu_wheels
from benchmarks.speed.gpu import Part

FORK = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("on", flush=True)
time.sleep(77)
"""
SAVE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
time.sleep(77)
"""


def part(name, code, figures=lambda folder, printed: {"lines": len(printed.splitlines())}):
    return Part(name, 0.5, lambda device, folder: ["-c", code.format(device=device, folder=folder)], figures)


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Runs parts; hands back the exit code, the report and the table."""

    machine = {"machine": {"gpu": None, "cpu": "a CPU", "device": "cpu"}, "versions": {"torch": "2"}, "commit": "abc"}

    def main(*parts, minutes=1, real_conditions=False):
        file = tmp_path / "gpu.json"
        if not real_conditions:  # these take seconds to import torch
            monkeypatch.setattr(gpu, "conditions_of", lambda device, commit: machine | {"parts": {}})
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "unpack", lambda wheels: None)
        monkeypatch.setattr(sys, "argv", ["gpu", "--device=cpu", f"--minutes={minutes}", f"--json={file}"])
        code = 0
        try:
            gpu.main()
        except SystemExit as stop:
            code = stop.code
        return code, json.loads(file.read_text()), file.with_suffix(".md").read_text()

    return main


@pytest.mark.slow
def test_report(main):
    code, report, table = main(
        part("first", "print('a'); open('{folder}/left', 'w').write('{device}')"),
        part("second", "", lambda folder, printed: {"device": 7, "left": len((folder / "left").read_text())}),
        real_conditions=True,
    )
    assert code == 0
    assert report.keys() >= {"benchmark", "machine", "versions", "commit", "seeds", "parts"}
    assert [found["result"] for found in report["parts"].values()] == ["ok", "ok"]
    assert report["parts"]["first"]["figures"] == {"lines": 1}
    assert report["parts"]["second"]["figures"] == {"device": 7, "left": 3}
    assert report["machine"]["device"] == "cpu"
    assert table.splitlines()[-2].startswith("| first | ok | ")
    assert table.splitlines()[-1].endswith(" | device 7, left 3 |")


def test_what_fails_is_reported_and_the_rest_runs(main):
    code, report, table = main(
        part("bad", "print('why'); raise SystemExit(3)"),
        part("empty", "", lambda folder, printed: json.loads((folder / "none.json").read_text())),
        part("good", "print()"),
    )
    assert code == 1
    results = {name: found["result"] for name, found in report["parts"].items()}
    assert (results["bad"], results["good"]) == ("failed (3)", "ok")
    assert results["empty"].startswith("without its figures: FileNotFoundError")
    assert report["parts"]["bad"]["last_lines"] == ["why"]
    assert "| bad | failed (3) |" in table


def test_what_takes_too_long_is_ended_with_all_that_it_started(main, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    start = time.monotonic()
    code, report, _ = main(part("long", FORK), part("next", "print()"), minutes=0.15)
    assert (code, report["parts"]["long"]["result"], report["parts"]["next"]["result"]) == (1, "out of time", "ok")
    assert report["parts"]["long"]["last_lines"][0] == "on"
    assert time.monotonic() - start < 20


def test_one_that_ends_when_asked_keeps_what_it_left(main, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved'))); time.sleep(77)"
    )
    _, report, _ = main(part("asked", code), minutes=0.1)
    assert report["parts"]["asked"]["result"] == "out of time"
    assert report["parts"]["asked"]["last_lines"] == ["saved"]


def test_the_parts_take_no_more_than_all_minutes():
    assert sum(part.share for part in gpu.PARTS) <= 1.1  # most end earlier; none gets more than what is left
    assert [part.name for part in gpu.PARTS] == ["tests", "training", "evaluation", "scan", "throughput", "latency"]


def test_every_file_with_a_test_for_a_gpu_is_run(tmp_path):
    command = gpu.tests_command("cuda", tmp_path)
    files = {name.rpartition("/")[2] for name in command if name.endswith(".py")}
    assert {"test_feedback_scan.py", "test_graphs.py", "test_feedback_triton.py", "test_policy.py"} <= files
    assert "test_tmaze.py" not in files


def test_figures(tmp_path):
    printed = "...s\n3 failed, 23 passed, 4 skipped, 7 deselected in 1.02s\n"
    assert gpu.tests_figures(tmp_path, printed) == {"failed": 3, "passed": 23, "skipped": 4}
    (tmp_path / "agent").mkdir()
    lines = [{"timesteps": 64, "success": 0.5}, {"timesteps": 128, "success": 1.0}, {"timesteps": 130, "success": 0.9}]
    (tmp_path / "agent/evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = gpu.training_figures(tmp_path, "")
    assert (found["solved_at_steps"], found["steps"], found["success"]) == (128, 130, 0.9)
    assert found["evaluations"] == [[64, 0.5], [128, 1.0], [130, 0.9]]


def test_summary_of_a_benchmark():
    rows = [{"batch": 1, "milliseconds": {"ours": 0.51234, "theirs": 2}, "over_recurrent_ppo": None, "more": 3}]
    expected = "batch 1, milliseconds ours 0.512, theirs 2, over_recurrent_ppo None"
    assert gpu.summary("latency", {"rows": rows}) == expected
    assert gpu.summary("latency", {}) == ""


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "no_such_package"))
    with pytest.raises(SystemExit, match=r"^error: missing here: no_such_package; bring wheels"):
        gpu.unpack(tmp_path)


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--json", "no/folder/x.json"], ["--config", "no.yaml"]])
def test_options_that_cannot_be(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_wheels_are_what_is_needed_but_for_torch():
    wanted = gpu_wheels.wheels("3.12", ["scipy"])
    names = {line.split("==")[0] for line in wanted}
    assert {"stable-baselines3", "gymnasium", "minigrid", "numpy", "pytest", "cloudpickle"} <= names
    assert names & {"pygame", "pygame-ce"}  # of minigrid 3.0, and of later ones
    assert names.isdisjoint({"torch", "sympy", "networkx", "triton", "scipy", "fbrl", "grpcio", "numba", "llvmlite"})
    assert "scipy" in {line.split("==")[0] for line in gpu_wheels.wheels("3.12", [])}


def test_closure(monkeypatch):
    """Markers are those of the other machine, extras ask for more, and what only the left-out need stays out."""
    metadata = {
        "root": ['a; python_version < "3.12"', "B_b[fast]", 'c; extra == "more"', 'd; sys_platform == "win32"'],
        "B_b": ['e; extra == "fast"', 'f; extra == "slow"', "g"],
        "g": ["h"],
    }
    monkeypatch.setattr(gpu_wheels.metadata, "requires", lambda name: metadata.get(name))
    assert gpu_wheels.closure(["root[more]"], "3.12") == {"root", "b-b", "c", "e", "g", "h"}
    assert gpu_wheels.closure(["root"], "3.11", without=["G"]) == {"root", "a", "b-b", "e"}
