"""MiniGrid under its own wrappers and others: what is shown is taken with its true bounds, or refused by name."""

from importlib.metadata import version

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minigrid import wrappers
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.minigrid_env import MiniGridEnv

from envs import make
from fbrl.encoders import MiniGridEncoder, is_minigrid_space
from fbrl.shown import CELL_HIGH, GRID_HIGH, image_space
from fbrl.symbolic import SymbolicObservation
from tests.tasks import make_model, vec

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
SYMBOLS = {"ViewSizeWrapper": (7, CELL_HIGH), "FullyObsWrapper": (5, GRID_HIGH)} | dict.fromkeys(
    (
        *("ReseedWrapper", "ActionBonus", "PositionBonus", "ImgObsWrapper", "StochasticActionWrapper", "NoDeath"),
        *("DirectionObsWrapper", "DictObservationSpaceWrapper"),
    ),
    (7, CELL_HIGH),
)
OTHER = {"OneHotPartialObsWrapper": ((7, 7, 20), 1), "RGBImgPartialObsWrapper": ((56, 56, 3), 255)} | {
    "RGBImgObsWrapper": ((40, 40, 3), 255)
}
REFUSED = ["SymbolicObsWrapper", "FlatObsWrapper"]
KWARGS = {"NoDeath": {"no_death_types": ["lava"]}, "DirectionObsWrapper": {"type": "angle"}}


def path(name):
    return {f"minigrid.wrappers.{name}": KWARGS.get(name, {})}


def test_all_wrappers_of_minigrid_are_here():
    """A new one has to be looked at."""
    kinds = [kind for kind in vars(wrappers).values() if isinstance(kind, type) and issubclass(kind, gym.Wrapper)]
    theirs = {kind.__name__ for kind in kinds if kind.__module__ == "minigrid.wrappers"}
    assert theirs == {*SYMBOLS, *OTHER, *REFUSED}


def play(env, steps=150):
    """Random steps, each of which shows what the space allows; how the episodes ended."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    successes = []
    for _ in range(steps):
        assert env.observation_space.contains(observation)
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            successes.append(info["is_success"])
            observation, _ = env.reset()
    return successes


@pytest.mark.parametrize("name", SYMBOLS)
@pytest.mark.filterwarnings("ignore:.*A seed has been passed")  # of ReseedWrapper
def test_symbols_have_their_true_bounds(name):
    if name == "DirectionObsWrapper" and version("minigrid") < "3.2":
        pytest.skip("before minigrid 3.2 it shows a key that is not in its space")
    size, high = SYMBOLS[name]
    env = make(DOOR_KEY, wrappers=[path(name)], max_steps=50)
    image = env.observation_space["image"]
    np.testing.assert_array_equal(image.high, np.broadcast_to(high, (size, size, 3)))
    assert is_minigrid_space(env.observation_space)
    assert play(env)


@pytest.mark.parametrize("name", OTHER)
def test_pictures_and_bits(name):
    shape, high = OTHER[name]
    env = make(DOOR_KEY, wrappers=[path(name)], max_steps=50)
    image = env.observation_space["image"]
    assert (image.shape, image.high.max()) == (shape, high)
    assert not is_minigrid_space(env.observation_space)
    assert play(env)


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_reads_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is not supported: it shows "):
        make(DOOR_KEY, wrappers=[path(name)])


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("minigrid.wrappers.NoSuch", r"^wrappers must be import paths such as .*, got 'minigrid.wrappers.NoSuch': "),
        ("nowhere.Wrapper", r"^wrappers must be import paths such as .* got 'nowhere.Wrapper': No module named"),
        ("minigrid.minigrid_env.MiniGridEnv", "^wrappers must be Gymnasium wrappers such as "),
        ("minigrid.wrappers.NoDeath", r"^minigrid.wrappers.NoDeath cannot be put around .*TypeError"),
        ({"minigrid.wrappers.ViewSizeWrapper": {"agent_view_size": 4}}, "cannot be put around .*AssertionError"),
    ],
)
def test_wrappers_that_cannot_be(wrapper, message):
    with pytest.raises(ValueError, match=message):
        make(DOOR_KEY, wrappers=[wrapper])


def test_two_directions_of_a_shown_agent_are_two_observations():
    """Both states, 2 and 3, were read alike."""
    env = make(DOOR_KEY, wrappers=[path("FullyObsWrapper")])
    encoder = MiniGridEncoder(env.observation_space, 16)
    features = []
    for direction in range(4):
        env.reset(seed=0)
        env.unwrapped.agent_dir = direction
        observation, *_ = env.step(6)
        assert observation["image"].reshape(-1, 3)[:, 2].max() <= 3
        parts = {"image": observation["image"], "direction": np.eye(4)[0]}
        features.append(encoder({key: torch.as_tensor(value).float()[None] for key, value in parts.items()}))
    for one in range(4):
        for other in range(one):
            assert not np.allclose(features[one].detach(), features[other].detach())


def test_a_bonus_is_no_success():
    """Success is the task's own: without it, an episode that ends in lava would count, for the bonus it gets."""
    env = make("MiniGrid-LavaGapS5-v0", wrappers=[path("ActionBonus")])
    ends = play(env, 2000)
    assert len(ends) > 50
    assert np.mean(ends) < 0.5


def test_wrappers_of_others():
    """One that changes the image must say what it shows."""

    class Darker(gym.ObservationWrapper):
        def __init__(self, env, image):
            super().__init__(env)
            self.observation_space = spaces.Dict({**env.observation_space.spaces, "image": image})

        def observation(self, observation):
            return observation

    raw = gym.make(DOOR_KEY)
    with pytest.raises(
        ValueError, match=r"^Darker shows an image of shape \(9, 7, 3\) with values up to 255, too small"
    ):
        SymbolicObservation(Darker(raw, spaces.Box(0, 255, (9, 7, 3), np.uint8)))
    tight = spaces.Box(np.zeros((7, 7, 3), np.uint8), np.full((7, 7, 3), (12, 6, 2), np.uint8), dtype=np.uint8)
    assert image_space(Darker(raw, tight)) == tight
    picture = spaces.Box(0, 255, (48, 40, 3), np.uint8)
    assert image_space(Darker(raw, picture)) == picture


def test_a_picture_that_the_image_encoder_cannot_take():
    with pytest.raises(ValueError, match=r"^the picture must have at least 36x36, see tile_size, got 24x24$"):
        make("fbrl/MemoryS7-View3-v0", wrappers=[path("RGBImgPartialObsWrapper")])
    larger = {"minigrid.wrappers.RGBImgPartialObsWrapper": {"tile_size": 12}}
    assert make("fbrl/MemoryS7-View3-v0", wrappers=[larger]).observation_space["image"].shape == (36, 36, 3)


class Corridor(MiniGridEnv):
    """A task of one's own: an empty room."""

    def __init__(self, mission_space=None, **kwargs):
        super().__init__(mission_space or MissionSpace(lambda: "go to the goal"), grid_size=5, max_steps=9, **kwargs)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.agent_pos, self.agent_dir = (1, 1), 0


def test_a_task_whose_image_is_not_minigrids():
    """That it is a MiniGridEnv proves nothing."""

    class Other(Corridor):
        def __init__(self):
            super().__init__()
            shown = {**self.observation_space.spaces, "image": spaces.Box(0, 255, (4, 9, 3), np.uint8)}
            self.observation_space = spaces.Dict(shown)

    with pytest.raises(ValueError, match=r"^Other shows an image of shape \(4, 9, 3\)"):
        SymbolicObservation(Other())


def test_a_symbol_outside_of_its_space_is_named():
    class Strange(Corridor):
        def gen_obs(self):
            observation = super().gen_obs()
            observation["image"][2, 3] = (4, 7, 0)
            return observation

    env = SymbolicObservation(Strange())
    with pytest.raises(ValueError, match=r"^the image of Strange must hold values up to 5, got 7$"):
        env.reset()


@pytest.mark.parametrize(
    ("names", "policy"),
    [
        (["FullyObsWrapper", "ImgObsWrapper"], "MultiInputPolicy"),
        (["OneHotPartialObsWrapper"], "MultiInputPolicy"),
        (["RGBImgPartialObsWrapper"], "MultiInputPolicy"),
        (["RGBImgPartialObsWrapper", "ImgObsWrapper"], "CnnPolicy"),
    ],
)
@pytest.mark.parametrize("env_id", ["MiniGrid-Fetch-5x5-N2-v0"])
def test_agents_learn_from_what_is_shown(names, policy, env_id):
    """With a mission where it is still there."""
    env = vec(2, task=lambda: make(env_id, wrappers=[path(name) for name in names]))
    model = make_model("fast", env, policy, n_epochs=1)
    model.learn(24)
    with_mission = isinstance(env.observation_space, spaces.Dict) and "mission" in env.observation_space.spaces
    assert with_mission == ("ImgObsWrapper" not in names)
