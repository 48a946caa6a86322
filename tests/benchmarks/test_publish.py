"""Agents in agents/: what is kept of a run, and how agents are played on other tasks."""

import json
import shutil

import pytest

from benchmarks.learning import publish, transfer
from benchmarks.learning.compare import main as compare
from benchmarks.learning.results import check_folder
from benchmarks.learning.suite import ROOT, SUITES
from experiment.agents import find_agent
from experiment.settings import SettingsError
from fbrl.evaluation import load_agent

SUITE = """
about: a test
tasks:
  maze:
    env: {id: fbrl/TMaze-v0, n_envs: 2, kwargs: {corridor: 3}}
    ppo: {n_steps: 32, batch_size: 64, seq_len: 16, timesteps: 64}
    run: {eval_every: 64, eval_episodes: 3, checkpoint_every: 64}
cores:
  gru: {core: {d_model: 8}}
seeds: [3]
"""


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tiny.yaml").write_text(SUITE)
    folders = ["--folder", str(folder / "runs"), "--results", str(folder / "results")]
    compare(["run", str(folder / "tiny.yaml"), "--workers", "1", *folders])
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A suite whose only run has finished; the test's own copy."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return publish.load_suite(tmp_path / "tiny.yaml", tmp_path / "runs", tmp_path / "results")


def test_a_published_agent_plays_and_has_its_card(trained, tmp_path):
    run = trained.runs[0]
    publish.publish(trained, run, run.folder, tmp_path / "agent")
    checkpoint, settings = find_agent(str(tmp_path / "agent"))
    assert load_agent(checkpoint, "cpu").num_timesteps == 64
    assert (settings.env.id, settings.core.name, settings.run.seed) == ("fbrl/TMaze-v0", "gru", 3)
    assert str(tmp_path) not in (tmp_path / "agent" / "config.yaml").read_text()
    result = json.loads((tmp_path / "agent" / "evaluation.json").read_text())
    text = (tmp_path / "agent" / "README.md").read_text()
    versions = json.loads((tmp_path / "agent" / "versions.json").read_text())
    assert f"| success, most probable actions | {result['success']:.3f} (all 2 start states, exact) |" in text
    assert f"| 3 | {result['success']:.3f} | 64 | 64 |" in text
    assert "python train_agent.py --config agents/agent/config.yaml" in text
    assert str(tmp_path) not in text
    assert "in this way, 1 of 1 (" in text
    assert (", with uncommitted changes" in text) == versions["commit"].endswith("+")
    with pytest.raises(SettingsError, match="agent: exists already"):
        publish.publish(trained, run, run.folder, tmp_path / "agent")
    unfinished = json.loads(run.result_file.read_text()) | {"finished": False}
    run.result_file.write_text(json.dumps(unfinished))
    assert "| 64 | 64, unfinished |" in publish.card(trained, tmp_path / "agent")

    # and on another task than its own
    longer = [("maze, corridor 5", "fbrl/TMaze-v0", {"corridor": 5}), ("cups", "fbrl/TMaze-v0", {})]
    rows = transfer.play_all(tmp_path / "agent", longer)
    assert [row["env_kwargs"] for row in rows] == [{"corridor": 5}, {}]
    assert all(row["exact"] and row["episodes"] == 2 for row in rows)
    (tmp_path / "transfer.json").write_text(json.dumps({"rows": rows}))
    line = transfer.table(tmp_path / "transfer.json").splitlines()[2]
    assert line.startswith(f"| agent | maze, corridor 5 | {rows[0]['success']:.2f} |")


def test_a_run_that_has_not_finished_is_not_published(trained, tmp_path):
    run = trained.runs[0]
    (run.folder / "finished").unlink()
    with pytest.raises(SettingsError, match="holds no finished run"):
        publish.publish(trained, run, run.folder, tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


def test_a_run_with_other_settings_is_not_published(trained, tmp_path):
    run = trained.runs[0]
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: 0.5"))
    with pytest.raises(SettingsError, match=r"made with other settings than maze_gru_3 \(ppo.gamma 0.5, not 0.99\)"):
        publish.publish(trained, run, run.folder, tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


def test_an_unknown_run_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"x_y_0: no run of recall_far; such as MemoryS11_feedback_0"):
        publish.main([str(ROOT / "benchmarks/suites/recall_far.yaml"), "x_y_0", str(tmp_path / "agent")])


@pytest.mark.parametrize("folder", sorted((ROOT / "agents").iterdir()), ids=lambda folder: folder.name)
def test_committed_cards_say_what_the_results_say(folder):
    result = json.loads((folder / "evaluation.json").read_text())
    suite = publish.load_suite(SUITES / f"{result['suite']}.yaml")
    assert (folder / "README.md").read_text() == publish.card(suite, folder)
    assert load_agent(folder / "best.zip", "cpu").num_timesteps == result["best_at"]
    (run,) = [r for r in suite.runs if (r.task, r.core, r.seed) == tuple(result[key] for key in publish.OF_A_RUN)]
    check_folder(run, folder)  # raises where its config.yaml is not what the suite says
