"""T-mazes in a row: the best with memory and without, exactly."""

import numpy as np
import pytest

from envs import make
from envs.endless_tmaze import EndlessTMaze
from envs.start_states import StartStatesError, start_states
from envs.tmaze import CORRIDOR, DOWN, FORWARD, JUNCTION, UP
from tests.envs.batch_tasks import play_one, start_all


def remember(seen):
    """The last cue counts."""
    if seen[-1] != JUNCTION:
        return FORWARD
    return (UP, DOWN)[next(int(observation) for observation in reversed(seen) if observation < CORRIDOR)]


@pytest.mark.parametrize("corridors", [1, 3, 20])
def test_memory_earns_one(corridors):
    env = make("fbrl/EndlessTMaze-v0", corridors=corridors, shortest=1, longest=4)
    for seed in range(20):
        total, success, length = play_one(env, remember, seed)
        assert total == pytest.approx(1)
        assert success
        assert 2 * corridors <= length <= 5 * corridors


def test_step_by_step():
    task = start_all(EndlessTMaze(2, corridors=2, shortest=1, longest=3), [([1, 0], [2, 1]), ([0, 0], [1, 3])])
    shown, rewards, ends = [task.observe().tolist()], [], []
    for actions in [
        (UP, FORWARD),
        (FORWARD, UP),
        (FORWARD, FORWARD),
        (DOWN, FORWARD),
        (FORWARD, DOWN),
        (DOWN, FORWARD),
    ]:
        outcome = task.step(np.array(actions))
        shown.append(task.observe().tolist())
        rewards.append(outcome.rewards.tolist())
        ends.append((outcome.terminated.tolist(), outcome.success.tolist()))
    # the first: time passes, two moves, the right turn into the second corridor, one move, the wrong turn
    assert [row[0] for row in shown] == [1, 1, CORRIDOR, JUNCTION, 0, JUNCTION, JUNCTION]
    assert [row[0] for row in rewards] == [0, 0, 0, 0.5, 0, 0]
    assert ends[-1] == ([True, False], [False, False])
    # the second: one move, the right turn, and three moves
    assert [row[1] for row in shown] == [0, JUNCTION, 0, CORRIDOR, CORRIDOR, CORRIDOR, JUNCTION]
    assert [row[1] for row in rewards] == [0, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize("corridors", [1, 2])
def test_without_memory_a_turn_is_right_half_of_the_time(corridors):
    """Whatever the chances of the actions after each observation; exactly, over all cues, turn by turn."""
    for up in (0.0, 0.3, 1.0):  # the chance of up at a junction, of a policy that turns there
        chance = {UP: up, DOWN: 1 - up}
        success = returns = 0.0
        for cues in np.ndindex(*[2] * corridors):
            for turns in np.ndindex(*[2] * corridors):
                task = start_all(EndlessTMaze(1, corridors, 1, 1), [(np.array(cues), np.ones(corridors, int))])
                weight = 0.5**corridors
                for turn in turns:
                    task.step(np.array([FORWARD]))
                    outcome = task.step(np.array([(UP, DOWN)[turn]]))
                    weight *= chance[(UP, DOWN)[turn]]
                success += weight * outcome.success[0]
                returns += weight * task.right[0] / corridors
        assert success == pytest.approx(0.5**corridors)
        assert returns == pytest.approx(0.5)


def test_it_is_cut_short():
    task = start_all(EndlessTMaze(1, corridors=1, shortest=1, longest=2, max_steps=3), [([0], [1])])
    ends = [task.step(np.array([FORWARD])).truncated[0] for _ in range(3)]
    assert ends == [False, False, True]
    assert EndlessTMaze(1, corridors=3, longest=4).max_steps == 75


def test_start_states_cannot_be_listed():
    with pytest.raises(StartStatesError):
        start_states("fbrl/EndlessTMaze-v0", corridors=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corridors": 0}, "corridors must be a whole number, at least 1, got 0"),
        ({"shortest": 0}, "shortest must be a whole number, at least 1, got 0"),
        ({"shortest": 3, "longest": 2}, "longest must be a whole number, at least 3, got 2"),
        ({"corridors": 2, "longest": 3, "max_steps": 7}, "max_steps must be a whole number, at least 8, got 7"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        EndlessTMaze(1, **arguments)
