"""SymbolicObservation: MiniGrid's observations, without text and without loss."""

import contextlib
import io

import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.minigrid_env import MiniGridEnv
from stable_baselines3.common.preprocessing import is_image_space

from envs import make
from fbrl.encoders import MiniGridEncoder
from fbrl.mission import BABYAI_LENGTH, UNKNOWN, WORDS
from fbrl.symbolic import SymbolicObservation


def words(tokens):
    return " ".join(WORDS[token - 1] for token in tokens if token)


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS11-v0", "MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToObj-v0"])
def test_observations_are_those_of_minigrid(env_id):
    ours, raw = make(env_id), gym.make(env_id)
    observation, _ = ours.reset(seed=4)
    expected, _ = raw.reset(seed=4)
    for action in np.random.default_rng(0).integers(7, size=100):
        np.testing.assert_array_equal(observation["image"], expected["image"])
        assert observation["direction"] == expected["direction"]
        assert ours.observation_space.contains(observation)
        observation, reward, terminated, truncated, _ = ours.step(action)
        expected, *rest, _ = raw.step(action)
        assert [reward, terminated, truncated] == rest
        if terminated or truncated:
            observation, expected = ours.reset()[0], raw.reset()[0]


def test_the_image_is_symbols_with_tight_bounds():
    space = make("MiniGrid-MemoryS11-v0").observation_space["image"]
    assert space.shape == (7, 7, 3)
    assert space.dtype == np.uint8
    np.testing.assert_array_equal(space.high, np.broadcast_to([10, 5, 2], (7, 7, 3)))
    assert not is_image_space(space)


@pytest.mark.parametrize(
    "env_id", ["MiniGrid-MemoryS11-v0", "MiniGrid-DoorKey-5x5-v0", "MiniGrid-ObstructedMaze-1Dl-v0"]
)
def test_a_mission_that_never_changes_is_left_out(env_id):
    env = make(env_id)
    assert set(env.observation_space) == set(env.reset(seed=0)[0]) == {"image", "direction"}


@pytest.mark.parametrize("env_id", ["BabyAI-GoToObj-v0", "MiniGrid-Fetch-5x5-N2-v0", "MiniGrid-GoToDoor-5x5-v0"])
def test_a_mission_that_varies_is_tokens(env_id):
    env = make(env_id)
    missions = set()
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        missions.add(words(observation["mission"]))
        assert words(observation["mission"]) == env.unwrapped.mission
        after, *_ = env.step(0)
        np.testing.assert_array_equal(after["mission"], observation["mission"])
    assert len(missions) > 1
    assert not is_image_space(env.observation_space["mission"])


def test_an_unknown_word_is_named(monkeypatch):
    env = make("MiniGrid-Fetch-5x5-N2-v0")
    reset = env.unwrapped.reset
    monkeypatch.setattr(env.unwrapped, "reset", lambda **kwargs: ({**reset(**kwargs)[0], "mission": "go sideways"}, {}))
    with pytest.raises(ValueError, match="'sideways'"):
        env.reset(seed=0)


class OwnTask(MiniGridEnv):
    """A task that is not MiniGrid's own and sets its missions itself, one after the other."""

    def __init__(self, missions, mission_space=None):
        self.missions = missions
        super().__init__(mission_space or MissionSpace(lambda: "go to the goal"), grid_size=5, max_steps=9)
        self.count = 0

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.agent_pos, self.agent_dir = (1, 1), 0
        self.mission = self.missions[min(self.count, len(self.missions) - 1)]
        self.count += 1

    def step(self, action):
        if action == 6:
            self.mission = "well done"
        return super().step(action)


def test_a_mission_that_the_task_sets_itself_is_seen():
    """It is no other where its space says that there is one only."""
    env = SymbolicObservation(OwnTask(["go to the red ball", "go to the key"]))
    first, second = (env.reset(seed=seed)[0] for seed in (5, 6))
    assert (words(first["mission"]), words(second["mission"])) == ("go to the red ball", "go to the key")
    assert env.observation_space.contains(first)
    assert env.observation_space["mission"].shape == (BABYAI_LENGTH,)


def test_a_mission_of_ones_own_that_never_changes_is_left_out():
    assert "mission" not in SymbolicObservation(OwnTask(["go to the red ball"])).observation_space.spaces


def test_a_mission_that_changes_in_an_episode_is_seen():
    space = MissionSpace(lambda color: f"go to the {color} ball", [["red", "blue"]])
    env = SymbolicObservation(OwnTask(["go to the red ball"], space))
    assert words(env.reset(seed=0)[0]["mission"]) == "go to the red ball"
    assert words(env.step(0)[0]["mission"]) == "go to the red ball"
    assert env.step(6)[0]["mission"].tolist() == [UNKNOWN, UNKNOWN, 0, 0, 0]


def test_a_mission_that_changes_later_than_anyone_looked_is_named():
    env = SymbolicObservation(OwnTask(["go to the red ball"] * 9 + ["go to the key"]))
    assert "mission" not in env.reset(seed=0)[0]
    for seed in range(8):
        env.reset(seed=seed)
    message = r"^the mission of OwnTask changes, from 'go to the red ball' to 'go to the key', though"
    with pytest.raises(ValueError, match=message):
        env.reset()


@pytest.mark.parametrize(
    ("missions", "space"),
    [
        (["fetch the zorb", "fetch the red zorb"], None),
        (["fetch the zorb"], MissionSpace(lambda thing: f"fetch the {thing}", [["zorb", "key"]])),
    ],
    ids=["set", "declared"],
)
def test_an_unknown_word_has_a_token_of_its_own(missions, space):
    env = SymbolicObservation(OwnTask(missions, space))
    observation, _ = env.reset(seed=0)
    assert observation["mission"][:3].tolist() == [WORDS.index("fetch") + 1, WORDS.index("the") + 1, UNKNOWN]
    assert env.observation_space.contains(observation)
    encoder = MiniGridEncoder(env.observation_space, 16)
    assert encoder.encoders["mission"].words.num_embeddings == UNKNOWN + 1


def test_spaces_of_minigrids_own_tasks_are_those_of_saved_agents():
    """The token of unknown words is no word of theirs."""
    assert make("MiniGrid-Fetch-5x5-N2-v0").observation_space["mission"].high.max() == len(WORDS) < UNKNOWN


@pytest.mark.filterwarnings("ignore")  # that some ids are out of date
def test_every_registered_task_fits_its_space_and_is_silent(capsys):
    ids = [env_id for env_id in gym.registry if env_id.startswith(("MiniGrid-", "BabyAI-"))]
    playable = [env_id for env_id in ids if "WFC" not in env_id]  # these need files and an extra of minigrid
    for env_id in playable:
        env = make(env_id)
        for seed in range(2):
            observation, _ = env.reset(seed=seed)
            assert env.observation_space.contains(observation), env_id
    assert len(playable) > 150
    assert capsys.readouterr().out == ""


def test_babyai_would_have_printed():
    raw, ours = gym.make("BabyAI-PutNextLocal-v0").unwrapped, make("BabyAI-PutNextLocal-v0")
    loud, quiet = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(loud):
        for seed in range(20):
            raw.reset(seed=seed)
    with contextlib.redirect_stdout(quiet):
        for seed in range(20):
            ours.reset(seed=seed)
    assert "Sampling rejected" in loud.getvalue()
    assert quiet.getvalue() == ""
