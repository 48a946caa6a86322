"""What the pages and the diagnosis say of the agents that the repository ships."""

from pathlib import Path

import pytest

from experiment.agents import find_agent
from experiment.insight import episodes
from experiment.playing import How, evaluate
from experiment.saved import load
from fbrl.insight.probe import probe
from fbrl.insight.recording import landmarks
from fbrl.insight.story import HALF, deciding_step, mass_on, summary

AGENTS = Path(__file__).parents[2] / "agents"


@pytest.mark.slow
def test_what_the_agent_for_memory_s13_reads_at_the_junction():
    """From all 40 start states: the page says how often a head looks at the cue; without memory all is lost."""
    checkpoint, settings = find_agent(str(AGENTS / "memory_s13"))
    agent, how = load(checkpoint, settings, "cpu"), How(exhaustive=True)
    played = list(episodes(agent, settings.env, how, pictures=False, keep_memory=True))
    assert len(played) == 40
    assert all(episode.success for episode in played)
    masses = [mass_on(episode, deciding_step(episode), "cue_in_view") for episode in played]
    share = sum(mass is not None and bool((mass >= HALF).any()) for mass in masses) / 40
    assert share > 0
    assert f"in {round(40 * share)} of 40 episodes; some layer" in summary(played)[-1]
    assert all("decision" in landmarks(episode) for episode in played)
    probed = probe(played)
    assert probed.right[probed.decides].mean() >= 0.95
    assert evaluate(agent, settings.env, How(episodes=32, zero_memory=True)).success.value <= 0.5
