"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201): gates that do not look at the state.

So the recurrence is linear in the state, and T steps take log2(T) rounds in the place of T:

    z_t = sigmoid(Wz n_t)      h~_t = Wh n_t      h_t = (1 - z_t) h_(t-1) + z_t h~_t      n_t = LN1(x_t)

The paper computes in logarithms, which asks for positive h~; here rounds of doubling do, in which nothing is divided
and no product exceeds one. What a layer remembers goes through Wo and is added to its input, and the Feedback
Transformer's feed-forward block follows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fbrl.cores.core import Core, State, check_sizes
from fbrl.cores.memoryless import FeedForward


class MinGRUState(NamedTuple):
    """What each layer carries from step to step."""

    h: Tensor  # (B, L, D)


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_(t-1) + b_t with h_(-1) = 0, for a and b (B, T, ...), in log2(T) rounds (Hillis and Steele 1986).

    After the round with distance s, a_t and b_t are those of the last 2 s steps taken as one.
    """
    s = 1
    while s < b.shape[1]:
        b = torch.cat([b[:, :s], b[:, s:] + a[:, s:] * b[:, :-s]], dim=1)
        a = torch.cat([a[:, :s], a[:, s:] * a[:, :-s]], dim=1)
        s *= 2
    return b


class MinGRULayer(nn.Module):
    """One layer: memory, then the feed-forward block, both beside the input."""

    def __init__(self, d_model: int, d_feedforward: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.w_z = nn.Linear(d_model, d_model)
        self.w_h = nn.Linear(d_model, d_model)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward = FeedForward(d_model, d_feedforward)
        for linear in (self.w_z, self.w_h, self.w_o):
            nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(self.w_h.bias)
        # 1 - z from .5 to .98: some of what is kept is to last through an episode from the start
        with torch.no_grad():
            self.w_z.bias.copy_(-torch.linspace(0, 4, d_model))

    def forward(self, x: Tensor, h: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), h (B, D) before the first step, starts (B, T, 1) bool -> (B, T, D), h (B, D) after the last."""
        n = self.ln_1(x)
        z = self.w_z(n).sigmoid()
        a, b = (1 - z).masked_fill(starts, 0), z * self.w_h(n)
        b = torch.cat([b[:, :1] + a[:, :1] * h.unsqueeze(1), b[:, 1:]], dim=1)
        hs = linear_recurrence(a, b)
        y: Tensor = self.feed_forward(x + self.w_o(hs))
        return y, hs[:, -1]


class MinGRU(Core):
    """The core: layers whose memory is a minGRU.

    Args:
        d_model: D, the width of every layer and of its state.
        n_layers: L.
        d_feedforward: the width inside the feed-forward block; ``None`` means 2 D.

    Raises:
        ValueError: where a size is less than one.
    """

    def __init__(self, d_model: int = 128, n_layers: int = 2, d_feedforward: int | None = None) -> None:
        super().__init__()
        d_feedforward = 2 * d_model if d_feedforward is None else d_feedforward
        check_sizes(d_model=d_model, n_layers=n_layers, d_feedforward=d_feedforward)
        self.d_model = d_model
        self.layers = nn.ModuleList(MinGRULayer(d_model, d_feedforward) for _ in range(n_layers))
        self.ln_out = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> MinGRUState:
        """Zeros, on the parameters' device."""
        return MinGRUState(self.ln_out.weight.new_zeros(batch_size, len(self.layers), self.d_model))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, MinGRUState]:
        """See ``Core``. No gradient flows into the state that the sequence starts with."""
        starts = episode_start.unsqueeze(-1)
        before = state[0].detach().masked_fill(starts[:, :1], 0)  # whatever it held: zero times NaN is NaN
        after = []
        for index, layer in enumerate(self.layers):
            x, h = layer(x, before[:, index], starts)
            after.append(h)
        return self.ln_out(x), MinGRUState(torch.stack(after, dim=1))
