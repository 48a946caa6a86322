"""Episodes are counted fairly, and the numbers about them are right."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import envs
from envs.start_states import FixedStart, start_states
from fbrl import MemoryPPO
from fbrl.evaluation import AgentError, Episodes, Stopped, load_agent, play, summarise, wilson
from fbrl.vec_env import StepLimit

TASK = "fbrl/TMaze-v0"
FORWARD, UP, JUNCTION = 0, 1, 3


class ScriptedAgent:
    """Walks to the junction and turns the way that the cue, its state, says; without the cue it goes up."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        cue = np.zeros(len(observation), dtype=int) if state is None else np.where(episode_start, 0, state[0])
        cue = np.where(observation < 2, observation, cue)
        return np.where(observation == JUNCTION, UP + cue, FORWARD), (cue,)


class Spinner:
    """Turns left, or walks on where it cannot, for ever."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(len(episode_start), dtype=int), None


class Silent(gym.Wrapper):
    """Reports no success."""

    def step(self, action):
        *rest, _ = self.env.step(action)
        return *rest, {}


def every_start(**kwargs):
    states = start_states(TASK, **kwargs)
    env = DummyVecEnv([lambda state=state: FixedStart(envs.make(TASK, **kwargs), state.draws) for state in states])
    return env, [state.probability for state in states]


def vec_env(*corridors):
    return DummyVecEnv([partial(envs.make, TASK, seed=i, corridor=length) for i, length in enumerate(corridors)])


def episodes(success, returns=None, lengths=None):
    count = len(success)
    returns = np.zeros(count) if returns is None else np.array(returns, dtype=float)
    lengths = np.ones(count, dtype=int) if lengths is None else np.array(lengths)
    return Episodes(np.array(success, dtype=float), returns, lengths)


def test_every_start_of_the_t_maze_is_solved_with_memory_and_half_of_them_without():
    env, probability = every_start(corridor=5)
    with_memory = summarise(play(ScriptedAgent(), env), probability)
    assert with_memory.success == with_memory.returns == (1, 1, 1)
    assert with_memory.length == (6, 6, 6)
    without = play(ScriptedAgent(), env, zero_memory=True)
    np.testing.assert_array_equal(without.success, [1, 0])  # row i is start state i
    assert summarise(without, probability).success == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor])
def test_short_episodes_are_not_favoured(wrap):
    played = play(ScriptedAgent(), wrap(vec_env(1, 9)), 4)
    np.testing.assert_array_equal(played.lengths, [2, 2, 10, 10])
    np.testing.assert_array_equal(played.success, np.ones(4))
    np.testing.assert_allclose(played.returns, np.ones(4))


def test_the_number_of_episodes_need_not_divide():
    assert sorted(play(ScriptedAgent(), vec_env(1, 4), 5).lengths) in ([2, 2, 5, 5, 5], [2, 2, 2, 5, 5])
    assert len(play(ScriptedAgent(), vec_env(1, 4), 1).lengths) == 1


def test_less_than_one_episode_is_refused():
    with pytest.raises(ValueError, match="n_episodes must be at least 1, got 0"):
        play(ScriptedAgent(), vec_env(1), 0)


def test_success_is_unknown_where_the_task_does_not_report_it():
    played = play(ScriptedAgent(), DummyVecEnv([lambda: Silent(envs.make(TASK))]), 2)
    assert np.isnan(played.success).all()
    assert summarise(played).success is None
    assert summarise(played).returns.value == 1


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (0, 10, (0, 0, 0.27753)),  # z^2 / (n + z^2), z = 1.95996
        (10, 10, (1, 0.72247, 1)),
        (8, 10, (0.8, 0.49016, 0.94332)),
        (81, 263, (81 / 263, 0.25529, 0.36620)),  # Newcombe 1998, table I
    ],
)
def test_wilson_interval(successes, trials, expected):
    np.testing.assert_allclose(wilson(successes, trials), expected, atol=1e-4)


def test_mean_and_its_t_interval():
    summary = summarise(episodes([1, 0, 1], returns=[1, 2, 3], lengths=[4, 4, 4]))
    half = 4.30265 / math.sqrt(3)  # t of 2 degrees of freedom at .975; the standard deviation is 1
    np.testing.assert_allclose(summary.returns, (2, 2 - half, 2 + half), rtol=1e-5)
    assert summary.length == (4, 4, 4)
    assert summary.success == wilson(2, 3)
    assert summary.episodes == 3


def test_one_episode_has_a_mean_but_no_t_interval():
    np.testing.assert_equal(summarise(episodes([1], returns=[0.5])).returns, (0.5, math.nan, math.nan))


def test_start_states_count_by_their_probability():
    summary = summarise(episodes([1, 0, 1], [2, 0, 4], [1, 2, 3]), [0.5, 0.375, 0.125])
    assert summary.success == (0.625, 0.625, 0.625)
    assert summary.returns.value == 1.5
    assert summary.length.value == 1.625


@pytest.mark.parametrize("probability", [[0.5, 0.6], [1.0], [0.5, 0.25, 0.25]])
def test_probabilities_that_do_not_fit_are_refused(probability):
    with pytest.raises(ValueError, match="probability must be 2 numbers that sum to one"):
        summarise(episodes([1, 0]), probability)


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        summarise(episodes([]))


def test_a_saved_agent_comes_back_as_what_it_was(tmp_path):
    env = vec_env(2, 2)
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 3}
    agents = {
        MemoryPPO: MemoryPPO("MlpPolicy", env, device="cpu", policy_kwargs={"core_kwargs": sizes}),
        PPO: PPO("MlpPolicy", env, n_steps=32, device="cpu"),
    }
    for kind, agent in agents.items():
        agent.save(tmp_path / "agent.zip")
        loaded = load_agent(tmp_path / "agent.zip", "cpu")
        assert type(loaded) is kind
        results = []
        for player in (agent, loaded):
            set_random_seed(5)
            env.seed(5)
            results.append(play(player, env, 6))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("content", [None, b"", b"not a zip"])
def test_a_file_without_an_agent_is_named(tmp_path, content):
    path = tmp_path / "agent.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AgentError, match=r"agent\.zip: (no such file|holds no agent)"):
        load_agent(path)


class AtTheEnd(Silent):
    """Reports success with the last step of an episode only."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, info if terminated else {}


@pytest.mark.parametrize("wrap", [lambda env: env, AtTheEnd])
def test_what_was_cut_is_not_solved(wrap):
    """Also where the task reports success at the end of an episode, which it was not let get to."""
    makes = [lambda length=length: StepLimit(wrap(envs.make(TASK, corridor=length)), 5) for length in (2, 50)]
    played = play(ScriptedAgent(), DummyVecEnv(makes))
    np.testing.assert_array_equal(played.cut, [False, True])
    np.testing.assert_array_equal(played.success, [1, 0])
    summary = summarise(played)
    assert (summary.cut, summary.success.value, summary.length.value) == (1, 0.5, 4)


def test_success_stays_unknown_where_all_is_cut():
    played = play(ScriptedAgent(), DummyVecEnv([lambda: StepLimit(AtTheEnd(envs.make(TASK, corridor=50)), 5)]), 3)
    assert summarise(played).success is None
    assert summarise(played).cut == 3


def test_what_is_cut_of_a_task_that_reports_at_the_end_is_not_solved_though_all_is():
    """MiniGrid's tasks are known to report success; another is, once one of its episodes has done so."""
    env = DummyVecEnv([lambda: StepLimit(envs.make("MiniGrid-Empty-5x5-v0"), 3)])
    summary = summarise(play(Spinner(), env, 2))
    assert (summary.success.value, summary.cut) == (0, 2)
    env = DummyVecEnv([lambda: StepLimit(AtTheEnd(envs.make(TASK, corridor=2)), 4)])
    assert summarise(play(ScriptedAgent(), env, 1)).success.value == 1
    summary = summarise(play(Spinner(), env, 2))
    assert (summary.success.value, summary.cut) == (0, 2)


def test_playing_can_be_stopped():
    steps = []

    def stopped():
        steps.append(1)
        return len(steps) == 7

    with pytest.raises(Stopped):
        play(ScriptedAgent(), vec_env(50), stopped=stopped)
    assert len(steps) == 7


def test_a_folder_gives_its_best_agent_else_its_last(tmp_path):
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 3}
    agent = MemoryPPO("MlpPolicy", vec_env(2, 2), device="cpu", policy_kwargs={"core_kwargs": sizes})
    with pytest.raises(AgentError, match=r"holds neither best\.zip nor last\.zip"):
        load_agent(tmp_path, "cpu")
    for name, steps in (("last.zip", 13), ("best.zip", 7)):
        agent.num_timesteps = steps
        agent.save(tmp_path / name)
        assert load_agent(tmp_path, "cpu").num_timesteps == steps
