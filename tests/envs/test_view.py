"""Views cut out of 7x7 cells: equal to MiniGrid's own, in every state that random play meets."""

import gymnasium as gym
import minigrid  # noqa: F401  (registers the ids)
import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, Wall

from envs.view import crop_view, in_sight

TASKS = [  # walls; doors and keys; a box around a key; balls and keys that are carried; lava; walls to see through
    *("MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS17Random-v0", "MiniGrid-DoorKey-8x8-v0", "MiniGrid-MultiRoom-N6-v0"),
    *("MiniGrid-ObstructedMaze-2Dlhb-v1", "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-LavaCrossingS9N2-v0"),
    *("BabyAI-GoTo-v0", "MiniGrid-PutNear-6x6-N2-v0"),
]


def own_view(env, size):
    """What minigrid itself shows through a view of this size, in the state that ``env`` is in."""
    grid, visible = env.gen_obs_grid(size)
    return grid.encode(visible)


def play(env_id, steps=400):
    """The states of random play, with more walking, picking up and opening than turning."""
    env = gym.make(env_id).unwrapped
    rng = np.random.default_rng(5)
    env.reset(seed=5)
    for action in rng.choice(7, size=steps, p=[0.14, 0.14, 0.38, 0.12, 0.04, 0.17, 0.01]):
        yield env
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("env_id", TASKS)
def test_the_cut_view_is_minigrids_own(env_id, size):
    cut, own, carrying = [], [], 0
    for env in play(env_id):
        see_through = env.see_through_walls
        cut.append(crop_view(own_view(env, 7)[None], size, see_through)[0])
        own.append(own_view(env, size))
        carrying += env.carrying is not None
    np.testing.assert_array_equal(np.array(cut), np.array(own))
    assert np.array(cut).dtype == np.uint8
    assert see_through is (env_id == "MiniGrid-PutNear-6x6-N2-v0")
    if "Door" in env_id or "PutNear" in env_id:
        assert carrying > 20


def test_many_views_at_once_are_cut_as_one_alone():
    images = np.array([own_view(env, 7) for env in play("MiniGrid-MultiRoom-N6-v0", steps=37)])
    together = crop_view(images, 5, see_through_walls=False)
    assert together.shape == (37, 5, 5, 3)
    for image, cut in zip(images, together, strict=True):
        np.testing.assert_array_equal(crop_view(image[None], 5, see_through_walls=False)[0], cut)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_sight_in_random_grids_is_minigrids_own(size):
    """Mazes that no task has, of every density, with walls and closed doors."""
    rng = np.random.default_rng(11)
    clear = rng.random((600, size, size)) < rng.random((600, 1, 1))
    clear[:, size // 2, -1] = True  # where the agent stands
    expected = np.zeros_like(clear)
    for index, view in enumerate(clear):
        grid = Grid(size, size)
        for column, row in np.argwhere(~view):
            grid.set(column, row, Wall() if rng.random() < 0.5 else Door("red"))
        expected[index] = grid.process_vis((size // 2, size - 1))
    np.testing.assert_array_equal(in_sight(clear), expected)
    assert 0.1 < expected.mean() < 0.95


@pytest.mark.parametrize("size", [3, 5])
def test_the_large_view_shows_all_that_the_small_one_shows(size):
    """So that a view can be cut at all; the converse does not hold, so that cutting alone would show too much."""
    rng = np.random.default_rng(3)
    clear = rng.random((5000, 7, 7)) < rng.random((5000, 1, 1))
    clear[:, 3, -1] = True
    margin = (7 - size) // 2
    inside = np.s_[:, margin : 7 - margin, 7 - size :]
    small, large = in_sight(clear[inside]), in_sight(clear)[inside]
    assert not (small & ~large).any()
    assert (large & ~small).any()


def test_sight_worked_by_hand():
    """In a cell with walls all round, and with a gap in the wall ahead."""
    clear = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [0, 0, 1, 1, 0, 0, 0],
        ],
        dtype=bool,
    ).T  # written row by row, kept column by column
    shown = in_sight(clear[None])[0].T
    assert shown[6].tolist() == [False, True, True, True, True, False, False]
    assert shown[5].tolist() == [False, True, True, True, True, False, False]
    assert not shown[:5].any()
    clear[2, 5] = True  # a gap in the wall, in sight: what lies behind it shows
    shown = in_sight(clear[None])[0].T
    assert shown[4].tolist() == [True] * 7


def test_a_door_lets_light_through_when_open():
    def view(state):
        image = np.ones((1, 7, 7, 3), dtype=np.uint8) * np.array([1, 0, 0], dtype=np.uint8)
        image[0, 2:5, 5] = [2, 5, 0]
        image[0, 3, 5] = [4, 1, state]
        return crop_view(image, 3, see_through_walls=False)[0, :, 0, 0]

    assert view(0).tolist() == [1, 1, 1]
    assert view(1).tolist() == view(2).tolist() == [0, 0, 0]
