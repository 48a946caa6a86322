"""The words follow from the figures."""

import numpy as np
import pytest

from fbrl.evaluation import Estimate, Summary, wilson
from fbrl.insight.diagnosis import (
    ages,
    comparable,
    contaminating,
    need,
    performance,
    probe_by_age,
    probing,
    reading,
    writing,
)
from fbrl.insight.probe import Probed
from tests.insight.recordings import make_agent, play


def summary(share, episodes=100, returns=None, length=10.0):
    success = None if returns is not None else wilson(round(share * episodes), episodes)
    value = share if returns is None else returns
    return Summary(episodes, success, Estimate(value, value - 0.05, value + 0.05), Estimate(length, length, length))


def says(findings, key):
    return next(finding for finding in findings if finding.key == key)


def test_an_agent_that_lives_on_its_memory():
    found = performance(
        {
            "whole": summary(1.0),
            "emptied": summary(0.5, length=50),
            "shuffled": summary(0.6),
            "window 8": summary(1.0),
            "window 4": summary(0.98),
            "window 2": summary(0.5),
        }
    )
    assert "The agent lives on its memory." in says(found, "emptied").says
    assert "does not even guess: its episodes last 50 steps instead of 10" in says(found, "emptied").says
    assert "When something was written matters" in says(found, "shuffled").says
    assert "4 slots would do" in says(found, "window").says
    assert says(found, "window").advice == ""
    assert says(found, "whole").figures["success"] == 1


def test_an_agent_that_needs_no_memory():
    windows = {"window 16": summary(0.9), "window 1": summary(0.9)}
    found = performance({"whole": summary(0.9), "emptied": summary(0.88), **windows})
    assert "does about as well without its memory" in says(found, "emptied").says
    assert "memoryless control" in says(found, "emptied").advice
    assert "1 slot would do" in says(found, "window").says
    assert says(found, "window").advice == "core.window 2 would leave room and cost less"


def test_where_every_episode_was_cut_none_was_solved():
    cut = summary(0, returns=0.0)
    whole, emptied = comparable({"whole": summary(1.0), "emptied": cut}).values()
    assert (whole.success.value, emptied.success.value) == (1, 0)
    assert "The agent lives on its memory." in performance({"whole": whole, "emptied": emptied})[1].says
    assert comparable({"whole": cut, "emptied": cut})["emptied"].success is None


def test_returns_stand_in_for_success():
    found = performance({"whole": summary(0, returns=-200.0), "emptied": summary(0, returns=-900.0)})
    assert "return -900.000, against return -200.000. The agent lives on" in says(found, "emptied").says


@pytest.mark.parametrize(
    ("emptied", "effect", "words"),
    [(0.5, 1.0, "the task needs memory"), (1.0, 1.0, "and no better"), (1.0, 0.0, "acts the same without it")],
)
def test_whether_the_task_needs_memory(emptied, effect, words):
    episodes = play(make_agent(), 1)
    for episode in episodes:
        for step in episode.steps:
            step.seen.effect[:] = effect
    finding = need({"whole": summary(1.0), "emptied": summary(emptied)}, episodes)
    assert words in finding.says
    assert finding.figures["needs_memory"] == (emptied < 1)


def test_ages_are_those_of_the_attention():
    episodes = play(make_agent(), 3)
    by_age, steps = ages(episodes), [step for episode in episodes for step in episode.steps[1:]]
    assert by_age.shape == (2, 1 + 5)
    np.testing.assert_allclose(by_age.sum(axis=1), 1)
    one_ago = np.mean([step.reads[..., -1].mean(axis=1) for step in steps], axis=0)
    np.testing.assert_allclose(by_age[:, 1], one_ago)
    assert ages(play(make_agent("lstm"), 1)) is None


def test_the_age_of_what_is_read_in_words():
    row = np.array([0.5, 0.0, 0.3, 0.1, 0.1])
    first, second = reading(np.stack([row, [1.0, 0, 0, 0, 0]]), "no step")
    assert "pays 50% of its attention to the memory, the rest to no step" in first.says
    assert "Half of what it reads is at most 2 steps old, nine tenths at most 4 steps (mean 2.6)" in first.says
    assert first.advice.startswith("it reads up to the end of its window")
    assert "hardly reads the memory: 100% of its attention goes to no step" in second.says
    assert "cannot be told" in reading(None, "")[0].says


def test_what_the_layers_write():
    finding = writing(play(make_agent(), 1))
    assert sum(finding.figures["shares"]) == pytest.approx(1, abs=1e-4)
    assert finding.says.startswith("A memory vector is made of: the input ")
    assert "cannot be told" in writing(play(make_agent("gru"), 1)).says


def probed(right, decides=0):
    right = np.array(right)
    return Probed("cue", 2, 0.5, right, np.arange(1, 1 + len(right)), np.arange(len(right)) >= len(right) - decides)


def test_what_the_probe_reads():
    assert "in plain sight" in probing(probed([True] * 8, decides=2)).says
    assert "not there in a form" in probing(probed([True, False] * 4)).says
    fading = probing(probed([True] * 5 + [False] * 3))
    assert "It fades: 25% after 5 to 8 steps." in fading.says
    assert fading.figures["by_age"] == [[1, 1, 1.0, 1], [2, 2, 1.0, 1], [3, 4, 1.0, 2], [5, 8, 0.25, 4]]
    assert probing("there is nothing").says == "No linear probe: there is nothing."
    assert probe_by_age(probed([True] * 3))[-1] == (3, 4, 1.0, 1)


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        ([0.01, 0.0, 0.0, 0.0], "It shrugs it off."),
        ([1.0, 0.5, 0.1, 0.1], "It comes back by itself."),
        ([1.0, 0.9, 0.6, 0.6], "It comes back slowly: late in an episode it is off by 0.60."),
        ([1.0, 1.0, 1.2, 1.0], "It does not come back within an episode. The odd step leaves the window of 7"),
    ],
)
def test_what_an_odd_observation_does(mean, words):
    after = np.stack([mean, mean, [4, 3, 2, 1]], axis=1)
    assert words in contaminating(after, 7).says
    assert contaminating(after, 7).figures["mean"] == mean
    assert "No odd observation" in contaminating(None, None).says


def test_a_rounding_below_zero_is_zero():
    after = np.array([[-1e-9, 0.0, 3.0]] * 2)
    assert "in nats: 0.00 after 1 step, 0.00 after 2 steps." in contaminating(after, None).says
