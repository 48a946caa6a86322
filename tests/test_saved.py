"""What earlier versions saved still loads: ``tests/saved`` holds an interrupted run of version 0.1.0.

It was made by ``train_agent.py`` before that script's parts moved into ``experiment``: MemoryS7 through a 3x3 view, two
environments, interrupted after 64 of 256 steps.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.agents import check_agent, find_agent
from experiment.checkpoints import load_checkpoint
from experiment.environments import evaluation_envs, make_envs
from experiment.training import train
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.evaluation import load_agent
from fbrl.symbolic import SymbolicObservation
from tests.tasks import UNPICKLES

ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests" / "saved" / "memory_s7_view3"
AGENTS = sorted(folder.parent for folder in (ROOT / "agents").glob("*/config.yaml"))


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(RUN, tmp_path / "run"))


@UNPICKLES
def test_the_environments_are_carried_on(run):
    _, settings = find_agent(str(run))
    model = load_checkpoint(run, settings, lambda: make_envs(settings.env, 0, 2))
    assert model.num_timesteps == 64
    assert isinstance(model.env.envs[0].env.env, SymbolicObservation)
    assert model.env.envs[0].unwrapped.step_count > 0, "in the middle of an episode"
    assert model._last_obs is not None
    assert model._last_state[1].max() > 0, "with what it remembers"


@UNPICKLES
def test_the_run_goes_on_to_its_end(run):
    _, settings = find_agent(str(run))
    before = load_agent(run / "last.zip", "cpu").policy.state_dict()
    assert train(settings, run) == run
    agent = load_agent(run / "last.zip", "cpu")
    assert agent.num_timesteps == 256
    assert any((agent.policy.state_dict()[name] != weight).any() for name, weight in before.items())
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["timesteps"] for line in lines] == [64, 128, 192, 256]
    assert (run / "finished").exists()


@UNPICKLES
@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_published_agents(folder):
    checkpoint, settings = find_agent(str(folder))
    agent = load_agent(checkpoint, "cpu")
    check_agent(checkpoint, agent, settings)
    assert type(agent.policy.core) is FastFeedbackTransformer
    env = evaluation_envs(settings.env, 0, 2)
    _, state = agent.predict(env.reset(), episode_start=np.ones(2, bool))
    assert all(np.isfinite(part).all() for part in state)


def test_there_are_published_agents():
    assert len(AGENTS) >= 6
    assert torch.get_num_threads() == 1
