"""What is kept of an episode is what happened."""

import numpy as np
import pytest
from gymnasium import spaces

import envs
from fbrl.insight.recording import Episode, action_names, by_step, choose, landmarks, marks, record
from fbrl.insight.story import deciding_step, mass_on, story, summary
from tests.insight.recordings import CORRIDOR, make_agent, play, task
from tests.tasks import RandomTask, make_model


@pytest.fixture(scope="module")
def agent():
    return make_agent()


@pytest.fixture(scope="module")
def episodes(agent):
    return play(agent, 6)


def test_an_episode_is_whole(episodes):
    for episode in episodes:
        assert episode.ended
        assert len(episode.steps) == episode.length
        assert sum(step.reward for step in episode.steps) == episode.returns
        assert episode.success == (episode.returns == 1)
        assert episode.steps[0].marks == {"cue": ["up", "down"][int(episode.steps[0].observation["observation"])]} | {
            "cue_in_view": 1.0,
            "decision": 0.0,
        }
        assert episode.steps[-1].marks["decision"] or not episode.success
        assert all(step.frame.shape == (72, 24 * (CORRIDOR + 1), 3) for step in episode.steps)
        assert episode.last_frame is not None


def test_what_comes_after_max_steps_is_left_out(agent):
    whole, cut = (play(agent, 1, max_steps=most)[0] for most in (300, 2))
    assert (len(cut.steps), cut.ended, cut.last_frame) == (2, False, None)
    assert cut.length > 2
    np.testing.assert_array_equal(cut.steps[0].frame, whole.steps[0].frame)


def test_an_emptied_memory_reads_nothing(agent):
    episode = play(agent, 1, zero_memory=True)[0]
    assert episode.emptied
    for step in episode.steps:
        np.testing.assert_array_equal(step.reads[..., 0], np.ones((2, 2)))
        assert step.seen.effect[0] == 0


def test_reads_are_told_by_the_steps_of_the_episode():
    """Window 3: step 5 reads the steps 2, 3 and 4; step 2 the steps 0 and 1."""
    reads = np.array([[[0.4, 0.1, 0.2, 0.3]]])
    np.testing.assert_array_equal(by_step(reads, 5), [[[0, 0, 0.1, 0.2, 0.3]]])
    np.testing.assert_array_equal(by_step(np.array([[[0.4, np.nan, 0.2, 0.3]]]), 2), [[[0.2, 0.3]]])
    assert by_step(np.array([[[1, np.nan, np.nan, np.nan]]]), 0).shape == (1, 1, 0)


def test_a_task_without_pictures():
    episode = record(make_model(), RandomTask())
    assert episode.last_frame is None
    assert {step.frame for step in episode.steps} == {None}
    assert episode.success is None
    assert episode.steps[0].observation["observation"].shape == (3,)


def test_minigrid_s_symbols_are_drawn():
    env = envs.make("MiniGrid-MemoryS7-v0", seed=0)
    agent = make_agent(env=env, policy="MultiInputPolicy")
    step = record(agent, env, max_steps=1).steps[0]
    assert step.views["image"].shape == (7 * 24, 7 * 24, 3)
    agent_cell = step.views["image"][-24:, 3 * 24 : 4 * 24]
    assert (agent_cell[..., 0] > 200).any()  # the agent, red, in the middle of the last row
    assert list(action_names(env, env.action_space).values())[:3] == ["left", "right", "forward"]


def test_the_whole_grid_is_drawn_with_the_agent_where_it_is():
    env = envs.make("MiniGrid-Empty-5x5-v0", seed=0, wrappers=["minigrid.wrappers.FullyObsWrapper"])
    step = record(make_agent(env=env, policy="MultiInputPolicy"), env, max_steps=1).steps[0]
    red = (step.views["image"].astype(int) @ [1, -1, -1]) > 100
    assert red[24:48, 24:48].any()  # it starts in the first cell inside the walls
    assert not red[:, 48:].any()


def fake(success, length=3):
    return Episode((), None, True, success, 0.0, length)


@pytest.mark.parametrize(
    ("outcomes", "kept", "taken"),
    [
        ([True, True, True, False, False, True], [True, True, False, False], 5),
        ([True] * 5, [True, True], 5),
        ([None] * 5, [None, None], 2),
    ],
)
def test_successes_and_failures_are_chosen(outcomes, kept, taken):
    chosen, played = choose(map(fake, outcomes), 2, most_steps=100)
    assert [episode.success for episode in chosen] == kept
    assert len(played) == taken


def test_choosing_ends_after_so_many_steps_or_takes_all():
    assert len(choose(map(fake, [True] * 9), 2, most_steps=10)[1]) == 4
    assert len(choose(map(fake, [True, False] * 9), 2)[1]) == 18


def test_marks_are_numbers_truths_and_words():
    info = {"a": np.int64(3), "b": np.True_, "c": "key", "d": [1], "e": None}
    assert marks(info) == {"a": 3.0, "b": 1.0, "c": "key"}


def test_the_decision_and_the_cue_are_found(episodes):
    for episode in episodes:
        found = landmarks(episode)
        if "decision" not in found:
            continue
        t = deciding_step(episode)
        assert t == found["decision"][0]
        reads = by_step(episode.steps[t].reads, t)
        np.testing.assert_allclose(mass_on(episode, t, "cue_in_view"), reads[..., found["cue_in_view"]].sum(axis=-1))
        assert story(episode)[0].startswith(f"Step {t}, where it decides: ")
    assert any("decision" in landmarks(episode) for episode in episodes)
    assert summary(episodes)[0] == f"6 episodes were played, {sum(e.success for e in episodes)} with success."


def test_without_a_mark_the_memory_s_effect_decides(agent):
    episode = record(agent, envs.make("fbrl/TMaze-v0", seed=0, corridor=3))
    effects = [step.seen.effect[0] for step in episode.steps]
    assert deciding_step(episode) == np.argmax(effects)


def test_an_agent_without_attention_has_a_story_too():
    episode = play(make_agent("lstm"), 1)[0]
    assert episode.steps[0].reads is None
    assert len(story(episode)) == 1


def test_unnamed_actions_have_their_numbers():
    env = task()
    assert action_names(env, env.action_space) == {0: "0", 1: "1", 2: "2"}
    assert action_names(env, spaces.Discrete(2, start=5)) == {5: "5", 6: "6"}
    assert action_names(env, spaces.MultiBinary(2)) == {}
