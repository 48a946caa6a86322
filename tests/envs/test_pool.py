"""EnvPoolVecEnv: from equal states it goes the way of minigrid, and episodes end as Stable-Baselines3 asks.

The tests that need EnvPool are left out where it is not installed; ``make test-extras`` installs it.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import UnknownEnvironmentError, make
from envs.pool import EnvPoolVecEnv

S7 = "MiniGrid-MemoryS7-v0"
TASKS = [
    *("MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS11-v0", "MiniGrid-DoorKey-6x6-v0", "MiniGrid-MultiRoom-N2-S4-v0"),
    *("MiniGrid-LavaCrossingS9N1-v0", "MiniGrid-Empty-Random-5x5-v0", "MiniGrid-Fetch-5x5-N2-v0"),
    *("MiniGrid-ObstructedMaze-1Dl-v0", "MiniGrid-LockedRoom-v0"),
]


def make_pool(env_id=S7, n_envs=3, seed=5, max_steps=None, **kwargs):
    """The environments, or a skipped test; ``max_steps`` brings about many ends."""
    pytest.importorskip("envpool")
    pool = EnvPoolVecEnv(env_id, n_envs, seed, **kwargs)
    if max_steps is not None:
        pool._max_steps = max_steps
    return pool


def copy_level(pool, index, env):
    """Puts minigrid's environment into the state that EnvPool's is in at the start of an episode."""
    level = pool._pool.debug_states([index])[0]
    base = env.unwrapped
    base.step_count, base.carrying, base.mission = 0, None, level.mission
    base.agent_pos, base.agent_dir = tuple(level.agent_pos), level.agent_dir
    base.grid = Grid(level.width, level.height)
    cells = np.reshape(level.grid, (level.width, level.height, 3)).tolist()
    inside = np.reshape(level.grid_contains, (level.width, level.height, 3)).tolist()
    for x, y in np.ndindex(level.width, level.height):
        thing = WorldObj.decode(*cells[x][y])
        if thing is not None:
            thing.cur_pos, thing.contains = (x, y), WorldObj.decode(*inside[x][y])
        base.grid.set(x, y, thing)
    base.success_pos, base.failure_pos = tuple(level.success_pos), tuple(level.failure_pos)
    base.targetType, base.targetColor = IDX_TO_OBJECT[level.target_type], IDX_TO_COLOR[level.target_color]
    base.obj = base.grid.get(*level.target_pos) if min(level.target_pos) >= 0 else None


def stepped(env, action):
    """A step of minigrid's environment under Stable-Baselines3's conventions."""
    observation, reward, terminated, truncated, info = env.step(action)
    return observation, np.float32(reward), terminated or truncated, truncated and not terminated, info


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("env_id", TASKS)
def test_from_equal_states_all_goes_as_in_minigrid(env_id, size):
    """Observations, last observations, rewards, ends, success and episode statistics, over many ends of both kinds."""
    previous = {"previous_action": size == 3, "previous_reward": size != 7}
    pool = make_pool(env_id, n_envs=5, max_steps=29, agent_view_size=size, **previous)
    envs = [Monitor(make(env_id, max_steps=29, agent_view_size=size, **previous)) for _ in range(5)]
    rng = np.random.default_rng(size)
    observations = pool.reset()
    for index, env in enumerate(envs):
        env.reset(seed=0)
        copy_level(pool, index, env)
    ends = 0
    for _ in range(120):
        actions = rng.choice(7, size=5, p=[0.17, 0.17, 0.34, 0.1, 0.05, 0.16, 0.01])
        kept, before = observations, {key: part.copy() for key, part in observations.items()}
        observations, rewards, dones, infos = pool.step(actions)
        for key, part in kept.items():
            np.testing.assert_array_equal(part, before[key])  # what was handed out stays as it was
        for index, env in enumerate(envs):
            expected, reward, done, cut, info = stepped(env, actions[index])
            last = infos[index]["terminal_observation"] if done else {k: p[index] for k, p in observations.items()}
            np.testing.assert_equal(last, expected)
            assert (rewards[index], dones[index], infos[index]["TimeLimit.truncated"]) == (reward, done, cut)
            assert ("episode" in infos[index], "is_success" in infos[index]) == (done, done)
            if done:
                ends += 1
                assert infos[index]["is_success"] is info["is_success"]
                assert [infos[index]["episode"][key] for key in "rl"] == [info["episode"][key] for key in "rl"]
                env.reset()
                copy_level(pool, index, env)
                fresh = env.unwrapped.gen_obs()
                np.testing.assert_array_equal(observations["image"][index], fresh["image"])
                assert observations["direction"][index] == fresh["direction"]
    assert ends >= 20
    assert rewards.dtype == np.float32
    assert dones.dtype == bool


def walk(pool, index, good):
    """The moves from the start of a memory task to the right or the wrong object."""
    level = pool._pool.debug_states([index])[0]
    (x, y), (column, row) = (level.success_pos if good else level.failure_pos), level.agent_pos
    turns = {0: [], 1: [0], 2: [0, 0], 3: [1]}[level.agent_dir]  # to the right
    return turns + [2] * (x - column) + [0 if y < row else 1] + [2]


@pytest.mark.parametrize("good", [True, False])
def test_an_end_in_the_last_step_allowed_is_not_a_time_limit(good):
    """EnvPool itself calls such an end cut short, and its value would be bootstrapped."""
    pool = make_pool(n_envs=1)
    pool.reset()
    moves = walk(pool, 0, good)
    for spare, ended in ((0, True), (-1, False)):
        pool._max_steps = len(moves) + spare
        pool.seed(5)
        pool.reset()
        for move in moves[: pool._max_steps]:
            _, rewards, dones, infos = pool.step(np.array([move]))
        assert dones.all()
        assert infos[0]["TimeLimit.truncated"] is not ended
        assert infos[0]["is_success"] is (good and ended)
        assert rewards[0] == np.float32(0.1 if good and ended else 0)
        assert infos[0]["episode"]["l"] == pool._max_steps


def test_limits_are_minigrids():
    pool = make_pool(n_envs=2)
    pool.reset()
    for _ in range(5 * 7**2):
        assert not pool._returns.any()
        _, _, dones, infos = pool.step(np.zeros(2, dtype=int))
        assert dones.all() == (infos[0].get("episode", {"l": 0})["l"] == 5 * 7**2)
    assert dones.all()


def test_episodes_start_in_the_step_that_ends_the_last():
    """The next episode's first action moves, and is not swallowed by EnvPool's own reset."""
    pool = make_pool(n_envs=2, max_steps=3)
    pool.reset()
    for _ in range(3):
        observations, _, dones, infos = pool.step(np.array([0, 0]))
    assert dones.all()
    turned = pool.step(np.array([0, 1]))[0]["direction"]
    np.testing.assert_array_equal(turned, (observations["direction"] + [-1, 1]) % 4)
    assert [info["episode"]["l"] for info in infos] == [3, 3]


@pytest.mark.parametrize("env_id", ["fbrl/MemoryS9-View3-v0", "fbrl/MemoryS13-View3-v0", *TASKS])
@pytest.mark.parametrize("previous", [False, True])
def test_the_spaces_are_those_of_make(env_id, previous):
    pool = make_pool(env_id, previous_action=previous, previous_reward=previous)
    env = make(env_id, previous_action=previous, previous_reward=previous)
    assert pool.observation_space == env.observation_space
    assert pool.action_space == env.action_space
    expected = DummyVecEnv([lambda: env]).reset()
    observations = pool.reset()
    assert list(observations) == list(expected)
    for key, part in expected.items():
        assert (observations[key].dtype, observations[key].shape[1:]) == (part.dtype, part.shape[1:])
    for index in range(3):
        assert pool.observation_space.contains({key: part[index] for key, part in observations.items()})


@pytest.mark.parametrize("size", [7, 9, 11, 13])
def test_our_ids_are_minigrids_through_a_smaller_view(size):
    ours, official = f"fbrl/MemoryS{size}-View3-v0", f"MiniGrid-MemoryS{size}-v0"
    small, full = make_pool(ours), make_pool(official, agent_view_size=3)
    np.testing.assert_equal(small.reset(), full.reset())
    assert small._max_steps == full._max_steps
    assert make_pool(ours, agent_view_size=5).reset()["image"].shape == (3, 5, 5, 3)


def record(pool, steps=300):
    """All that random play sees."""
    rng = np.random.default_rng(0)
    seen = [pool.reset()]
    for _ in range(steps):
        observations, rewards, dones, infos = pool.step(rng.integers(7, size=pool.num_envs))
        for info in infos:
            info.get("episode", {}).pop("t", None)
        seen.append((observations, rewards, dones, infos))
    return seen


def test_the_seed_decides():
    first, again = (record(make_pool(max_steps=17)) for _ in range(2))
    np.testing.assert_equal(first, again)
    other = record(make_pool(max_steps=17, seed=6))
    with pytest.raises(AssertionError):
        np.testing.assert_equal(first, other)


def test_environment_i_gets_seed_plus_i():
    rows = [record(make_pool("MiniGrid-DoorKey-6x6-v0", n_envs=4, seed=7))[step] for step in (0, 200)]
    alone = [record(make_pool("MiniGrid-DoorKey-6x6-v0", n_envs=1, seed=9))[0]]
    np.testing.assert_array_equal(rows[0]["image"][2], alone[0]["image"][0])
    assert not (rows[0]["image"][2] == rows[0]["image"][1]).all()


def test_seeding_later_starts_the_levels_over():
    pool = make_pool("MiniGrid-DoorKey-6x6-v0")
    first, second = pool.reset(), pool.reset()
    assert not (first["image"] == second["image"]).all()
    assert pool.seed(5) == [5, 6, 7]
    np.testing.assert_equal(pool.reset(), first)
    pool.seed(2**31 + 5)  # beyond what EnvPool takes
    np.testing.assert_equal(pool.reset(), first)
    pool.seed()
    pool.reset()


class Agent:
    """Always takes the same action."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation["direction"]), 2), state


def test_evaluate_policy_counts_episodes():
    pool = make_pool(max_steps=11)
    assert pool.env_is_wrapped(Monitor) == [True, True, True]
    assert pool.env_is_wrapped(gym.wrappers.TimeLimit, indices=1) == [False]
    returns, lengths = evaluate_policy(Agent(), pool, n_eval_episodes=7, return_episode_rewards=True)
    assert (returns, lengths) == ([0.0] * 7, [11] * 7)


def test_the_time_in_steps_is_counted():
    pool = make_pool()
    assert pool.seconds_stepping == 0.0
    pool.reset()
    pool.step(np.zeros(3, dtype=int))
    once = pool.seconds_stepping
    pool.step(np.zeros(3, dtype=int))
    assert 0.0 < once < pool.seconds_stepping < 10.0


def test_what_the_environments_lack():
    pool = make_pool()
    assert pool.get_attr("render_mode", indices=[0, 2]) == [None, None]
    assert pool.has_attr("render_mode")
    assert not pool.has_attr("spec")
    for call in (lambda: pool.set_attr("a", 1), lambda: pool.env_method("a"), lambda: pool.get_attr("a")):
        with pytest.raises(AttributeError, match="EnvPool's environments have no a"):
            call()


def test_they_cannot_be_pickled_and_say_so():
    pool = make_pool()
    pool.reset()
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle"):
            dumps(pool)
    pool.step(np.zeros(3, dtype=int))  # nor does the attempt harm them


@pytest.mark.parametrize("end", ["pool.close(); pool.close()", "raise SystemExit(3)"])
def test_the_process_ends_in_order(end):
    pytest.importorskip("envpool")
    code = f"""
import numpy as np
from envs.pool import EnvPoolVecEnv
pool = EnvPoolVecEnv("MiniGrid-MemoryS7-v0", 8, 0, agent_view_size=3)
pool.reset()
for _ in range(300):
    pool.step(np.full(8, 2))
{end}
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (3 if "Exit" in end else 0, "", "")


@pytest.mark.parametrize("actions", [[0, 7, 1], [0, -1, 1]])
def test_an_action_that_does_not_exist_is_refused(actions):
    """In EnvPool it would end the process."""
    pool = make_pool()
    pool.reset()
    with pytest.raises(ValueError, match=rf"actions must be in Discrete\(7\), got \[0, {actions[1]}, 1\]"):
        pool.step(np.array(actions))


@pytest.mark.parametrize("size", [1, 2, 4, 6, 9, 15, "7", None])
def test_other_views_are_refused(size):
    with pytest.raises(ValueError, match=f"^agent_view_size must be 3, 5 or 7 for EnvPool, got {size}$"):
        EnvPoolVecEnv(S7, 2, 0, agent_view_size=size)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^kwargs must hold agent_view_size only for EnvPool, got max_steps$"):
        EnvPoolVecEnv(S7, 2, 0, agent_view_size=3, max_steps=10)


@pytest.fixture
def registered():
    """Tasks of a user's own: a view and a time limit that EnvPool lacks."""
    gym.register("tests/View9-v0", "minigrid.envs:MemoryEnv", kwargs={"size": 7, "agent_view_size": 9})
    gym.register("tests/Short-v0", "minigrid.envs:MemoryEnv", kwargs={"size": 7}, max_episode_steps=9)
    yield
    del gym.registry["tests/View9-v0"], gym.registry["tests/Short-v0"]


OTHERS = [
    *("fbrl/TMaze-v0", "fbrl/MemoryS21-v0", "fbrl/MemoryS33-View3-v0", "CartPole-v1", "BabyAI-GoToObj-v0"),
    *("MiniGrid-MultiRoom-N4-S5-v1", "tests/Short-v0"),
]


@pytest.mark.parametrize("env_id", OTHERS)
def test_tasks_that_envpool_lacks_are_refused(env_id, registered):
    pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=f"^env_id must be a MiniGrid task that EnvPool has .*, got {env_id}$"):
        EnvPoolVecEnv(env_id, 2, 0)


def test_a_registered_view_that_envpool_lacks_is_refused(registered):
    with pytest.raises(ValueError, match=r"^agent_view_size must be 3, 5 or 7 for EnvPool, got 9$"):
        make_pool("tests/View9-v0")


def test_an_unknown_id_names_the_closest():
    with pytest.raises(UnknownEnvironmentError, match=S7):
        EnvPoolVecEnv("MiniGrid-MemoryS7-v9", 2, 0)


def test_without_envpool_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"^EnvPool is not installed: pip install fbrl\[envpool\]$"):
        EnvPoolVecEnv(S7, 2, 0)
