"""The water maze: an expert that sweeps and remembers, and what can be done without memory."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import lil_array

from envs import make
from envs.water_maze import WaterMaze
from tests.envs.batch_tasks import start_all

ID = "fbrl/WaterMaze-v0"
UP, DOWN, LEFT, RIGHT = range(4)
# Of a policy without memory: where it looks for the goal, along all cells, and how it comes back, by size.
ROUND = {
    2: ">v\n^<",
    4: "\n".join([">>>v", "^v<<", "^>>v", "^<<<"]),
    6: "\n".join([">>>>>v", "^v<<<<", "^>>>>v", "^v<<<<", "^>>>>v", "^<<<<<"]),
    7: "\n".join([">>>>>>v", "^v<<<<<", "^>>>>>v", "^v<<<<<", "^>>>>>v", "^vv<v<v", "^<<^<^<"]),  # all but one
}
BACK = {
    2: "v<\n>^",
    4: "\n".join([">>>v", "^>>v", "^<<v", "^<<<"]),
    6: "\n".join(["v<<<<<", "vvv^^^", "vvv^^^", "v>v^^^", "vvv^^^", ">>>>>^"]),
    7: "\n".join([">>>>>>v", *["^>>>>>v"] * 5, "^<<<<<<"]),  # right to the wall, and along the walls
}
BEST = {2: 8, 4: 74, 6: 256}  # W, of the docstring


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


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 6, 7])
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


@pytest.mark.parametrize("size", BEST)
def test_the_best_without_memory_is_attained(size):
    success, _ = play(all_episodes(size), arrows(ROUND[size], BACK[size]))
    assert success.mean() == pytest.approx(BEST[size] / (size**2 * (size**2 - 1)), abs=1e-12)
    assert success.mean() <= bound(size)


@pytest.mark.parametrize("size", [2, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_nothing_without_memory_is_better(size):
    assert round(longest_ways(size)) == BEST[size]


def longest_ways(size):
    """W, by integer programming.

    ``way[s, q, c, a]``: the way from s, which takes directions of quadrant q alone, leaves c by a. Shortest ways are
    those that take no two opposite directions. ``arrow[c, a]``: all ways leave c by a.
    """
    step = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
    cells, quadrants = list(product(range(size), repeat=2)), list(product((UP, DOWN), (LEFT, RIGHT)))
    number = {}  # of each variable
    rows = []  # sums of variables that are at most 0; with a None among them, at most 1

    def neighbour(cell, direction):
        there = tuple(np.add(cell, step[direction]))
        return there if there in cells else None

    def variable(*name):
        return number.setdefault(name, len(number))

    for cell in cells:
        rows.append([None, *((variable("arrow", cell, a), 1) for a in step)])
        rows.append([None, *((variable("starts", cell, q), 1) for q in quadrants)])
    leaving = {}  # (cell, direction) -> ways that do
    for start, q in product(cells, quadrants):
        places = [c for c in cells if all((np.subtract(c, start) * np.add(step[q[0]], step[q[1]])) >= 0)]
        ways = {(c, a): variable("way", start, q, c, a) for c in places for a in q if neighbour(c, a)}
        for (c, a), way in ways.items():
            leaving.setdefault((start, c, a), []).append(way)
        for c in places:
            comes = [variable("starts", start, q)] if c == start else []
            comes += [way for (before, a), way in ways.items() if neighbour(before, a) == c]
            rows.append([*((ways[c, a], 1) for a in q if (c, a) in ways), *((way, -1) for way in comes)])
    for (_, c, a), ways in leaving.items():
        rows.append([*((way, 1) for way in ways), (variable("arrow", c, a), -1)])

    matrix, most = lil_array((len(rows), len(number))), np.array([None in row for row in rows], dtype=float)
    for index, row in enumerate(rows):
        for column, factor in filter(None, row):
            matrix[index, column] = factor
    gain = np.array([-1.0 if name[0] == "way" else 0.0 for name in number])
    whole = np.array([name[0] == "arrow" for name in number], dtype=int)
    found = milp(gain, integrality=whole, bounds=(0, 1), constraints=LinearConstraint(matrix.tocsr(), ub=most))
    assert found.success, found.message
    return -found.fun


@pytest.mark.slow
def test_a_scripted_policy_on_an_odd_size():
    success, _ = play(all_episodes(7), arrows(ROUND[7], BACK[7]))
    assert success.mean() == pytest.approx(0.1607, abs=5e-5)
    assert bound(7) == pytest.approx(0.1964, abs=5e-5)


@pytest.mark.slow
def test_slack_lets_more_ways_count():
    success, _ = play(all_episodes(7, slack=2), arrows(ROUND[7], BACK[7]))
    assert 0.1607 < success.mean() <= bound(7, 2) < 0.25


def test_all_ways_back_without_memory_on_the_smallest_size():
    """All 4^4 on 2 x 2 cells, with a search that always finds: the best is that of the integer program."""
    successes = []
    for a, b, c, d in product("^v<>", repeat=4):
        success, _ = play(all_episodes(2), arrows(ROUND[2], f"{a}{b}\n{c}{d}"))
        successes.append(success.mean())
    assert max(successes) == pytest.approx(BEST[2] / 12, abs=1e-12)


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
