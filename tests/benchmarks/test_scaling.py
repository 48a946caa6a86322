"""What is counted and measured for docs/scaling.md, and the model that is made of it."""

import json

import pytest
import torch

from benchmarks.report import ROOT
from benchmarks.speed import costs, scaling
from benchmarks.speed.scaling import Link, Plan

D, L, H, M, F = 64, 2, 4, 32, 128  # of the configuration
TIMES = {"rollout_fixed": 0.002, "rollout_each": 0.0001, "update_fixed": 0.01, "update_each": 0.0001}


def test_line():
    assert costs.line([(1, 5), (2, 7), (4, 11)]) == pytest.approx((3, 2))
    assert costs.line([(1, 2), (3, 6)]) == pytest.approx((0, 2))
    assert costs.line([(1, 7), (2, 5)]) == pytest.approx((6, 0)), "a time does not fall"


def test_counts():
    """The core's products while acting are those of the equations, with the one memory vector that is projected."""
    found = costs.counts()
    assert found["gradient_bytes"] == 4 * found["parameters"]
    assert found["state_bytes"] == 4 * M * D + 8
    assert found["optimiser_steps"] == 4 * 128 * 64 // 1024
    # float32: action, reward, return, value, log-probability, advantage and start; the view of 3 x 3 x 3 and direction
    assert found["rollout_bytes"] >= 7 * 4 + 27 + 8
    needed = L * (2 * D * D + 2 * D * F + 3 * (M + 1) * D) + 2 * D * D + (L + 1) * D
    assert found["flops"]["acting"] == pytest.approx(2 * needed, rel=0.02)
    assert found["flops"]["update"] > 3 * found["flops"]["acting"] > found["flops"]["encoder"] > 0


def test_a_process_holds_environments():
    found = costs.hold("fbrl/TMaze-v0", 33)
    assert (found["task"], found["n_envs"]) == ("fbrl/TMaze-v0", 33)
    assert found["peak"] >= found["held"] > 50e6
    assert found["microseconds"] > 0


def test_what_each_environment_adds():
    rows = [
        {"task": task, "n_envs": n, "held": 7 + size * n, "peak": 70 + 2 * size * n}
        for task, size in (("a", 3), ("b", 5))
        for n in (10, 20, 40)
    ]
    found = scaling.each(rows)
    assert found["a"] == pytest.approx({"held": 3, "peak": 6})
    assert found["b"] == pytest.approx({"held": 5, "peak": 10})


def test_model():
    counts = {"optimiser_steps": 32, "gradient_bytes": 1e6}
    compute = 128 * (0.002 + 0.0001 * 64) + 32 * (0.01 + 0.0001 * 1024)
    one = scaling.model(TIMES, counts, Link(1e-3, 1e8), 1)
    assert one["steps_per_second"] == pytest.approx(64 * 128 / compute)
    assert (one["talking"], one["megabytes_per_second"]) == (0, 0)
    four = scaling.model(TIMES, counts, Link(1e-3, 1e8), 4)
    talk = 32 * (1.5e6 / 1e8 + scaling.MESSAGES * 2 * 1e-3)
    assert four["steps_per_second"] == pytest.approx(4 * 64 * 128 / (compute + talk))
    assert 1 - four["talking"] == pytest.approx(four["steps_per_second"] / 4 / one["steps_per_second"])
    assert four["megabytes_per_second"] == pytest.approx(32 * 1.5 / (compute + talk))


def test_model_of_the_same_totals():
    """Each of four processes has sixteen environments and minibatches of 256 steps."""
    counts = {"optimiser_steps": 32, "gradient_bytes": 1e6}
    four = scaling.model(TIMES, counts, Link(0.0, 1e30), 4, same_totals=True)
    compute = 128 * (0.002 + 0.0001 * 16) + 32 * (0.01 + 0.0001 * 256)
    assert four["steps_per_second"] == pytest.approx(64 * 128 / compute)
    found = scaling.models(TIMES | {"latency": 0.0, "bandwidth": 1e30}, counts)
    assert [row["processes"] for row in found["growing"]["this machine"]] == [1, 2, 4, 8, 16, 32, 64]
    assert [row["processes"] for row in found["same"]["this machine"]] == [1, 2, 4, 8, 16, 32], "one sequence each"
    assert found["growing"]["this machine"][2]["over_one"] == pytest.approx(4)
    one = 128 * (0.002 + 0.0001 * 64) + 32 * (0.01 + 0.0001 * 1024)
    assert found["same"]["this machine"][2]["over_one"] == pytest.approx(one / compute)


def test_times_are_of_lines(monkeypatch):
    """With a clock that only rollouts and updates move."""

    class Agent:
        n_steps, n_epochs = 128, 4

        def __init__(self, n_envs, batch_size):
            self.n_envs, self.batch_size = n_envs, batch_size

        def train(self):
            minibatches = self.n_epochs * self.n_steps * self.n_envs // self.batch_size
            return minibatches * (TIMES["update_fixed"] + TIMES["update_each"] * self.batch_size)

    def rollout(agent):
        return lambda: agent.n_steps * (TIMES["rollout_fixed"] + TIMES["rollout_each"] * agent.n_envs)

    monkeypatch.setattr(scaling, "agent_with", Agent)
    monkeypatch.setattr(scaling, "rollout", rollout)
    monkeypatch.setattr(scaling, "seconds", lambda function, repeats: function())
    monkeypatch.setattr(scaling, "job", lambda name, sizes, processes: [(size, 2e-4 + size / 5e8) for size in sizes])
    found = scaling.times(298_284, Plan(), 3)
    assert found == pytest.approx(TIMES | {"latency": 2e-4, "bandwidth": 5e8})


def test_report(monkeypatch, tmp_path, capsys):
    def job(name, *arguments, processes=1):
        task, n = arguments
        return {"task": task, "n_envs": n, "held": 1e8 + 2000 * n, "peak": 2e8 + 9000 * n, "microseconds": 3.0}

    monkeypatch.setattr(scaling, "job", job)
    monkeypatch.setattr(scaling, "times", lambda *_: TIMES | {"latency": 1e-4, "bandwidth": 1e9})
    file = tmp_path / "scaling.json"
    scaling.main(["--json", str(file)])
    written = json.loads(file.read_text())
    assert written["each"]["fbrl/HiddenAutomaton-v0"] == pytest.approx({"held": 2000, "peak": 9000})
    assert [row["processes"] for row in written["model"]["growing"]["this machine"]] == list(scaling.PROCESSES)
    assert len(written["memory"]) == 9
    assert capsys.readouterr().out.strip() == scaling.tables(written)


def test_the_page_shows_the_report():
    report = json.loads((ROOT / "benchmarks/results/scaling.json").read_text())
    page = (ROOT / "docs/scaling.md").read_text().splitlines()
    assert {line for line in scaling.tables(report).splitlines() if line.startswith("|")} <= set(page)


@pytest.mark.slow
def test_two_processes_add_up():
    """The job of its own, in two processes that ``torchrun`` starts."""
    found = scaling.job("all_reduce", [4, 40_000], 3, processes=2)
    assert [size for size, _ in found] == [4, 40_000]
    assert all(0 < spent < 60 for _, spent in found)


@pytest.mark.slow
def test_a_job_that_fails():
    with pytest.raises(SystemExit, match="no/such-v0"):
        scaling.job("hold", "no/such-v0", 3)


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
