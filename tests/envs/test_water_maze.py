"""The water maze: an expert that sweeps and remembers, and what can be done without memory."""

from itertools import product

import numpy as np
import pytest

from envs import make
from envs.water_maze import WaterMaze
from tests.envs.batch_tasks import start_all

ID = "fbrl/WaterMaze-v0"
UP, DOWN, LEFT, RIGHT = range(4)
ROUND = "\n".join([">>>>>>v", "^v<<<<<", "^>>>>>v", "^v<<<<<", "^>>>>>v", "^vv<v<v", "^<<^<^<"])  # all but one cell
CLOCKWISE = "\n".join([">>>>>>v", *["^>>>>>v"] * 5, "^<<<<<<"])  # right to the wall, and along the walls


def all_episodes(size, **kwargs):
    """Every goal, first cell and second cell, once: all equally probable."""
    n = size**2
    draws = list(product(range(n), range(n - 1), range(n - 1)))
    return start_all(WaterMaze(len(draws), size, **kwargs), draws)


def play(task, policy):
    """One episode in each environment: successes (N,) and lengths (N,)."""
    success, lengths = np.zeros(task.n_envs, dtype=bool), np.zeros(task.n_envs, dtype=int)
    for t in range(1, task.search + 2 * task.size + task.slack + 2):
        outcome = task.step(policy(task.observe()))
        ends = (outcome.terminated | outcome.truncated) & (lengths == 0)
        np.testing.assert_array_equal(outcome.rewards, outcome.success)
        success[ends], lengths[ends] = outcome.success[ends], t
    assert lengths.all()
    return success, lengths


def towards(place, target):
    """Moves (N,): rows first; places (N, 2)."""
    row, column = (target - place).T
    return np.where(row < 0, UP, np.where(row > 0, DOWN, np.where(column < 0, LEFT, RIGHT)))


class Expert:
    """Goes to the nearest corner, sweeps row by row from there, remembers the goal, and goes back to it."""

    def __init__(self, size):
        self.size, self.corner, self.swept, self.goal = size, None, None, None

    def __call__(self, seen):
        place = np.stack([seen[:, : self.size].argmax(1), seen[:, self.size : -1].argmax(1)], axis=1)
        found = seen[:, -1] == 1
        if self.corner is None:
            self.corner = np.where(place < self.size / 2, 0, self.size - 1)
            self.swept = np.zeros(len(seen), dtype=bool)  # whether the sweep has begun
            self.goal = np.full_like(place, -1)
        new = found & (self.goal[:, 0] < 0)
        self.goal[new] = place[new]
        self.swept |= (place == self.corner).all(1)
        inwards = np.where(self.corner[:, 0] == 0, DOWN, UP)
        right = ((place[:, 0] - self.corner[:, 0]) % 2 == 0) == (self.corner[:, 1] == 0)
        at_end = place[:, 1] == np.where(right, self.size - 1, 0)
        sweep = np.where(at_end, inwards, np.where(right, RIGHT, LEFT))
        search = np.where(self.swept, sweep, towards(place, self.corner))
        return np.where(found, towards(place, self.goal), search)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_the_expert_always_comes_back(size):
    """On every goal, every first and every second cell."""
    task = all_episodes(size)
    success, lengths = play(task, Expert(size))
    assert success.all()
    assert lengths.max() <= task.search + 1 + 2 * (size - 1)


def test_the_search_is_not_longer_than_a_sweep_takes():
    success, _ = play(all_episodes(5, search=WaterMaze(1, 5).search - 1), Expert(5))
    assert not success.all()


def arrows(search, back):
    """A policy without memory, from two pictures."""
    moves = {"^": UP, "v": DOWN, "<": LEFT, ">": RIGHT}
    table = np.array([[[moves[arrow] for arrow in row] for row in part.split()] for part in (search, back)])
    size = table.shape[1]
    return lambda seen: table[seen[:, -1].astype(int), seen[:, :size].argmax(1), seen[:, size:-1].argmax(1)]


def bound(size, slack=0):
    """On the success of any policy without memory."""
    cells, far = size**2, [max(place, size - 1 - place) for place in range(size)]
    return sum(row + column + slack for row, column in product(far, far)) / (cells * (cells - 1))


def test_a_scripted_policy_without_memory():
    success, _ = play(all_episodes(7), arrows(ROUND, CLOCKWISE))
    assert success.mean() == pytest.approx(0.1607, abs=5e-5)
    assert bound(7) == pytest.approx(0.1964, abs=5e-5)


def test_slack_lets_more_ways_count():
    success, _ = play(all_episodes(7, slack=2), arrows(ROUND, CLOCKWISE))
    assert 0.1607 < success.mean() <= bound(7, 2) < 0.25


def test_no_memoryless_way_back_is_better_than_the_bound():
    """All 4^4 on 2 x 2 cells, with a search that always finds; the best attains the bound."""
    successes = []
    for a, b, c, d in product("^v<>", repeat=4):
        success, _ = play(all_episodes(2), arrows(">v\n^<", f"{a}{b}\n{c}{d}"))
        successes.append(success.mean())
    assert max(successes) == pytest.approx(bound(2), abs=1e-12) == pytest.approx(2 / 3)


def test_an_episode():
    env = make(ID, size=3)
    env.reset(seed=0)
    task = env.unwrapped.task
    task.goal[0], task.cell[0], task._elsewhere[0] = 5, 1, 6  # rows 0 1 2 / 3 4 5 / 6 7 8
    steps = [env.step(action) for action in (UP, DOWN, RIGHT, LEFT, UP, RIGHT, RIGHT)]
    assert [step[0].tolist() for step in steps] == [
        [1, 0, 0, 0, 1, 0, 0],  # a wall
        [0, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 1, 1],  # the goal
        [0, 0, 1, 1, 0, 0, 1],  # put elsewhere, whatever is done
        [0, 1, 0, 1, 0, 0, 1],
        [0, 1, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 0, 1, 1],
    ]
    assert all(step[1:] == (0.0, False, False, {"is_success": False}) for step in steps[:-1])
    assert steps[-1][1:] == (1.0, True, False, {"is_success": True})


@pytest.mark.parametrize(("slack", "ends_after"), [(0, 3), (2, 5)])
def test_a_way_back_that_is_too_long_ends_the_episode(slack, ends_after):
    env = make(ID, size=3, slack=slack)
    env.reset(seed=0)
    task = env.unwrapped.task
    task.goal[0], task.cell[0], task._elsewhere[0] = 5, 2, 6
    ends = [env.step(action)[1:] for action in (DOWN, DOWN, *[LEFT] * ends_after)]
    assert all(end == (0.0, False, False, {"is_success": False}) for end in ends[:-1])
    assert ends[-1] == (0.0, True, False, {"is_success": False})


def test_the_search_is_cut_short():
    env = make(ID, size=3, search=4)
    env.reset(seed=0)
    task = env.unwrapped.task
    task.goal[0], task.cell[0] = 5, 0
    ends = [env.step(UP)[1:] for _ in range(4)]
    assert ends[-2:] == [(0.0, False, False, {"is_success": False}), (0.0, False, True, {"is_success": False})]


def test_the_draws_are_even():
    task, rng = WaterMaze(1, size=2), np.random.default_rng(0)
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    for _ in range(6000):
        task.start(0, rng)
        first[task.goal[0], task.cell[0]] += 1 / 6000
        second[task.cell[0], task._elsewhere[0]] += 1 / 6000
        assert task._elsewhere[0] != task.goal[0]
    np.testing.assert_allclose(first, (1 - np.eye(4)) / 12, atol=0.015)
    np.testing.assert_allclose(second, (2 + np.eye(4)) / 36, atol=0.015)  # 2 of 4 goals allow both, 3 allow one twice


@pytest.mark.parametrize(("name", "value", "least"), [("size", 1, 2), ("slack", -1, 0), ("search", 0, 1)])
def test_wrong_arguments(name, value, least):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number, at least {least}, got {value}$"):
        make(ID, **{name: value})
