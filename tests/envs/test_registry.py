"""make: what Stable-Baselines3 gets, success, unknown ids."""

import itertools
import subprocess
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import UnknownEnvironmentError, make
from envs.registry import register_tasks
from fbrl import MemoryPPO
from fbrl.encoders import MiniGridEncoder
from fbrl.spaces import check_spaces

OURS = ["fbrl/TMaze-v0", "fbrl/MemoryS7-View3-v0", "fbrl/MemoryS9-View3-v0", "fbrl/MazeNavigation-v0"]
OTHERS = ["MiniGrid-MemoryS11-v0", "MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToRedBallGrey-v0", "BabyAI-GoToObj-v0"]
IDS = [*OURS, *OTHERS]


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("env_id", IDS)
def test_passes_the_checker_of_stable_baselines3(env_id, previous):
    env = make(env_id, seed=1, previous_action=previous, previous_reward=previous)
    check_env(env, warn=False)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("env_id", IDS)
def test_success_comes_with_the_last_step(env_id):
    """In a vectorised environment with random actions, over episode ends of the task and of a time limit around it."""
    vec_env = DummyVecEnv([lambda seed=seed: make(env_id, seed=seed, max_episode_steps=40) for seed in range(2)])
    vec_env.reset()
    actions = np.random.default_rng(0).integers(vec_env.action_space.n, size=(130, 2))
    ends = 0
    for action in actions:
        _, rewards, dones, infos = vec_env.step(action)
        for reward, done, info in zip(rewards, dones, infos, strict=True):
            ends += done
            if done:
                assert info["is_success"] is bool(reward > 0)
            else:
                assert not info.get("is_success", False)
    assert ends >= 6


def walk_to(env, good):
    """Plays MiniGrid's memory task with full knowledge, to the right or to the wrong object: the last step's result."""
    base = env.unwrapped
    x, y = base.success_pos if good else base.failure_pos
    column, row = base.agent_pos
    moves = [2] * (x - column) + [0 if y < row else 1] + [2]
    results = [env.step(move) for move in moves]
    assert not any(info.get("is_success", False) for *_, info in results[:-1])
    return len(moves), results[-1]


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "fbrl/MemoryS7-View3-v0"])
def test_success_of_a_scripted_episode(env_id, good):
    env = make(env_id, seed=3)
    for _ in range(5):
        env.reset()
        steps, (_, reward, terminated, truncated, info) = walk_to(env, good)
        assert info["is_success"] is good
        assert (terminated, truncated) == (True, False)
        assert reward == (1 - 0.9 * steps / (5 * 7**2) if good else 0)


def test_time_running_out_is_no_success():
    env = make("fbrl/MemoryS7-View3-v0", seed=0)
    env.reset()
    for _ in range(5 * 7**2):
        *_, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["is_success"]) == (False, True, False)


def most_objects_in_view(env_id):
    """The most keys and balls that one observation can hold, over every free cell and direction."""
    base = make(env_id, seed=0).unwrapped
    base.reset()
    most = 0
    for x, y, direction in itertools.product(range(base.width), range(base.height), range(4)):
        if base.grid.get(x, y) is None:
            base.agent_pos, base.agent_dir = (x, y), direction
            most = max(most, np.isin(base.gen_obs()["image"][..., 0], (5, 6)).sum())
    return most


@pytest.mark.parametrize("size", [7, 9])
def test_the_small_view_never_holds_cue_and_choice(size):
    assert most_objects_in_view(f"MiniGrid-MemoryS{size}-v0") == 3
    assert most_objects_in_view(f"fbrl/MemoryS{size}-View3-v0") == 1


@pytest.mark.parametrize("size", [7, 9, 11, 13])
def test_the_small_view_is_all_that_differs(size):
    ours, official = make(f"fbrl/MemoryS{size}-View3-v0"), make(f"MiniGrid-MemoryS{size}-v0")
    assert ours.action_space == official.action_space == gym.spaces.Discrete(7)
    assert ours.unwrapped.max_steps == official.unwrapped.max_steps == 5 * size**2
    ours.reset(seed=5)
    official.reset(seed=5)
    assert ours.unwrapped.hash() == official.unwrapped.hash()
    assert ours.observation_space["image"].shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("name", "size", "view"), [("S21-View3", 21, 3), ("S33-View3", 33, 3), ("S21", 21, 7), ("S11-View3", 11, 3)]
)
def test_our_sizes_of_the_memory_task(name, size, view):
    env = make(f"fbrl/Memory{name}-v0")
    assert env.action_space == gym.spaces.Discrete(7)
    assert (env.unwrapped.width, env.unwrapped.height, env.unwrapped.max_steps) == (size, size, 5 * size**2)
    assert env.observation_space["image"].shape == (view, view, 3)
    smallest = make("fbrl/MemoryS7-View3-v0" if view == 3 else "MiniGrid-MemoryS7-v0")
    assert (env.observation_space, env.action_space) == (smallest.observation_space, smallest.action_space)


@pytest.mark.parametrize("env_id", IDS)
def test_equal_seeds_give_equal_episodes(env_id):
    def play(env):
        observation, _ = env.reset()
        seen = [observation]
        for _ in range(30):
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            seen += [observation, reward]
            if terminated or truncated:
                seen.append(env.reset()[0])
        return seen

    first, second = play(make(env_id, seed=11)), play(make(env_id, seed=11))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*initialised with render_mode")  # make_vec_env asks for pictures
@pytest.mark.parametrize("env_id", [name for name in gym.registry if name.startswith("fbrl/")])
def test_our_ids_are_usable_by_whoever_makes_them(env_id):
    """``gymnasium.make``, Stable-Baselines3's ``make_vec_env`` (rl-zoo3 uses it) and ``make`` give one environment."""
    ours, theirs = make(env_id), gym.make(env_id)
    vectorized = make_vec_env(env_id, n_envs=2, seed=0)
    assert ours.observation_space == theirs.observation_space == vectorized.observation_space
    assert str(ours) == str(theirs)
    check_spaces(vectorized)
    check_env(gym.make(env_id), warn=False)
    first, second = (env.reset(seed=3)[0] for env in (ours, theirs))
    np.testing.assert_equal(first, second)


@pytest.mark.parametrize("env_id", ["fbrl/MemoryS7-View3-v0", "fbrl/MazeNavigation-v0"])
def test_an_id_of_ours_is_wrapped_once(env_id):
    """By its arguments, its spec and its pickle too."""
    env = gym.make(env_id, max_episode_steps=7, render_mode="rgb_array")
    copies = (env, gym.make(env.spec), make(env_id, max_episode_steps=7), cloudpickle.loads(cloudpickle.dumps(env)))
    for made in copies:
        assert str(made).count("SymbolicObservation") == 1
        made.reset(seed=0)
        for _ in range(7):
            *_, truncated, info = made.step(0)
        assert truncated
        assert info["is_success"] is False
    assert env.render().ndim == 3


def test_ids_of_minigrid_stay_as_they_are():
    assert gym.make("MiniGrid-MemoryS7-v0").observation_space["image"].high.max() == 255


def test_an_agent_learns_on_an_id():
    sizes = {"core_kwargs": {"d_model": 8, "n_heads": 2, "window": 5}}
    model = MemoryPPO("MultiInputPolicy", "fbrl/MemoryS7-View3-v0", n_steps=32, device="cpu", policy_kwargs=sizes)
    assert isinstance(model.policy.features_extractor, MiniGridEncoder)
    assert model.learn(32).num_timesteps == 32


@pytest.mark.slow
def test_the_symbols_ship_with_the_library():
    """What makes MiniGrid symbolic is importable without this package."""
    code = (
        "import sys; sys.modules['envs'] = None; import gymnasium, minigrid; "
        "from fbrl.symbolic import SymbolicObservation; "
        "print(SymbolicObservation(gymnasium.make('MiniGrid-MemoryS7-v0')).observation_space['image'].high.max())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ALE/Pong-v5", "Namespace ALE not found. Have you installed the proper package for ALE?"),
        ("CartPole-v9", r"Environment version `v9` for environment `CartPole` doesn't exist.*closest are: CartPole-v1"),
    ],
)
def test_gymnasiums_own_advice_is_kept(name, advice):
    """Of ids whose package is not installed or not imported, and of other versions."""
    with pytest.raises(UnknownEnvironmentError, match=advice) as caught:
        make(name)
    assert "Ant" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_imported_by_the_id_and_one_that_lacks():
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'"):
        make("nowhere:Task-v0")
    with pytest.raises(gym.error.DependencyNotInstalled, match="Box2D is not installed"):
        make("LunarLander-v3")


class Raises(gym.Env):
    """Whose constructor raises one of Gymnasium's errors."""

    def __init__(self):
        raise gym.error.InvalidBound("no such bound")


def test_errors_of_the_task_are_not_taken_for_an_unknown_id():
    gym.register("Raises-v0", Raises)
    try:
        with pytest.raises(gym.error.InvalidBound, match="no such bound"):
            make("Raises-v0")
    finally:
        del gym.registry["Raises-v0"]


@pytest.mark.parametrize("name", ["MemoryS7", "MiniGrid-MemoryS7-v9", "minigrid-memorys7-v0", "Memory S7!"])
def test_unknown_id_names_the_closest(name):
    with pytest.raises(UnknownEnvironmentError, match="MiniGrid-MemoryS7-v0") as caught:
        make(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_id_close_to_nothing():
    with pytest.raises(ValueError, match=r"^no environment is called 'zzzzzz'$"):
        make("zzzzzz")


def test_other_environments_come_as_registered():
    env = make("CartPole-v1")
    assert env.observation_space == gym.make("CartPole-v1").observation_space
    env.reset(seed=0)
    done = False
    while not done:
        *_, terminated, truncated, info = env.step(0)
        done = terminated or truncated
    assert "is_success" not in info


def test_keywords_reach_the_environment():
    assert make("fbrl/TMaze-v0", corridor=3).unwrapped.task.junction == 3
    assert make("MiniGrid-MemoryS11-v0", agent_view_size=5).observation_space["image"].shape == (5, 5, 3)
    env = make("MiniGrid-MemoryS11-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (352, 352, 3)


def test_registering_twice_changes_nothing():
    before = dict(gym.registry)
    register_tasks()
    assert dict(gym.registry) == before
