"""What the image of a MiniGrid observation shows, by the wrappers that made it and the space that they declare."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid import wrappers
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.minigrid_env import MiniGridEnv
from stable_baselines3.common.preprocessing import is_image_space

CELL_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), max(STATE_TO_IDX.values()))
"""The largest object, colour and state of a cell in the agent's view: (10, 5, 2)."""
GRID_HIGH = (*CELL_HIGH[:2], 3)
"""The same where the agent itself is shown: its state is the direction that it faces, 0..3."""
PICTURE_HIGH = (255, 255, 255)
BIT_HIGH = (1,)
SMALLEST_PICTURE = 36  # pixels along a side that Stable-Baselines3's NatureCNN needs

SHOWN: dict[type[gym.Wrapper[Any, Any, Any, Any]], tuple[int, ...]] = {
    wrappers.ViewSizeWrapper: CELL_HIGH,
    wrappers.FullyObsWrapper: GRID_HIGH,
    wrappers.RGBImgObsWrapper: PICTURE_HIGH,
    wrappers.RGBImgPartialObsWrapper: PICTURE_HIGH,
    wrappers.OneHotPartialObsWrapper: BIT_HIGH,
}
REFUSED = {
    wrappers.SymbolicObsWrapper: "places and objects; FullyObsWrapper shows them as symbols",
    wrappers.FlatObsWrapper: "symbols and letters in one vector; ImgObsWrapper leaves the mission out",
}


def image_space(env: gym.Env[Any, Any]) -> spaces.Box:
    """The space of the image that ``env``, a MiniGrid environment under any wrappers, shows, with its true bounds.

    MiniGrid declares 0..255 whatever it shows, which Stable-Baselines3 takes for a picture. Symbols (object, colour,
    state) get the tight bounds of each channel, one-hot cells 0..1, pictures stay as they are.

    Raises:
        ValueError: where an unknown wrapper, or a task of one's own, shows something else and does not declare what.
    """
    base, image = env.unwrapped, _image(env)
    high: tuple[int, ...] | None = None
    assert isinstance(base, MiniGridEnv)
    chain, layer = [], env
    while isinstance(layer, gym.Wrapper):
        chain.append(layer)
        layer = layer.env
    by = type(base).__name__
    if _image(base).shape == (base.agent_view_size, base.agent_view_size, 3):
        high = CELL_HIGH
    for wrapper in reversed(chain):
        kind = next((kind for kind in (*SHOWN, *REFUSED) if isinstance(wrapper, kind)), None)
        if kind in REFUSED:
            raise ValueError(f"{kind.__name__} is not supported: it shows {REFUSED[kind]}")
        if kind is not None:
            high = SHOWN[kind]
        elif _image(wrapper) != _image(wrapper.env):
            by, high = type(wrapper).__name__, None
    if high == PICTURE_HIGH:
        if min(image.shape[:2]) < SMALLEST_PICTURE:
            least = f"at least {SMALLEST_PICTURE}x{SMALLEST_PICTURE}, see tile_size"
            raise ValueError(f"the picture must have {least}, got {image.shape[0]}x{image.shape[1]}")
        return image
    return _bounded(image, high, by)


def _bounded(image: spaces.Box, high: tuple[int, ...] | None, by: str) -> spaces.Box:
    """The space with these bounds of each channel, or with its own where they are tight or a picture's."""
    if high is not None:
        bounds = np.broadcast_to(np.array(high, dtype=np.uint8), image.shape)
        return spaces.Box(np.zeros_like(bounds), bounds, dtype=np.uint8)
    is_picture = is_image_space(image, check_channels=True) and min(sorted(image.shape)[1:]) >= SMALLEST_PICTURE
    says_nothing = image.dtype == np.uint8 and (image.high == 255).all()
    if says_nothing and not is_picture:
        raise ValueError(
            f"{by} shows an image of shape {image.shape} with values up to 255, too small for a picture; where it "
            "holds symbols, its observation_space must have their true bounds"
        )
    return image


def _image(env: gym.Env[Any, Any]) -> spaces.Box:
    space = env.observation_space
    image = space.spaces.get("image") if isinstance(space, spaces.Dict) else space
    if not isinstance(image, spaces.Box):
        raise ValueError(f"{type(env).__name__} must show an 'image' in a Box, got {space}")
    return image
