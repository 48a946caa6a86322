"""The T-maze, whose best returns with and without memory are known exactly."""

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from envs import make
from envs.start_states import FixedStart, start_states
from envs.tmaze import BACK, CORRIDOR, DOWN, FORWARD, JUNCTION, UP, ActiveTMaze, TMaze, TMazeEnv
from tests.envs.batch_tasks import Scripted


def play(policy, cue, corridor, env_id="fbrl/TMaze-v0"):
    """One episode with this cue; ``policy`` maps the observations so far to an action: the return and the success."""
    env = FixedStart(make(env_id, corridor=corridor), (cue,))
    seen = [env.reset()[0]]
    total, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy(seen))
        seen.append(observation)
        total += reward
        done = terminated or truncated
    return total, info["is_success"]


@pytest.mark.parametrize("corridor", [1, 2, 13, 200])
def test_memory_earns_one(corridor):
    def remember(seen):
        return (UP, DOWN)[seen[0]] if seen[-1] == JUNCTION else FORWARD

    assert [play(remember, cue, corridor) for cue in (0, 1)] == [(1.0, True), (1.0, True)]


def chances_of_the_arms(task_class, cue, policy, corridor):
    """Of ending above and below, exactly: the distribution over cells, step by step, till time is up.

    ``policy`` (4, actions) holds the chances of the actions after each observation.
    """
    task = task_class(1, corridor)
    cells, ends = np.eye(task.junction + 1)[task.first], np.zeros(2)
    for _ in range(task.max_steps):
        before, cells = cells, np.zeros_like(cells)
        for cell in np.flatnonzero(before):
            for action in range(task.n_actions):
                task.start(0, Scripted(cue))
                task.cell[0] = cell
                chance = before[cell] * policy[task.observe()[0], action]
                outcome = task.step(np.array([action]))
                if outcome.terminated[0]:
                    ends[cue if outcome.success[0] else 1 - cue] += chance
                else:
                    cells[task.cell[0]] += chance
    return ends


@pytest.mark.parametrize("task_class", [TMaze, ActiveTMaze])
def test_no_memoryless_policy_earns_more_than_half(task_class):
    """Of 50 that draw their actions; those of the active maze may look at the cue on their way."""
    rng, most = np.random.default_rng(0), []
    for _ in range(50):
        policy = rng.dirichlet(np.full(task_class.n_actions, 0.5), size=4)
        up, down = (chances_of_the_arms(task_class, cue, policy, corridor=2)[cue] for cue in (0, 1))
        most.append((up + down) / 2)
    assert max(most) <= 0.5 + 1e-12
    assert max(most) > 0.45  # some get there


@pytest.mark.parametrize("corridor", [1, 10, 200])
def test_looking_back_earns_one(corridor):
    steps = []

    def remember(seen):
        steps.append(len(seen))
        if len(seen) == 1:
            return BACK
        return (UP, DOWN)[seen[1]] if seen[-1] == JUNCTION else FORWARD

    assert [play(remember, cue, corridor, "fbrl/ActiveTMaze-v0") for cue in (0, 1)] == [(1.0, True), (1.0, True)]
    assert max(steps) == corridor + 3


@pytest.mark.parametrize("turn", [UP, DOWN])
def test_memory_alone_earns_half_in_the_active_maze(turn):
    """Whoever never steps back knows nothing."""

    def walk(seen):
        return turn if seen[-1] == JUNCTION else FORWARD

    assert sum(play(walk, cue, 10, "fbrl/ActiveTMaze-v0")[0] for cue in (0, 1)) == 1.0


@pytest.mark.parametrize("cue", [0, 1])
def test_the_active_maze_cell_by_cell(cue):
    env = FixedStart(make("fbrl/ActiveTMaze-v0", corridor=2), (cue,))
    moves = [BACK, BACK, UP, FORWARD, FORWARD, FORWARD, FORWARD, BACK, DOWN, FORWARD]
    shown = [env.reset()[0], *(env.step(move)[0] for move in moves)]
    assert shown == [2, cue, cue, cue, 2, 2, 3, 3, 2, 2, 3]
    assert env.step((UP, DOWN)[cue]) == (JUNCTION, 1.0, True, False, {"is_success": True})


def test_the_spaces_are_as_ever():
    passive, active = make("fbrl/TMaze-v0"), make("fbrl/ActiveTMaze-v0")
    assert (passive.observation_space, passive.action_space) == (Discrete(4), Discrete(3))
    assert (active.observation_space, active.action_space) == (Discrete(4), Discrete(4))


@pytest.mark.parametrize("cue", [0, 1])
def test_the_cue_shows_in_the_first_cell_only(cue):
    env = FixedStart(TMazeEnv(corridor=3), (cue,))
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
    env = TMazeEnv(corridor=corridor)
    env.reset(seed=0)
    steps = [env.step(FORWARD) for _ in range(5 * corridor + 10)]
    assert all(step[2:] == (False, False, {"is_success": False}) for step in steps[:-1])
    assert steps[-1] == (JUNCTION, 0.0, False, True, {"is_success": False})


def test_success_in_the_last_step_allowed():
    env = FixedStart(TMazeEnv(corridor=2, max_steps=3), (1,))
    env.reset()
    env.step(FORWARD)
    env.step(FORWARD)
    assert env.step(DOWN) == (JUNCTION, 1.0, True, True, {"is_success": True})


@pytest.mark.parametrize("corridor", [1, 3, 20])
def test_a_random_policy_finishes_in_time(corridor):
    """The exact chance, by pushing the distribution over cells through the steps."""
    cells, finished = np.eye(corridor + 1)[0], 0.0
    for _ in range(TMaze(1, corridor).max_steps):
        finished += cells[-1] * 2 / 3
        moved = np.append(0, cells[:-1]) / 3
        cells = moved + cells * np.append(np.full(corridor, 2 / 3), 1 / 3)
    assert 0.99 < finished < 1


@pytest.mark.parametrize(("corridor", "share"), [(1, 0.678), (10, 0.068), (20, 0.007)])
def test_a_random_policy_seldom_finishes_the_active_maze(corridor, share):
    task = ActiveTMaze(1, corridor)
    cells, finished = np.eye(corridor + 2)[1], 0.0
    for _ in range(task.max_steps):
        finished += cells[-1] / 2
        stay = np.append(np.full(corridor + 1, 1 / 2), 1 / 4)
        moved = np.append(0, cells[:-1]) / 4 + np.append(cells[1:], 0) / 4
        moved[0] += cells[0] / 4
        cells = moved + cells * stay
    assert finished == pytest.approx(share, abs=5e-4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^corridor must be a whole number, at least 1, got 0$"):
        make("fbrl/TMaze-v0", corridor=0)
    with pytest.raises(ValueError, match=r"^max_steps must be a whole number, at least 5, got 4$"):
        make("fbrl/TMaze-v0", corridor=4, max_steps=4)
    with pytest.raises(ValueError, match=r"^corridor must be a whole number, at least 1, got 2\.5$"):
        make("fbrl/TMaze-v0", corridor=2.5)
    with pytest.raises(ValueError, match=r"^max_steps must be a whole number, at least 5, got 9\.5$"):
        make("fbrl/TMaze-v0", corridor=4, max_steps=9.5)
    with pytest.raises(ValueError, match=r"^max_steps must be a whole number, at least 7, got 6$"):
        make("fbrl/ActiveTMaze-v0", corridor=4, max_steps=6)


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
    assert TMazeEnv().render() is None


def test_the_cues_have_different_colours():
    colours = []
    for cue in (0, 1):
        env = FixedStart(TMazeEnv(render_mode="rgb_array"), (cue,))
        env.reset()
        colours.append(tuple(env.render()[24, 0]))
    assert colours[0] != colours[1]
