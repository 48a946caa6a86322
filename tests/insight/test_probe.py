"""A probe reads what is there and does not read what is not."""

import numpy as np
import pytest

from fbrl.insight.probe import CannotProbeError, memory_vector, probe
from fbrl.insight.recording import Episode, Step
from fbrl.insight.seen import Seen
from tests.insight.recordings import make_agent, play

D = 7


def episode(rng, label, shown_at=2, length=9, keeps=True, mark="cue", forgets=99):
    """A recurrent state that holds a label, from the step after it was shown, amid noise."""
    steps = []
    for t in range(length):
        h = rng.normal(size=D)
        if keeps and shown_at < t <= shown_at + forgets:
            h[:3] += 9 * np.eye(3)[label]
        marks = {mark: str(label), f"{mark}_in_view": float(t == shown_at), "decision": float(t == length - 1)}
        seen = Seen(None, None, (), None, None, np.zeros(1), np.zeros(1))
        steps.append(Step(None, {"o": np.array([label])}, {}, seen, np.zeros(1), 0.0, marks, (h[None, None],)))
    return Episode(tuple(steps), None, True, True, 1.0, length)


def episodes(n=30, **kwargs):
    rng = np.random.default_rng(0)
    return [episode(rng, number % 3, **kwargs) for number in range(n)]


def test_it_reads_what_is_there():
    probed = probe(episodes())
    assert (probed.label, probed.classes) == ("cue", 3)
    assert probed.chance == pytest.approx(1 / 3)
    assert len(probed.right) == 30 * 6  # the steps after it was shown
    assert probed.right.mean() > 0.99
    np.testing.assert_array_equal(probed.age.reshape(30, 6), np.tile(np.arange(1, 7), (30, 1)))
    np.testing.assert_array_equal(probed.decides.reshape(30, 6).sum(axis=1), 1)


def test_it_does_not_read_what_is_not():
    assert probe(episodes(keeps=False)).right.mean() < 0.5


def test_it_sees_what_fades():
    probed = probe(episodes(forgets=3))
    assert probed.right[probed.age <= 3].mean() > 0.95
    assert probed.right[probed.age > 3].mean() < 0.6


def test_what_the_episode_shows_first_is_the_label_where_there_is_no_cue():
    probed = probe(episodes(mark="other"))
    assert (probed.label, probed.classes) == ("first observation", 3)
    assert set(probed.age) == set(range(1, 9))  # shown in the first step


def test_a_label_that_changes_is_that_of_the_step_before():
    """The memory before a step cannot know what the step shows."""
    rng, made = np.random.default_rng(0), []
    for _ in range(20):
        labels = rng.integers(0, 3, size=12)
        steps = [
            step._replace(
                marks={"cue": str(labels[t])}, memory=((9 * np.eye(D)[labels[t - 1]] + rng.normal(size=D))[None, None],)
            )
            for t, step in enumerate(episode(rng, 0, length=12).steps)
        ]
        made.append(Episode(tuple(steps), None, True, True, 1.0, 12))
    assert probe(made).right.mean() > 0.99


@pytest.mark.parametrize(
    ("given", "label", "message"),
    [
        (episodes(), "goal", "info has no entry goal"),
        (episodes(n=4), None, "4 episodes are too few; give it 6 or more"),
        ([one for one in episodes() if one.steps[0].marks["cue"] == "1"], None, "cue is the same in all episodes"),
    ],
)
def test_what_cannot_be_read_is_refused(given, label, message):
    with pytest.raises(CannotProbeError, match=message):
        probe(given, label)


@pytest.mark.parametrize(("core", "size"), [("plain", 16), ("gru", 16), ("lstm", 32), ("gtrxl", 32)])
def test_every_memory_is_a_vector(core, size):
    """Slots: their mean and the newest; a recurrent core: its state."""
    made = play(make_agent(core), 1, keep_memory=True)[0]
    assert memory_vector(made.steps[2]).shape == (size,)
    if core == "plain":
        slots = made.steps[2].memory[0][0]
        np.testing.assert_allclose(memory_vector(made.steps[2])[:8], slots[-2:].mean(axis=0), rtol=1e-6)


def test_a_core_that_remembers_nothing_is_refused():
    with pytest.raises(CannotProbeError, match="the agent has no memory"):
        probe(play(make_agent("memoryless"), 8, keep_memory=True))
