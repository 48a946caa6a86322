"""Encoders for observations that Stable-Baselines3's own extractors would misread: MiniGrid's symbols."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS = (11, 6, 3)  # MiniGrid's objects, colours and door states
BACKGROUND = 4  # objects 0 to 3: unseen, empty, wall, floor
QUIET = 0.1  # the initial size of their embeddings, and of colours and states, beside that of things


def is_minigrid_space(space: spaces.Space[object]) -> bool:
    """Whether the observations are a Dict whose ``image`` holds MiniGrid's (object, colour, state) per cell.

    A tight upper bound (10, 5, 2) tells the symbols from a picture.
    """
    if not isinstance(space, spaces.Dict) or not isinstance(image := space.spaces.get("image"), spaces.Box):
        return False
    if len(image.shape) != 3 or image.shape[-1] != len(SYMBOLS):
        return False
    return bool(np.all(image.high == np.array(SYMBOLS) - 1) and np.all(image.low == 0))


class CellEncoder(nn.Module):
    """Embeds the (object, colour, state) of each cell of the view as the sum of three learned vectors.

    Two linear maps read the cells: one knows where each of them is, the other reads their sum. What is learned of a key
    in one place so holds for a key anywhere in view.
    """

    def __init__(self, shape: tuple[int, ...], d_cell: int, features_dim: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(n, d_cell)) for n in SYMBOLS)
        # Most cells hold nothing to remember. Were they as loud as a key, one key among nine or 49 cells would drown.
        with torch.no_grad():
            objects, colours, states = self.tables
            objects[:BACKGROUND] *= QUIET
            colours *= QUIET
            states *= QUIET
        self.where = nn.Linear(shape[0] * shape[1] * d_cell, features_dim)
        self.anywhere = nn.Linear(d_cell, features_dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, V, V, 3), whole numbers of any dtype -> (N, features_dim)."""
        objects, colours, states = self.tables
        # one row for each of the 198 triples: a single lookup a cell
        table = (objects[:, None, None] + colours[None, :, None] + states[None, None, :]).flatten(0, 2)
        object_, colour, state = image.long().unbind(-1)
        triple = (object_ * SYMBOLS[1] + colour) * SYMBOLS[2] + state
        cells = F.embedding(triple.flatten(1), table)  # (N, V V, d_cell)
        features: Tensor = self.where(cells.flatten(1)) + self.anywhere(cells.sum(dim=1))
        return features


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

    relu(sum over the keys of a linear map of each key's embedding). ``image`` goes through ``CellEncoder``,
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
                "MiniGridEncoder needs a Dict space whose 'image' is a (V, V, 3) Box with upper bound (10, 5, 2), "
                f"got {observation_space}"
            )
        super().__init__(observation_space, features_dim)
        assert isinstance(observation_space, spaces.Dict)
        self.encoders = nn.ModuleDict()
        for key, space in observation_space.spaces.items():
            if key == "image":
                self.encoders[key] = CellEncoder(space.shape or (), d_cell, features_dim)
            elif key == "mission":
                assert isinstance(space, spaces.Box)
                self.encoders[key] = MissionEncoder(int(space.high.max()) + 1, d_cell, features_dim)
            else:
                flat = nn.Linear(int(get_flattened_obs_dim(space)), features_dim, bias=False)
                self.encoders[key] = nn.Sequential(nn.Flatten(), flat)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """A dict of (N, ...) as Stable-Baselines3's ``preprocess_obs`` leaves it -> (N, features_dim)."""
        return F.relu(torch.stack([encode(observations[key]) for key, encode in self.encoders.items()]).sum(dim=0))
