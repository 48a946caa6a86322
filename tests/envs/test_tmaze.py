"""The T-maze, whose best returns with and without memory are known exactly."""

import itertools

import numpy as np
import pytest

from envs import make
from envs.start_states import FixedStart, start_states
from envs.tmaze import CORRIDOR, DOWN, FORWARD, JUNCTION, UP, TMaze


def play(policy, cue, corridor):
    """One episode with this cue; ``policy`` maps the observations so far to an action: the return and the success."""
    env = FixedStart(make("fbrl/TMaze-v0", corridor=corridor), (cue,))
    seen = [env.reset()[0]]
    total, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy(seen))
        seen.append(observation)
        total += reward
        done = terminated or truncated
    return total, info["is_success"]


@pytest.mark.parametrize("corridor", [1, 2, 13])
def test_memory_earns_one(corridor):
    def remember(seen):
        return (UP, DOWN)[seen[0]] if seen[-1] == JUNCTION else FORWARD

    assert [play(remember, cue, corridor) for cue in (0, 1)] == [(1.0, True), (1.0, True)]


def test_no_memoryless_policy_earns_more_than_half():
    """Every deterministic map from observation to action."""
    returns = []
    for actions in itertools.product((FORWARD, UP, DOWN), repeat=4):
        results = [play(lambda seen, actions=actions: actions[seen[-1]], cue, corridor=3) for cue in (0, 1)]
        assert all(success is (total == 1) for total, success in results)
        returns.append(np.mean([total for total, _ in results]))
    assert len(returns) == 81
    assert max(returns) == 0.5


@pytest.mark.parametrize("cue", [0, 1])
def test_the_cue_shows_in_the_first_cell_only(cue):
    env = FixedStart(TMaze(corridor=3), (cue,))
    assert env.reset() == (cue, {})
    moves = [UP, DOWN, FORWARD, UP, FORWARD, FORWARD, FORWARD]
    steps = [env.step(move) for move in moves]
    assert [step[0] for step in steps] == [cue, cue, CORRIDOR, CORRIDOR, CORRIDOR, JUNCTION, JUNCTION]
    assert all(step[1:] == (0.0, False, False, {"is_success": False}) for step in steps)
    assert env.step((DOWN, UP)[cue]) == (JUNCTION, 0.0, True, False, {"is_success": False})


def test_both_cues_come_equally_often():
    assert [(start.draws, start.probability) for start in start_states("fbrl/TMaze-v0")] == [((0,), 0.5), ((1,), 0.5)]
    env = make("fbrl/TMaze-v0", seed=0)
    assert 450 < sum(env.reset()[0] for _ in range(1000)) < 550


@pytest.mark.parametrize("corridor", [1, 3, 10])
def test_time_runs_out(corridor):
    env = TMaze(corridor=corridor)
    env.reset(seed=0)
    steps = [env.step(FORWARD) for _ in range(5 * corridor + 10)]
    assert all(step[2:] == (False, False, {"is_success": False}) for step in steps[:-1])
    assert steps[-1] == (JUNCTION, 0.0, False, True, {"is_success": False})


def test_success_in_the_last_step_allowed():
    env = FixedStart(TMaze(corridor=2, max_steps=3), (1,))
    env.reset()
    env.step(FORWARD)
    env.step(FORWARD)
    assert env.step(DOWN) == (JUNCTION, 1.0, True, True, {"is_success": True})


@pytest.mark.parametrize("corridor", [1, 3, 20])
def test_a_random_policy_finishes_in_time(corridor):
    """The exact chance, by pushing the distribution over cells through the steps."""
    cells, finished = np.eye(corridor + 1)[0], 0.0
    for _ in range(TMaze(corridor).max_steps):
        finished += cells[-1] * 2 / 3
        moved = np.append(0, cells[:-1]) / 3
        cells = moved + cells * np.append(np.full(corridor, 2 / 3), 1 / 3)
    assert 0.99 < finished < 1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="corridor must be at least 1, not 0"):
        make("fbrl/TMaze-v0", corridor=0)
    with pytest.raises(ValueError, match=r"at least corridor \+ 1 = 5, not 4"):
        make("fbrl/TMaze-v0", corridor=4, max_steps=4)
    with pytest.raises(ValueError, match=r"corridor must be a whole number, not 2\.5"):
        make("fbrl/TMaze-v0", corridor=2.5)
    with pytest.raises(ValueError, match=r"max_steps must be a whole number, not 9\.5"):
        make("fbrl/TMaze-v0", corridor=4, max_steps=9.5)


@pytest.mark.parametrize("cue", [0, 1])
def test_picture(cue):
    env = FixedStart(make("fbrl/TMaze-v0", corridor=4, render_mode="rgb_array"), (cue,))
    env.reset()
    start = env.render()
    assert start.shape == (72, 120, 3)
    assert start.dtype == np.uint8
    assert (start[36, 36] != start[36, 12]).any()  # the agent stands in the first cell only
    env.step(FORWARD)
    moved = env.render()
    np.testing.assert_array_equal(moved[36, 36], start[36, 12])
    np.testing.assert_array_equal(moved[0, -1] if cue == 0 else moved[-1, -1], [60, 170, 75])
    assert TMaze().render() is None


def test_the_cues_have_different_colours():
    colours = []
    for cue in (0, 1):
        env = FixedStart(TMaze(render_mode="rgb_array"), (cue,))
        env.reset()
        colours.append(tuple(env.render()[24, 0]))
    assert colours[0] != colours[1]
