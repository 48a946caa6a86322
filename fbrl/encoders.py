"""Encoders for observations that Stable-Baselines3's own extractors would misread: MiniGrid's symbols."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS = (11, 6, 3)  # MiniGrid's objects, colours and door states
MOST_SYMBOLS = (64, 32, 4)  # with those that tasks add; states are also the directions of an agent that is shown
BACKGROUND = 4  # objects 0 to 3: unseen, empty, wall, floor
QUIET = 0.1  # the initial size of their embeddings, and of colours and states, beside that of things


def is_minigrid_space(space: spaces.Space[object]) -> bool:
    """Whether the observations are a Dict whose ``image`` holds MiniGrid's (object, colour, state) per cell.

    A tight upper bound of each channel, (10, 5, 2) or (10, 5, 3) where the agent is shown, tells the symbols from a
    picture. Tasks may add objects and colours of their own. A picture is MiniGrid's where a ``mission`` in tokens, a
    row of uint8, comes with it.
    """
    if not isinstance(space, spaces.Dict) or not isinstance(image := space.spaces.get("image"), spaces.Box):
        return False
    mission = space.spaces.get("mission")
    if is_image_space(image) and isinstance(mission, spaces.Box):
        return len(mission.shape) == 1 and mission.dtype == np.uint8
    return _holds_symbols(image)


def _holds_symbols(image: spaces.Box) -> bool:
    if len(image.shape) != 3 or image.shape[-1] != len(SYMBOLS) or 0 in image.shape or image.dtype != np.uint8:
        return False
    sizes = np.array(symbols_of(image))
    alike = np.all(image.high == image.high[0, 0]) and np.all(image.low == 0)
    return bool(alike and np.all(sizes >= SYMBOLS) and np.all(sizes <= MOST_SYMBOLS))


def symbols_of(image: spaces.Box) -> tuple[int, ...]:
    """How many values each channel of the space has."""
    return tuple(int(high) + 1 for high in image.high[0, 0])


class CellEncoder(nn.Module):
    """Embeds the (object, colour, state) of each cell of the view as the sum of three learned vectors.

    Two linear maps read the cells: one knows where each of them is, the other reads their sum. What is learned of a key
    in one place so holds for a key anywhere in view.
    """

    high: Tensor  # the largest of each

    def __init__(
        self, shape: tuple[int, ...], d_cell: int, features_dim: int, sizes: tuple[int, ...] = SYMBOLS
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("high", torch.tensor(sizes).float() - 1, persistent=False)
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(n, d_cell)) for n in sizes)
        # Most cells hold nothing to remember. Were they as loud as a key, one key among nine or 49 cells would drown.
        with torch.no_grad():
            objects, colours, states = self.tables
            objects[:BACKGROUND] *= QUIET
            colours *= QUIET
            states *= QUIET
        self.where = nn.Linear(shape[0] * shape[1] * d_cell, features_dim)
        self.anywhere = nn.Linear(d_cell, features_dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, V, V, 3), whole numbers of any dtype -> (N, features_dim).

        Raises ValueError on a symbol that has no row in its table, which would be read as another one; on a GPU it is
        an assertion of torch's.
        """
        objects, colours, states = self.tables
        # one row for each of the 198 triples: a single lookup a cell
        table = (objects[:, None, None] + colours[None, :, None] + states[None, None, :]).flatten(0, 2)
        _check_inside(image, self.high)
        object_, colour, state = image.long().unbind(-1)
        triple = (object_ * self.sizes[1] + colour) * self.sizes[2] + state
        cells = F.embedding(triple.flatten(1), table)  # (N, V V, d_cell)
        features: Tensor = self.where(cells.flatten(1)) + self.anywhere(cells.sum(dim=1))
        return features


def _check_inside(image: Tensor, high: Tensor) -> None:
    """Raises ValueError where a symbol is above ``high`` (3,) or below 0; a GPU asserts it, and nobody waits for that.

    Not while a graph is made for a compiler or for another program.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    if image.device.type == "cpu":
        image = image.float()
        if not torch.equal(torch.minimum(image.clamp(min=0), high), image):
            raise ValueError(f"image must hold objects, colours and states from 0 to {tuple(high.int().tolist())}")
    elif image.is_cuda:
        torch._assert_async(((image >= 0) & (image <= high)).all(), "image must hold symbols of its space")


class MissionEncoder(nn.Module):
    """Reads the mission, a row of word numbers padded with 0, with a GRU."""

    def __init__(self, n_words: int, d_word: int, features_dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, d_word, padding_idx=0)
        self.gru = nn.GRU(d_word, features_dim, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, W), whole numbers of any dtype -> (N, features_dim): the GRU's output at the last word."""
        tokens = tokens.long()
        outputs, _ = self.gru(self.words(tokens))  # (N, W, features_dim)
        last = ((tokens != 0).sum(dim=1) - 1).clamp(min=0)
        features: Tensor = outputs[torch.arange(tokens.shape[0], device=tokens.device), last]
        return features


class MiniGridEncoder(BaseFeaturesExtractor):
    """Embeds a MiniGrid observation: cells, direction, and whatever else the Dict holds.

    relu(sum over the keys of a linear map of each key's embedding). ``image`` goes through ``CellEncoder``, or, a
    picture that comes with a mission, through Stable-Baselines3's NatureCNN,
    ``mission`` (word numbers) through ``MissionEncoder``, every other key is flattened.

    Args:
        observation_space: a Dict for which ``is_minigrid_space`` is true.
        features_dim: the width of the result.
        d_cell: the width of the embedding of a cell, and of a word.

    Raises:
        ValueError: where the space is not MiniGrid's.
    """

    def __init__(self, observation_space: spaces.Space[object], features_dim: int = 128, d_cell: int = 16) -> None:
        if not is_minigrid_space(observation_space):
            raise ValueError(
                "MiniGridEncoder needs a Dict space whose 'image' is a (V, V, 3) Box with upper bound (10, 5, 2), or "
                f"(10, 5, 3), got {observation_space}"
            )
        super().__init__(observation_space, features_dim)
        assert isinstance(observation_space, spaces.Dict)
        self.encoders = nn.ModuleDict()
        for key, space in observation_space.spaces.items():
            if key == "image":
                assert isinstance(space, spaces.Box)
                if _holds_symbols(space):
                    self.encoders[key] = CellEncoder(space.shape, d_cell, features_dim, symbols_of(space))
                else:
                    self.encoders[key] = NatureCNN(space, features_dim)
            elif key == "mission":
                assert isinstance(space, spaces.Box)
                self.encoders[key] = MissionEncoder(int(space.high.max()) + 1, d_cell, features_dim)
            else:
                flat = nn.Linear(int(get_flattened_obs_dim(space)), features_dim, bias=False)
                self.encoders[key] = nn.Sequential(nn.Flatten(), flat)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """A dict of (N, ...) as Stable-Baselines3's ``preprocess_obs`` leaves it -> (N, features_dim)."""
        return F.relu(torch.stack([encode(observations[key]) for key, encode in self.encoders.items()]).sum(dim=0))
