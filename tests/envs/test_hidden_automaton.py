"""The hidden automaton: an expert that follows the ball, and every policy that does not."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest

from envs import make
from envs.hidden_automaton import HiddenAutomaton
from tests.envs.batch_tasks import play_all, play_one, start_all

ID = "fbrl/HiddenAutomaton-v0"


def follow(states):
    """The expert: it follows the ball from the first observation on."""
    pairs = list(combinations(range(states), 2))

    def act(seen):
        ball = int(np.flatnonzero(seen[0][:states])[0])
        for observation in seen[1:]:
            one, other = pairs[int(np.flatnonzero(observation[states:-1])[0])]
            ball = {one: other, other: one}.get(ball, ball)
        return ball

    return act


@pytest.mark.parametrize("sizes", [{}, {"states": 3, "questions": 7, "length": 11}, {"states": 2, "questions": 1}])
def test_the_expert_earns_one(sizes):
    env = make(ID, **sizes)
    results = [play_one(env, follow(sizes.get("states", 5)), seed) for seed in range(23)]
    assert [success for _, success, _ in results] == [True] * 23
    np.testing.assert_allclose([total for total, _, _ in results], 1)
    assert {length for _, _, length in results} == {sizes.get("length", 32)}


def episodes(states, questions, length):
    """Every episode, as the draws of ``start``: ball, pairs, and the order that puts the questions first."""
    balls, pairs = range(states), range(states, states + math.comb(states, 2))
    between = combinations(range(length - 2), questions - 1)
    return list(product(balls, product(pairs, repeat=length - 1), map(np.array, between)))


@pytest.mark.parametrize("questions", [1, 2])
def test_every_memoryless_policy_earns_one_over_states(questions):
    states, length = 3, 4
    draws = [(ball, swaps, order.astype(int)) for ball, swaps, order in episodes(states, questions, length)]
    assert len(draws) == 3 * 3**3 * (1, 2)[questions - 1]  # all equally probable
    successes = []
    for answers in product(range(states), repeat=3):  # one for each pair; nothing else is asked about
        task = start_all(HiddenAutomaton(len(draws), states, questions, length), draws)
        returns, success = play_all(task, lambda seen, a=answers: np.array(a)[seen[-1][:, 3:6].argmax(1)])
        assert returns.mean() == pytest.approx(1 / states, abs=1e-12)
        successes.append(success.mean())
    assert len(successes) == 27
    assert max(successes) <= 1 / states + 1e-12
    assert (min(successes) == pytest.approx(1 / states)) == (questions == 1)


def test_without_the_first_step_all_the_rest_does_not_help():
    """A policy that remembers every swap, and not where the ball was."""
    draws = [(ball, swaps, order.astype(int)) for ball, swaps, order in episodes(3, 2, 4)]
    task = start_all(HiddenAutomaton(len(draws), 3, 2, 4), draws)

    def suppose(seen):  # that it was under cup 1
        history = np.stack([*seen], axis=1)
        history[:, 0, :3] = (0, 1, 0)
        return np.array([follow(3)(list(row)) for row in history])

    returns, success = play_all(task, suppose)
    assert returns.mean() == success.mean() == pytest.approx(1 / 3)


def test_one_answer_to_all_questions():
    """Between two questions, the ball comes back to its cup with the chance that the swaps in between give."""
    task, rng = HiddenAutomaton(20_000), np.random.default_rng(0)
    for index in range(task.n_envs):
        task.start(index, rng)
    _, success = play_all(task, lambda seen: np.zeros(task.n_envs, dtype=np.int64))
    gaps = [np.diff([*others, 31]) for others in combinations(range(1, 31), 3)]
    exact = np.mean([(1 / 5 + 4 / 5 * 0.5**gap).prod() for gap in gaps]) / 5  # a swap leaves a cup alone 6 times in 10
    assert exact == pytest.approx(0.0039, abs=5e-5)
    assert success.mean() == pytest.approx(exact, abs=4 * np.sqrt(exact / task.n_envs))


def test_an_episode():
    task = start_all(HiddenAutomaton(1, states=3, questions=2, length=4), [(2, [5, 3, 4], np.array([1, 0]))])
    seen, rewards = [task.observe()[0].tolist()], []
    for action in (2, 1, 0, 2):  # the ball: 2, then 1 after (1, 2), 0 after (0, 1), 2 after (0, 2)
        outcome = task.step(np.array([action]))
        seen.append(task.observe()[0].tolist())
        rewards.append(float(outcome.rewards[0]))
    assert seen == [
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert rewards == [0, 0, 0.5, 0.5]
    assert (outcome.terminated[0], outcome.truncated[0], outcome.success[0]) == (True, False, True)


def test_the_draws_are_even():
    task = HiddenAutomaton(1, states=3, questions=3, length=7)
    rng = np.random.default_rng(0)
    balls, swaps, asked = np.zeros(3), np.zeros(3), np.zeros(8)
    for _ in range(3000):
        task.start(0, rng)
        balls[task._shown[0, 0]] += 1
        swaps += np.bincount(task._shown[0, 1:-1] - 3, minlength=3)
        asked += task._asked[0]
    np.testing.assert_allclose(balls / 3000, 1 / 3, atol=0.04)
    np.testing.assert_allclose(swaps / 18000, 1 / 3, atol=0.02)
    np.testing.assert_allclose(asked / 3000, [0, *[2 / 5] * 5, 1, 0], atol=0.04)


def follow_several(states, balls):
    """The expert for several balls."""
    pairs = list(combinations(range(states), 2))

    def act(seen):
        where = {}
        for t, observation in enumerate(seen):
            if t < balls:
                where[int(observation[-balls:].argmax())] = int(observation[:states].argmax())
                continue
            one, other = pairs[int(observation[states : states + len(pairs)].argmax())]
            where = {ball: {one: other, other: one}.get(cup, cup) for ball, cup in where.items()}
        return where[int(seen[-1][-balls:].argmax())]

    return act


@pytest.mark.parametrize("sizes", [{"balls": 3, "questions": 8, "length": 13}, {"states": 6, "balls": 6}])
def test_the_expert_follows_several_balls(sizes):
    env = make(ID, **sizes)
    expert = follow_several(sizes.get("states", 5), sizes["balls"])
    results = [play_one(env, expert, seed) for seed in range(23)]
    assert [success for _, success, _ in results] == [True] * 23
    np.testing.assert_allclose([total for total, _, _ in results], 1)


def test_several_balls_without_memory():
    """Over all episodes of 3 cups, 2 balls and 2 swaps, and policies that read the last observation alone."""
    states, balls, length = 3, 2, 4
    orders = [np.array(order) for order in permutations(range(states))]
    swaps, which = (list(product(numbers, repeat=2)) for numbers in (range(3, 6), range(balls)))
    draws = list(product(orders, swaps, [np.array([0])], which))
    assert len(draws) == 6 * 9 * 4
    task, seen_rewards = HiddenAutomaton(len(draws), states, 2, length, balls), []
    for answers in np.random.default_rng(0).integers(states, size=(29, 3, balls)):  # by the swap and the ball asked for
        start_all(task, draws)
        returns, success = play_all(
            task, lambda seen, a=answers: a[seen[-1][:, 3:6].argmax(1), seen[-1][:, -2:].argmax(1)]
        )
        seen_rewards.append(returns.mean())
        assert success.mean() <= 1 / states + 1e-12
    np.testing.assert_allclose(seen_rewards, 1 / states)


def test_an_episode_with_two_balls():
    draws = (np.array([2, 0, 1]), [5, 3], np.array([0]), [1, 0])  # ball 0 under cup 2, ball 1 under cup 0
    task = start_all(HiddenAutomaton(1, 3, 2, 4, balls=2), [draws])
    seen, rewards, places = [task.observe()[0].tolist()], [], [task.cue_info()["cue"]]
    for action in (2, 0, 0, 0):  # after (1, 2) they are under 1 and 0, after (0, 1) under 0 and 1
        outcome = task.step(np.array([action]))
        seen.append(task.observe()[0].tolist())
        rewards.append(float(outcome.rewards[0]))
        places.append(task.cue_info()["cue"])
    assert seen == [
        [0, 0, 1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 1, 1, 0, 1],
        [0, 0, 0, 1, 0, 0, 1, 1, 0],
        [0] * 9,
    ]
    assert places[:4] == ["2 0", "2 0", "1 0", "0 1"]
    assert rewards == [0, 0, 0.5, 0.5]
    assert outcome.success[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"states": 1}, r"^states must be a whole number, at least 2, got 1$"),
        ({"states": 2.5}, r"^states must be a whole number, at least 2, got 2\.5$"),
        ({"length": 1}, r"^length must be a whole number, at least 2, got 1$"),
        ({"length": 5, "questions": 5}, r"^questions must be a whole number, 1 to 4, got 5$"),
        ({"balls": 6}, r"^balls must be a whole number, 1 to 5, got 6$"),
        ({"balls": 3, "length": 3}, r"^length must be a whole number, at least 4, got 3$"),
        ({"balls": 3, "length": 6, "questions": 4}, r"^questions must be a whole number, 1 to 3, got 4$"),
        ({"questions": True}, r"^questions must be a whole number, 1 to 31, got True$"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(ID, **kwargs)
