"""Runs of before there were suites: their curves and their table."""

import json

import pytest
from PIL import Image

from benchmarks.learning.curves import draw, kind_of, table


def a_run(core, seed, success, finished=True):
    return {
        "core": core,
        "seed": seed,
        "finished": finished,
        "exhaustive_success": success[-1],
        "exhaustive_success_zero_memory": None if core == "none" else 0.25,
        "evaluations": {"timesteps": [100_000 * (i + 1) for i in range(len(success))], "success": success},
        "settings": {"ppo": {"passes": None, "seq_len": 32}},
    }


@pytest.fixture
def gathered(tmp_path):
    runs = [a_run("feedback", 0, [0.5, 1.0]), a_run("feedback", 1, [0.5, 0.75], finished=False)]
    runs.append(a_run("none", 0, [0.5, 0.25, 0.5]))
    path = tmp_path / "tmaze.json"
    path.write_text(json.dumps({"task": "fbrl/TMaze-v0", "runs": runs}))
    return path


def test_the_table(gathered):
    link, agent = "[tmaze.json](benchmarks/results/tmaze.json)", "Feedback Transformer"
    assert table([gathered]).splitlines()[2:] == [
        f"| fbrl/TMaze-v0 | {agent} | 0, 1 | 1.00, 0.75 | 0.25, 0.25 | 0.20 M, 0.20 M (stopped) | {link} |",
        f"| fbrl/TMaze-v0 | memoryless control | 0 | 0.50 |  | 0.30 M | {link} |",
    ]


def test_the_picture(gathered, tmp_path):
    draw(gathered, tmp_path / "tmaze.png")
    with Image.open(tmp_path / "tmaze.png") as picture:
        assert picture.size == (1050, 600)


@pytest.mark.parametrize(
    ("core", "ppo", "kind"),
    [
        ("feedback", {"passes": None}, "Feedback Transformer"),
        ("feedback", {}, "Feedback Transformer"),  # a run of before there were passes
        ("feedback", {"seq_len": 16}, "Feedback Transformer, seq_len 16"),
        ("feedback_plain", {"passes": None}, "Feedback Transformer, plain form"),
        ("feedback", {"passes": 1}, "1 parallel pass"),
        ("feedback", {"passes": 2}, "2 parallel passes"),
        ("none", {"passes": None}, "memoryless control"),
    ],
)
def test_kinds_of_runs(core, ppo, kind):
    assert kind_of({"core": core, "settings": {"ppo": {"seq_len": 32} | ppo}}) == kind
