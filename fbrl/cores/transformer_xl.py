"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860) and, gated, GTrXL (Parisotto et al. 2020, arXiv 1910.06764).

With x_t^0 (B, D) the input of step t:

    for l = 1..L   n_j = LN1_l(x_j^(l-1))
                   s_j = (q_t . k_j + q_t . r_(t-j)) / sqrt(D/H)  over this episode's steps, 0 <= t-j <= M
                   o   = sum_j softmax_j(s)_j v_j                 q, k, v = Wq_l n, Wk_l n, Wv_l n
                   h   = x_t^(l-1) + Wo_l o
                   x_t^l = h + W2_l relu(W1_l LN2_l(h) + b1) + b2
    output         LN_out(x_t^L)
    kept           x_t^0 .. x_t^(L-1), of the last M steps

All T steps of a sequence are computed at once. What is kept from before the sequence gets no gradient; within it, the
gradient reaches M steps back in every layer, L M in all.

Where this departs from Dai et al.:
- every step reads exactly M steps back, whether they are of this sequence or kept from before it, so that acting step
  by step gives what evaluating a sequence gives. In the paper later steps of a segment read further back.
- layer norms stand before the blocks, as in GTrXL, and the last one after all of them.
- distances are told by one learned table r (M + 1, D/H) for all layers and heads, as in ``fbrl.cores.feedback``, in the
  place of sinusoids and the biases u and v: the two cores differ in what they remember, not in how they tell when.

With the gate, ``x + y`` is g(x, relu(y)) in both places: the gated recurrent unit among the gating layers
of Parisotto et al.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbrl.cores.attention import by_head, readable_mask, skew
from fbrl.cores.core import Core, State, check_heads, check_sizes
from fbrl.memory import blank_unreadable

GATE_BIAS = 2.0  # b_g: at first the gates hand on most of what enters a block


class LayerInputs(NamedTuple):
    """What entered each layer in the last M steps of B sequences, newest last.

    Only the rightmost ``length[b]`` slots of row ``b`` are of the current episode; what lies left of them has no
    effect, whatever it holds, NaN and infinity included.
    """

    slots: Tensor  # (B, M, L, D) float
    length: Tensor  # (B,) int64, each in 0..M


class Sum(nn.Module):
    """The residual connection."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""
        return x + y


class Gate(nn.Module):
    """GTrXL's gate in the place of a residual connection: a GRU's step from x with the input relu(y)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Linear(d_model, 3 * d_model, bias=False)  # Wr, Wz, Wg
        self.u = nn.Linear(d_model, 2 * d_model, bias=False)  # Ur, Uz
        self.u_g = nn.Linear(d_model, d_model, bias=False)
        self.b_g = nn.Parameter(torch.full((d_model,), GATE_BIAS))
        for weight in (*self.w.weight.chunk(3), *self.u.weight.chunk(2), self.u_g.weight):
            nn.init.orthogonal_(weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y (..., D) -> (1 - z) x + z tanh(Wg y + Ug (r x)), after a relu on y."""
        (w_r, w_z, w_g), (u_r, u_z) = self.w(F.relu(y)).chunk(3, dim=-1), self.u(x).chunk(2, dim=-1)
        r, z = torch.sigmoid(w_r + u_r), torch.sigmoid(w_z + u_z - self.b_g)
        step = torch.tanh(w_g + self.u_g(r * x))
        return torch.lerp(x, step.to(x), z.to(x))  # under autocast they are less precise, which lerp does not take


class TransformerXLLayer(nn.Module):
    """One layer: attention of every step over the steps before it and itself, then a feed-forward block."""

    def __init__(self, d_model: int, n_heads: int, d_feedforward: int, gate: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1 = nn.LayerNorm(d_model)
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        self.ln_2 = nn.LayerNorm(d_model)
        self.w_1 = nn.Linear(d_model, d_feedforward)
        self.w_2 = nn.Linear(d_feedforward, d_model)
        self.join_1, self.join_2 = (Gate(d_model) if gate else Sum() for _ in range(2))
        for linear in (self.w_q, self.w_k, self.w_2):
            nn.init.orthogonal_(linear.weight)
        for linear in (self.w_v, self.w_o, self.w_1):
            nn.init.orthogonal_(linear.weight, gain=math.sqrt(2))

    def attend(self, x: Tensor, kept: Tensor, r: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The attention (B, H, T, M + T) and the values (B, H, M + T, D/H); arguments as in ``forward``."""
        n = self.ln_1(torch.cat([kept, x], dim=1))
        q = by_head(self.w_q(n[:, kept.shape[1] :]), self.n_heads) / math.sqrt(r.shape[1])  # (B, H, T, D/H)
        k, v = (by_head(weight(n), self.n_heads) for weight in (self.w_k, self.w_v))  # (B, H, M + T, D/H)
        # of its last column no step reads anything: the window of the last one ends with itself
        by_distance = skew(q @ r.t() + mask.unsqueeze(1))[..., :-1]  # (B, H, T, M + T)
        return (q @ k.transpose(2, 3) + by_distance).softmax(dim=-1), v

    def forward(self, x: Tensor, kept: Tensor, r: Tensor, mask: Tensor) -> Tensor:
        """All steps.

        Args:
            x: what enters the layer, (B, T, D).
            kept: what entered it in the M steps before, (B, M, D).
            r: the embedding of each distance, (M + 1, D/H), the farthest first.
            mask: (B, T, M + 1), 0 where a step reads and -inf elsewhere.

        Returns:
            (B, T, D).
        """
        attention, v = self.attend(x, kept, r, mask)
        h = self.join_1(x, self.w_o((attention @ v).transpose(1, 2).flatten(2)))
        y: Tensor = self.join_2(h, self.w_2(F.relu(self.w_1(self.ln_2(h)))))
        return y


class TransformerXL(Core):
    """Remembers what entered each layer in the last M steps.

    Args:
        d_model: D, the width of every layer.
        n_layers: L.
        n_heads: H; divides D.
        window: M: how many steps back a layer reads, besides the step itself.
        d_feedforward: the width inside the feed-forward block; ``None`` means 2 D.
        gate: GTrXL's gates in the place of the residual connections.

    Raises:
        ValueError: where a size is less than one or H does not divide D.
    """

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        window: int = 64,
        d_feedforward: int | None = None,
        gate: bool = False,
    ) -> None:
        super().__init__()
        d_feedforward = 2 * d_model if d_feedforward is None else d_feedforward
        check_sizes(d_model=d_model, n_layers=n_layers, n_heads=n_heads, window=window, d_feedforward=d_feedforward)
        check_heads(n_heads, d_model)
        self.d_model, self.window = d_model, window
        self.layers = nn.ModuleList(TransformerXLLayer(d_model, n_heads, d_feedforward, gate) for _ in range(n_layers))
        self.distance = nn.Parameter(torch.randn(window + 1, d_model // n_heads))  # r: row 0 is the step itself
        self.ln_out = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> LayerInputs:
        """An empty memory for ``batch_size`` sequences, on the parameters' device."""
        slots = self.distance.new_zeros(batch_size, self.window, len(self.layers), self.d_model)
        return LayerInputs(slots, torch.zeros(batch_size, dtype=torch.int64, device=slots.device))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, LayerInputs]:
        """See ``Core``. No gradient flows into the memory that the sequence starts with."""
        slots, length = state[0].detach(), state[1]
        readable = blank_unreadable(slots, length.masked_fill(episode_start[:, 0], 0))
        mask, length = readable_mask(length, episode_start, self.window, x.dtype)
        inputs, r = [], self.distance.flip(0)
        for layer, kept in zip(self.layers, readable.unbind(2), strict=True):
            inputs.append(x)
            x = layer(x, kept, r, mask.transpose(0, 1))
        slots = torch.cat([slots, torch.stack(inputs, dim=2)], dim=1)[:, -self.window :]
        return self.ln_out(x), LayerInputs(slots, length)

    def attention(self, x: Tensor, state: State) -> Tensor:
        """See ``Core``; what is no slot is the step itself."""
        slots, length = state[0], state[1]
        going_on = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        mask, _ = readable_mask(length, going_on, self.window, x.dtype)
        x, r, found = x.unsqueeze(1), self.distance.flip(0), []
        for layer, kept in zip(self.layers, blank_unreadable(slots, length).unbind(2), strict=True):
            assert isinstance(layer, TransformerXLLayer)
            found.append(layer.attend(x, kept, r, mask.transpose(0, 1))[0].squeeze(2))
            x = layer(x, kept, r, mask.transpose(0, 1))
        return torch.stack(found, dim=1).roll(1, dims=-1)  # the step itself came last
