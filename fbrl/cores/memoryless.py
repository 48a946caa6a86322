"""What is left of a transformer core that has nothing to read: the control that differs in memory alone."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fbrl.cores.core import Core, State, check_sizes


class Nothing(NamedTuple):
    """The state of a core that remembers nothing: it tells how many sequences there are."""

    nothing: Tensor  # (B, 0)


class FeedForward(nn.Module):
    """h + W2 relu(W1 LN2(h) + b1) + b2: a layer of the Feedback Transformer without its attention."""

    def __init__(self, d_model: int, d_feedforward: int) -> None:
        super().__init__()
        self.ln_2 = nn.LayerNorm(d_model)
        self.w_1 = nn.Linear(d_model, d_feedforward)
        self.w_2 = nn.Linear(d_feedforward, d_model)
        nn.init.orthogonal_(self.w_1.weight, gain=math.sqrt(2))
        nn.init.orthogonal_(self.w_2.weight)

    def forward(self, h: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = h + self.w_2(F.relu(self.w_1(self.ln_2(h))))
        return y


class Memoryless(Core):
    """The Feedback Transformer whose memory is always empty: each step is a function of its own input alone.

    Args:
        d_model: D, the width of every layer.
        n_layers: L.
        d_feedforward: the width inside a layer; ``None`` means 2 D. At 2 D there are fewer parameters than in a
            core that remembers; a larger one makes up for them.

    Raises:
        ValueError: where a size is less than one.
    """

    def __init__(self, d_model: int = 128, n_layers: int = 2, d_feedforward: int | None = None) -> None:
        super().__init__()
        d_feedforward = 2 * d_model if d_feedforward is None else d_feedforward
        check_sizes(d_model=d_model, n_layers=n_layers, d_feedforward=d_feedforward)
        self.d_model = d_model
        self.layers = nn.Sequential(*(FeedForward(d_model, d_feedforward) for _ in range(n_layers)))
        self.ln_out = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> Nothing:
        """Nothing, on the parameters' device."""
        return Nothing(self.ln_out.weight.new_zeros(batch_size, 0))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """See ``Core``; hands back the state that it was given."""
        features: Tensor = self.ln_out(self.layers(x))
        return features, state
