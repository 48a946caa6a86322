"""The card: what the Hub reads in it, what is kept of the text that there is, and which evaluations it takes."""

import json
from pathlib import Path

import pytest
import yaml

from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.playing import How, as_json, evaluate
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, Settings
from fbrl.hub.agent import read_agent
from fbrl.hub.card import CardError, Score, card, metadata, read_score

hub = pytest.importorskip("huggingface_hub", reason="needs pip install fbrl[hub]")

ROOT = Path(__file__).parents[2]
AGENTS = sorted(folder.parent for folder in (ROOT / "agents").glob("*/config.yaml"))
CONFIG = {"env": {"id": "fbrl/TMaze-v0", "kwargs": {"corridor": 7}}, "core": {"name": "gru", "window": None}}
SCORE = Score(0.75, -0.125, "20 episodes, sampled actions", "")
PLAYED = {"task": "fbrl/TMaze-v0", "env_kwargs": {"corridor": 7}, "trained_steps": 53, "return": 0.5, "episodes": 11}


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_the_hub_reads_the_cards_of_the_shipped_agents(folder):
    """By the Hub's own reader: the evaluation is the one beside the agent."""
    agent, said = read_agent(folder), json.loads((folder / "evaluation.json").read_text())
    score = read_score(said, agent.config, agent.steps)
    text = (folder / "README.md").read_text()
    made = card(f"me/{folder.name}", agent.config, score, "replay.gif", text)
    data = hub.ModelCard(made).data
    assert (data.library_name, data.pipeline_tag) == ("fbrl", "reinforcement-learning")
    assert {"reinforcement-learning", "stable-baselines3", agent.config["env"]["id"]} <= set(data.tags)
    assert data.model_name == folder.name
    found = {result.metric_type: result for result in data.eval_results}
    assert found["mean_reward"].metric_value == pytest.approx(said["return"], abs=1e-4)
    if said["success"] is not None:
        assert found["success_rate"].metric_value == pytest.approx(said["success"], abs=1e-4)
    assert all(result.dataset_name == agent.config["env"]["id"] for result in found.values())
    assert text.strip() in made
    assert "![the agent at work](replay.gif)" in made
    option = " --exhaustive" if said["exact"] else " --deterministic"
    assert f"python evaluate_agent.py {folder.name}{option} " in made


def test_a_card_where_there_is_none():
    made = card("me/name", CONFIG, SCORE, None)
    assert hub.ModelCard(made).data.eval_results
    body = made.split("---\n")[2]
    assert body.startswith("\n# name\n\nAn agent for `fbrl/TMaze-v0`, corridor 7: ")
    assert "| success | 0.750 (20 episodes, sampled actions) |\n| return | -0.125 (20" in body
    assert "| core | name gru |" in body
    assert "python -m fbrl.hub pull me/name name " in body
    assert "replay" not in made


def test_a_card_without_an_evaluation():
    made = card("me/name", CONFIG, None, "replay.mp4")
    data = hub.ModelCard(made).data
    assert data.eval_results is None
    assert data.library_name == "fbrl"
    assert "success" not in made
    assert "replay" not in made, "the Hub shows a replay.mp4 by itself"


def test_their_own_metadata_is_kept_and_ours_is_of_now():
    text = "---\nlicense: mit\ntags: [mine, fbrl]\nlibrary_name: other\n---\n# Title\n\nWords: ---\n"
    made = card("me/name", CONFIG, SCORE, None, text)
    data = hub.ModelCard(made).data
    assert (data.license, data.library_name) == ("mit", "fbrl")
    assert data.tags.count("fbrl") == 1
    assert "mine" in data.tags
    assert made.split("---\n", 2)[2].startswith("\n# Title\n\nWords: ---\n\n## From the Hub\n")


def test_a_card_of_a_card_is_the_same():
    """But for what is said anew: where it is, what it looks like, how well it plays."""
    once = card("me/name", CONFIG, SCORE, "replay.gif")
    assert card("me/name", CONFIG, SCORE, "replay.gif", once) == once
    assert card("me/name", CONFIG, SCORE, "replay.gif", once.replace("\n", "\r\n")) == once
    moved = card("you/other", CONFIG, SCORE._replace(success=None), None, once + "\n## Theirs\n\nlast\n")
    assert "me/name" not in moved
    assert moved.index("## Theirs\n\nlast") < moved.index("## From the Hub")
    assert moved.count("## From the Hub") == 1
    (result,) = yaml.safe_load(moved.split("---\n")[1])["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["mean_reward"]


@pytest.mark.parametrize("front", ["license: [", "- 1", "? {a: b}\n: [}"])
def test_metadata_that_is_none_is_refused(front):
    with pytest.raises(CardError, match="its metadata"):
        card("me/name", CONFIG, None, None, f"---\n{front}\n---\nwords")


def test_names_with_marks_of_yaml_are_text():
    config = {"env": {"id": 'a: [b] #"c"'}, "core": {}}
    made = card("me/name", config, SCORE, None)
    assert hub.ModelCard(made).data.eval_results[0].dataset_name == 'a: [b] #"c"'
    assert metadata("me/name", config, None)["tags"][-1] == 'a: [b] #"c"'


@pytest.mark.parametrize(
    ("how", "words", "option"),
    [
        (How(episodes=3), "3 episodes, sampled actions", ""),
        (How(episodes=3, deterministic=True), "3 episodes, most probable actions", " --deterministic"),
        (How(exhaustive=True), "all 2 start states, exact", " --exhaustive"),
    ],
)
def test_what_evaluate_agent_writes_is_taken(how, words, option):
    settings = Settings(
        EnvSettings(kwargs={"corridor": 2}),
        CoreSettings("gru", 8, 1, 2),
        PPOSettings(seq_len=4, n_steps=8, batch_size=8),
    )
    agent = make_model(settings, make_envs(settings.env, 0, 2))
    agent.num_timesteps = 53
    summary = evaluate(agent, settings.env, how)
    said = json.loads(json.dumps(as_json(summary, Path("best.zip"), agent, settings.env, how)))
    config = {"env": {"id": settings.env.id, "kwargs": {"corridor": 2}}, "core": {}}
    assert read_score(said, config, 53) == Score(summary.success.value, summary.returns.value, words, option)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], "holds no evaluation"),
        ({}, "holds no evaluation"),
        (PLAYED | {"return": None}, "holds no evaluation"),
        (PLAYED | {"return": float("nan")}, "holds no evaluation"),
        (PLAYED | {"return": True}, "holds no evaluation"),
        (PLAYED | {"success": 2}, "a success from 0 to 1, got 2"),
        (PLAYED | {"success": "all"}, "a success from 0 to 1, got 'all'"),
        (PLAYED | {"task": "CartPole-v1"}, "is of CartPole-v1 .* and the agent was trained on fbrl/TMaze-v0"),
        (PLAYED | {"env_kwargs": {"corridor": 8}}, "is of fbrl/TMaze-v0 {'corridor': 8}, and"),
        (PLAYED | {"control": "zero-memory"}, "is of the control zero-memory"),
        (PLAYED | {"trained_steps": 54}, "is of an agent after 54 steps, and this one has learned from 53"),
    ],
)
def test_other_evaluations_are_refused(said, expected):
    assert read_score(PLAYED, CONFIG, 53).mean_reward == 0.5
    with pytest.raises(CardError, match=expected):
        read_score(said, CONFIG, 53)
