"""Counting: an expert that counts, and every policy that does not."""

from itertools import product

import numpy as np
import pytest

from envs import make
from envs.counting import MARK, QUESTION, Counting
from tests.envs.batch_tasks import play_one, start_all

ID = "fbrl/Counting-v0"


def count(seen):
    """The expert."""
    return int(sum(observation[MARK] for observation in seen)) if seen[-1][QUESTION] else 0


@pytest.mark.parametrize("sizes", [{}, {"most": 1, "shortest": 1, "longest": 1}, {"most": 3, "shortest": 5}])
def test_the_expert_earns_one(sizes):
    env = make(ID, **sizes)
    results = [play_one(env, count, seed) for seed in range(41)]
    assert [result[:2] for result in results] == [(1.0, True)] * 41
    shortest, longest = sizes.get("shortest", 20), sizes.get("longest", 40)
    assert all(shortest + 1 <= length <= longest + 1 for _, _, length in results)


def test_without_memory_every_answer_is_right_once_in_most_plus_one():
    most, shortest, longest = 3, 3, 5
    draws = [(marks, end, np.arange(end)) for marks, end in product(range(most + 1), range(shortest, longest + 1))]
    for answer in range(most + 1):
        task = start_all(Counting(len(draws), most, shortest, longest), draws)
        right, asked = [], []
        for t in range(longest + 1):
            going = np.array([end for _, end, _ in draws]) >= t
            seen = task.observe()
            outcome = task.step(np.full(len(draws), answer))
            right += outcome.rewards[going].tolist()
            asked += seen[going & outcome.terminated].tolist()
            np.testing.assert_array_equal(outcome.success, outcome.rewards == 1)
            task._t[~going] = 0  # what is over waits
        assert asked == [[0, 1]] * len(draws)  # the same whatever the number
        assert sum(right) / len(draws) == pytest.approx(1 / (most + 1), abs=1e-12)


def test_an_episode():
    task = start_all(Counting(1, most=4, shortest=4, longest=6), [(2, 5, np.array([3, 1, 0, 2, 4]))])
    seen = []
    for _ in range(6):
        seen.append(task.observe()[0].tolist())
        outcome = task.step(np.array([2]))
    assert seen == [[0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [0, 1]]
    assert (outcome.rewards[0], outcome.terminated[0], outcome.success[0]) == (1, True, True)
    assert task.observe()[0].tolist() == [0, 0]


def test_the_draws_are_even_and_apart():
    task, rng = Counting(1, most=3, shortest=5, longest=7), np.random.default_rng(0)
    together, places = np.zeros((4, 3)), np.zeros(5)
    for _ in range(6000):
        task.start(0, rng)
        together[task._count[0], task._question[0] - 5] += 1 / 6000
        assert task._shown[0, :, MARK].sum() == task._count[0]
        if task._question[0] == 5:
            places += task._shown[0, :5, MARK]
    np.testing.assert_allclose(together, 1 / 12, atol=0.015)
    np.testing.assert_allclose(places / places.sum(), 1 / 5, atol=0.03)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"most": 0}, "^most must be a whole number, at least 1, got 0$"),
        ({"most": 5, "shortest": 4}, "^shortest must be a whole number, at least 5, got 4$"),
        ({"longest": 19}, "^longest must be a whole number, at least 20, got 19$"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(ID, **kwargs)
