"""Linear attention that forgets: the state-space duality of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060).

Each head keeps one matrix S, to which every step adds and of which it first forgets a share that it chooses:

    S_t = a_t S_(t-1) + k_t v_t^T      o_t = q_t^T S_t / sqrt(D/H)      a_t = sigmoid(Wa n_t + b)      n_t = LN1(x_t)

T steps at once are an attention without softmax, whose score of step j at step t is (q_t . k_j) a_(j+1) ... a_t; both
ways give the same (section 6 of the paper, for a single block). What is read is normed by head, gated and added to
the layer's input, and the Feedback Transformer's feed-forward block follows. Of Mamba-2 its short convolution and the
step size are left out: k carries the input's scale.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbrl.cores.core import Core, State, check_heads, check_sizes
from fbrl.cores.memoryless import FeedForward


class LinearAttentionState(NamedTuple):
    """What each head of each layer carries from step to step."""

    s: Tensor  # (B, L, H, D/H, D/H): a sum of k v^T


class LinearAttentionLayer(nn.Module):
    """One layer: memory, then the feed-forward block, both beside the input."""

    def __init__(self, d_model: int, n_heads: int, d_feedforward: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1 = nn.LayerNorm(d_model)
        self.w_qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.w_a = nn.Linear(d_model, n_heads)
        self.w_gate = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward = FeedForward(d_model, d_feedforward)
        for weight in (*self.w_qkv.weight.chunk(3), self.w_gate.weight, self.w_o.weight):
            nn.init.orthogonal_(weight)
        # a from .9 to .998, as if half of it were forgotten after 7 to 400 steps
        nn.init.zeros_(self.w_a.weight)
        with torch.no_grad():
            self.w_a.bias.copy_(torch.linspace(math.log(9), math.log(577), n_heads))

    def forward(self, x: Tensor, s: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), s (B, H, D/H, D/H) before the first step, starts (B, T) bool -> (B, T, D), s after the last."""
        n = self.ln_1(x)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.w_qkv(n).chunk(3, dim=-1))
        q = q / math.sqrt(q.shape[-1])  # (B, H, T, D/H), as k and v
        kept = F.logsigmoid(self.w_a(n)).transpose(1, 2).cumsum(dim=-1)  # (B, H, T): log of a_0 ... a_t
        episode = starts.cumsum(dim=1)  # (B, T)
        read = (episode.unsqueeze(-1) == episode.unsqueeze(-2)).tril().unsqueeze(1)  # (B, 1, T, T): t reads j
        decay = (kept.unsqueeze(-1) - kept.unsqueeze(-2)).masked_fill(~read, -math.inf).exp()  # (B, H, T, T)
        carried = kept.masked_fill((episode > 0).unsqueeze(1), -math.inf).exp().unsqueeze(-1)  # (B, H, T, 1)
        o = (q @ k.mT * decay) @ v + carried * (q @ s)
        s = carried[:, :, -1:] * s + (k * decay[:, :, -1].unsqueeze(-1)).mT @ v
        o = F.rms_norm(o, o.shape[-1:]).transpose(1, 2).flatten(2)
        y: Tensor = self.feed_forward(x + self.w_o(o * F.silu(self.w_gate(n))))
        return y, s


class LinearAttention(Core):
    """The core: layers whose memory is a linear attention that forgets.

    Args:
        d_model: D, the width of every layer.
        n_layers: L.
        n_heads: H; divides D. A layer's state is H matrices of D/H by D/H numbers.
        d_feedforward: the width inside the feed-forward block; ``None`` means 2 D.

    Raises:
        ValueError: where a size is less than one or H does not divide D.
    """

    def __init__(
        self, d_model: int = 128, n_layers: int = 2, n_heads: int = 4, d_feedforward: int | None = None
    ) -> None:
        super().__init__()
        d_feedforward = 2 * d_model if d_feedforward is None else d_feedforward
        check_sizes(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_feedforward=d_feedforward)
        check_heads(n_heads, d_model)
        self.d_model, self.n_heads = d_model, n_heads
        self.layers = nn.ModuleList(LinearAttentionLayer(d_model, n_heads, d_feedforward) for _ in range(n_layers))
        self.ln_out = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> LinearAttentionState:
        """Zeros, on the parameters' device."""
        width = self.d_model // self.n_heads
        shape = (batch_size, len(self.layers), self.n_heads, width, width)
        return LinearAttentionState(self.ln_out.weight.new_zeros(shape))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, LinearAttentionState]:
        """See ``Core``. No gradient flows into the state that the sequence starts with."""
        first = episode_start[:, 0].view(-1, 1, 1, 1, 1)
        before = state[0].detach().masked_fill(first, 0)  # whatever it held: zero times NaN is NaN
        after = []
        for index, layer in enumerate(self.layers):
            x, s = layer(x, before[:, index], episode_start)
            after.append(s)
        return self.ln_out(x), LinearAttentionState(torch.stack(after, dim=1))
