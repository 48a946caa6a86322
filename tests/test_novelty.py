"""The bonus for observations that an episode has not shown yet, and what is logged of a rollout."""

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from fbrl import EpisodicNovelty, MemoryPPO
from tests.tasks import DICT, VECTOR, collect, make_model, vec

BONUS = 0.25


class Corridor(gym.Env):
    """Places 0 .. 6, of which the action -1, 0 or 1 leads to the next; 11 steps; pays 1 in the last step."""

    def __init__(self, space=None, show=lambda place, action: place, actions=None):
        self.observation_space = space or spaces.Discrete(7)
        self.action_space = actions or spaces.Discrete(3, start=-1)
        self.show = show

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.t = 3, 0
        return self.show(3, 0), {}

    def step(self, action):
        self.place, self.t = min(max(self.place + int(action), 0), 6), self.t + 1
        return self.show(self.place, int(action)), float(self.t == 11), self.t == 11, False, {}


def corridors(n=2, bonus=BONUS, monitor=True, steps=None, ignored=(), **kwargs):
    wrap = Monitor if monitor else lambda env: env
    return EpisodicNovelty(DummyVecEnv([lambda: wrap(Corridor(**kwargs)) for _ in range(n)]), bonus, steps, ignored)


def walk(env, moves):
    """The rewards (steps, n) of moves (steps, n), and the infos."""
    return [env.step(np.array(move))[1::2] for move in moves]


def test_each_new_observation_is_paid_for_once():
    env = corridors()
    env.reset()
    moves = [(1, 0), (1, 0), (-1, 0), (-1, -1), (-1, 1), (-1, 0)]
    rewards = np.array([rewards for rewards, _ in walk(env, moves)]) / BONUS
    # places 4, 5, 4, 3, 2, 1 and 3, 3, 3, 2, 3, 3; both start at 3
    np.testing.assert_array_equal(rewards[:, 0], [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(rewards[:, 1], [0, 0, 0, 1, 0, 0])


def test_an_episode_starts_anew_and_its_last_observation_is_not_paid_for():
    env = corridors(1)
    env.reset()
    steps = walk(env, [(0,)] * 9 + [(1,), (1,), (1,), (-1,)])
    # 4 is new, then 5 ends the episode with the task's own 1, then 4 is new again, then 3, where the episode began
    np.testing.assert_allclose([rewards[0] for rewards, _ in steps[8:]], [0, BONUS, 1, BONUS, 0])
    episode = steps[10][1][0]["episode"]
    assert episode["r"] == 1
    assert episode["novelty"] == BONUS


def test_every_whole_numbered_space():
    """Equal numbers are equal observations, of whatever kind; -0.0 is 0."""
    for space, show in (
        (spaces.MultiDiscrete([7, 2]), lambda place, _: np.array([place, 1])),
        (spaces.MultiBinary(3), lambda place, _: np.array([place >> bit & 1 for bit in range(3)], np.int8)),
        (spaces.Box(0, 9, (2, 2), np.uint8), lambda place, _: np.full((2, 2), place, np.uint8)),
        (spaces.Box(-9, 9, (2,), np.float32), lambda place, action: np.array([place, action * 0.0], np.float32)),
        (spaces.Dict({"a": spaces.Discrete(7), "b": VECTOR}), lambda place, _: {"a": place, "b": np.ones(3)}),
    ):
        env = corridors(1, space=space, show=show)
        env.reset()
        rewards = [rewards[0] for rewards, _ in walk(env, [(1,), (-1,), (1,), (0,), (-1,)])]
        np.testing.assert_allclose(rewards, [BONUS, 0, 0, 0, 0], err_msg=str(space))


def test_what_is_ignored_does_not_count():
    space = spaces.Dict({"place": spaces.Discrete(7), "action": spaces.Discrete(3, start=-1)})

    def total(ignored):
        env = corridors(1, space=space, show=lambda place, action: {"place": place, "action": action}, ignored=ignored)
        env.reset()
        return sum(rewards[0] for rewards, _ in walk(env, [(1,), (-1,), (1,), (0,)])) / BONUS

    assert total(()) == 3  # (4, 1), (3, -1), (4, 0)
    assert total(["action"]) == 1


def test_the_bonus_falls_to_zero():
    env = corridors(2, steps=8)  # of both together
    env.reset()
    rewards = np.array([rewards for rewards, _ in walk(env, [(1, -1), (1, -1), (1, -1), (-1, 1), (0, 0)])])
    np.testing.assert_allclose(rewards[:3], BONUS * np.array([[1, 1], [0.75, 0.75], [0.5, 0.5]]))
    assert env.bonus == 0
    assert rewards[3:].sum() == 0


def test_real_numbers_are_refused_when_they_are_met():
    env = EpisodicNovelty(vec(), BONUS)
    with pytest.raises(
        ValueError, match=r"^observation must be in whole numbers for a novelty bonus, or be ignored, got "
    ):
        env.reset()
    env = EpisodicNovelty(vec(observation_space=DICT), BONUS)
    with pytest.raises(ValueError, match=r"^observation\['vector'\] must be in whole numbers"):
        env.reset()
    EpisodicNovelty(vec(observation_space=DICT), BONUS, ignored=["vector"]).reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bonus": -0.1}, "bonus must be at least 0, got -0.1"),
        ({"bonus": float("nan")}, "bonus must be at least 0, got nan"),
        ({"steps": 0}, "steps must be at least 1, or None for a bonus that stays, got 0"),
        ({"ignored": [""]}, r"ignored must leave a part of the observation, got \[''\]"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        corridors(**arguments)


def test_what_was_seen_is_pickled():
    env = corridors(steps=1000)
    env.reset()
    walk(env, [(1, 0)])
    copy = cloudpickle.loads(cloudpickle.dumps(env))
    assert copy.num_envs == 2
    for one, other in zip(walk(env, [(-1, 1), (1, 1)]), walk(copy, [(-1, 1), (1, 1)]), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert copy.bonus == env.bonus < BONUS
    assert copy.sums.tolist() == env.sums.tolist()


def test_it_goes_below_what_changes_observations():
    env = VecFrameStack(corridors(space=spaces.Box(0, 9, (1,)), show=lambda place, _: np.array([place], np.float32)), 3)
    env.reset()
    assert walk(env, [(1, 0)])[0][0].tolist() == [BONUS, 0]
    assert walk(env, [(-1, 0)])[0][0].tolist() == [0, 0]  # the stack is new, the place is not
    env = VecNormalize(corridors(space=spaces.Box(0, 9, (1,)), show=lambda place, _: np.array([place], np.float32)))
    make_model(env=env).learn(24)


def test_without_a_monitor_nothing_is_said_of_episodes():
    env = corridors(1, monitor=False)
    env.reset()
    infos = walk(env, [(0,)] * 11)[-1][1]
    assert "episode" not in infos[0]


def learned(env, **kwargs):
    model = make_model(env=env, n_steps=24, **kwargs)
    records = Logger(folder=None, output_formats=[])
    model.set_logger(records)
    collect(model, rollouts=2)
    return model, records.name_to_value


def test_what_is_logged():
    model, figures = learned(corridors(3))
    taken = model.rollout_buffer.actions.ravel() + 1
    for action in range(3):
        assert figures[f"rollout/p_action_{action}"] == pytest.approx(np.mean(taken == action))
    sums = [episode["novelty"] for episode in model.ep_info_buffer]
    assert len(sums) == 3 * (48 // 11)
    assert figures["rollout/novelty"] == pytest.approx(np.mean(sums))
    assert 0 < np.mean(sums) <= 6 * BONUS
    assert {episode["r"] for episode in model.ep_info_buffer} == {1.0}
    # what is learned from is both
    assert model.rollout_buffer.rewards.sum() > sum(episode["r"] for episode in list(model.ep_info_buffer)[-6:])


def test_what_is_not_logged():
    _, figures = learned(vec())
    assert "rollout/novelty" not in figures
    assert "rollout/p_action_2" in figures
    assert "rollout/p_action_3" not in figures
    _, figures = learned(vec(action_space=spaces.Box(-1, 1, (2,))))
    assert not [name for name in figures if name.startswith("rollout/p_action")]
    _, figures = learned(vec(action_space=spaces.Discrete(33)))
    assert not [name for name in figures if name.startswith("rollout/p_action")]


def test_evaluations_without_it_see_no_bonus(tmp_path):
    model, _ = learned(corridors(3))
    model.save(tmp_path / "model")
    agent = MemoryPPO.load(tmp_path / "model", device="cpu")
    mean, _ = evaluate_policy(agent, DummyVecEnv([lambda: Monitor(Corridor())]), n_eval_episodes=2)
    assert mean == 1
