"""The random walk on a grid: an expert that adds up the moves, and the best that a policy without memory can do."""

from itertools import product

import numpy as np
import pytest

from envs import make
from envs.grid_walk import START, GridWalk, next_cells
from tests.envs.batch_tasks import play_all, play_one, start_all

ID = "fbrl/GridWalk-v0"


def add_up(size):
    """The expert: row and column from all moves."""

    def act(seen):
        place = np.array([(size - 1) // 2] * 2)
        for observation in seen[1:]:
            up, down, left, right, _ = observation
            place = np.clip(place + np.array([down - up, right - left]), 0, size - 1)
        return int(place @ [size, 1])

    return act


@pytest.mark.parametrize("sizes", [{}, {"size": 2, "length": 13}, {"size": 7, "length": 1}])
def test_the_expert_earns_one(sizes):
    env = make(ID, **sizes)
    results = [play_one(env, add_up(sizes.get("size", 5)), seed) for seed in range(23)]
    assert [success for _, success, _ in results] == [True] * 23
    np.testing.assert_allclose([total for total, _, _ in results], 1)
    assert {length for _, _, length in results} == {sizes.get("length", 32)}


def best_memoryless_return(size, length):
    """By dynamic programming over time, cell and last move."""
    following, cells = next_cells(size), np.zeros(size**2)
    cells[(size - 1) // 2 * (size + 1)] = 1
    together = np.zeros((START + 1, size**2))  # sum over time of P(last move, cell)
    together[START] = cells
    for _ in range(length - 1):
        moved = np.zeros((START, size**2))
        for move in range(START):
            np.add.at(moved[move], following[:, move], cells / 4)
        together[:START] += moved
        cells = moved.sum(0)
    assert together.sum() == pytest.approx(length)
    return together.max(1).sum() / length


@pytest.mark.parametrize(("size", "length"), [(2, 4), (3, 5), (4, 3)])
def test_the_best_memoryless_return_is_that_of_all_walks(size, length):
    """Every constant answer on every walk; an answer for each observation takes the best constant there."""
    walks = list(product(range(4), repeat=length - 1))
    hits = np.zeros((START + 1, size**2))
    for answer in range(size**2):
        task = start_all(GridWalk(len(walks), size, length), [(walk,) for walk in walks])
        for _ in range(length):
            last_move = task.observe().argmax(1)
            rewards = task.step(np.full(len(walks), answer)).rewards
            np.add.at(hits[:, answer], last_move, rewards / len(walks))
    assert hits.max(1).sum() == pytest.approx(best_memoryless_return(size, length), abs=1e-12)
    assert best_memoryless_return(size, length) < 0.9
    policy = hits.argmax(1)
    task = start_all(GridWalk(len(walks), size, length), [(walk,) for walk in walks])
    returns, _ = play_all(task, lambda seen: policy[seen[-1].argmax(1)])
    assert returns.mean() == pytest.approx(best_memoryless_return(size, length), abs=1e-12)


def test_the_best_memoryless_return_of_the_default():
    assert best_memoryless_return(5, 32) == pytest.approx(0.1147, abs=5e-5)


@pytest.mark.parametrize("size", [3, 4, 5, 7])
def test_two_steps_without_memory_are_right_on_ten_walks_of_sixteen_at_most(size):
    """From every cell, with the best answers in both steps."""
    following = next_cells(size)[:, :4]
    most = [sum(np.bincount(following[following[cell], move]).max() for move in range(4)) for cell in range(size**2)]
    assert max(most) == most[0] == 10  # in a corner


def test_no_memoryless_policy_succeeds_more_often():
    """All 9^4 answers to the four moves, on all walks of two moves."""
    following = next_cells(3)
    first, second = np.array(list(product(range(4), repeat=2))).T
    one = following[4, first]
    two = following[one, second]
    answers = np.array(list(product(range(9), repeat=4)))
    success = ((answers[:, first] == one) & (answers[:, second] == two)).mean(1)
    assert success.max() <= 10 / 16


def test_walls_stop_the_walk():
    task = start_all(GridWalk(2, size=3, length=4), [([0, 0, 2],), ([1, 3, 3],)])
    assert task.observe().tolist() == [[0, 0, 0, 0, 1]] * 2
    cells = []
    for _ in range(4):
        cells.append(task._cell.tolist())
        task.step(np.array([4, 0]))
    assert cells == [[4, 4], [1, 7], [1, 8], [0, 8]]
    assert task.observe().tolist() == [[0] * 5] * 2
    assert GridWalk(1, size=4).middle == 5


@pytest.mark.parametrize(("name", "value"), [("size", 1), ("size", "5"), ("length", 0), ("length", 3.0)])
def test_wrong_arguments(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number, at least \d, got {value}$"):
        make(ID, **{name: value})
