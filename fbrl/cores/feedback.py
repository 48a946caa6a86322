"""The Feedback Transformer (Fan et al. 2020, arXiv 2002.09402), one step at a time: the definition.

At step t, with input x_t^0 (B, D):

    for l = 1..L   q   = Wq_l LN1_l(h)                            h starts as x_t^0
                   s_j = (q . k_j + q . r_(t-j)) / sqrt(D/H)      over the readable slots, 1 <= t-j <= M
                   o   = sum_j softmax_j(s)_j v_j                 over the slots and one null slot
                   h   = h + Wo_l o
                   h   = h + W2_l relu(W1_l LN2_l(h) + b1) + b2   this is x_t^l
    output         LN_out(x_t^L)
    write          m_t = sum_{l=0..L} softmax(w)_l x_t^l          one vector a step, shared by all layers
                   k_t, v_t = Wk LN_m(m_t), Wv LN_m(m_t)          one projection for all layers

Where this departs from the paper and its authors' code:
- a null slot (score 0, value 0) takes part in every softmax, so that an empty memory reads zero. The authors
  leave the M initial zero slots unmasked, which act as M such slots.
- a step reads only what was written in its own episode. The authors never reset.
- the memory has a layer norm of its own, LN_m. The authors reuse LN1, tied across layers.

``fbrl.cores.feedback_scan`` computes the same function faster.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbrl.cores.core import Core, State, check_heads, check_sizes
from fbrl.memory import Memory, blank_unreadable

READ_GAIN = 0.5  # of Wo at first: how loud what is read is beside the input


class FeedbackLayer(nn.Module):
    """One layer: attention of the current step over the memory, then a feed-forward block."""

    def __init__(self, d_model: int, n_heads: int, d_feedforward: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1 = nn.LayerNorm(d_model)
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        self.ln_2 = nn.LayerNorm(d_model)
        self.w_1 = nn.Linear(d_model, d_feedforward)
        self.w_2 = nn.Linear(d_feedforward, d_model)

    def forward(self, h: Tensor, k: Tensor, v: Tensor, r: Tensor, readable: Tensor) -> tuple[Tensor, Tensor]:
        """One step of B sequences.

        Args:
            h: the output of the layer below, (B, D).
            k, v: the memory's keys and values, (B, M, H, D/H).
            r: the embedding of each slot's distance, (M, D/H), the farthest first.
            readable: (B, M) bool.

        Returns:
            h (B, D), and the attention (B, H, 1 + M), the null slot first.
        """
        q = self.w_q(self.ln_1(h)).unflatten(-1, (self.n_heads, -1))  # (B, H, D/H)
        s = torch.einsum("bhd,bmhd->bhm", q, k + r.unsqueeze(1)) / math.sqrt(q.shape[-1])
        s = s.masked_fill(~readable.unsqueeze(1), -math.inf)
        attention = F.pad(s, (1, 0)).softmax(dim=-1)  # the null slot's score is 0
        o = torch.einsum("bhm,bmhd->bhd", attention[..., 1:], v)  # its value is 0
        h = h + self.w_o(o.flatten(1))
        return h + self.w_2(F.relu(self.w_1(self.ln_2(h)))), attention


class FeedbackTransformer(Core):
    """The core in its plain form: ``step``, and ``forward`` as ``step`` over time.

    Args:
        d_model: D, the width of every layer and of a memory vector.
        n_layers: L.
        n_heads: H; divides D.
        window: M, the number of memory slots, in steps.
        d_feedforward: the width inside the feed-forward block; ``None`` means 2 D.

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
    ) -> None:
        super().__init__()
        d_feedforward = 2 * d_model if d_feedforward is None else d_feedforward
        check_sizes(d_model=d_model, n_layers=n_layers, n_heads=n_heads, window=window, d_feedforward=d_feedforward)
        check_heads(n_heads, d_model)
        self.d_model, self.n_heads, self.window = d_model, n_heads, window
        layers = [FeedbackLayer(d_model, n_heads, d_feedforward) for _ in range(n_layers)]
        self.layers = nn.ModuleList(layers)
        self.mix = nn.Parameter(torch.zeros(n_layers + 1))  # w: what each layer adds to a memory vector
        self.ln_m = nn.LayerNorm(d_model)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.distance = nn.Parameter(torch.randn(window, d_model // n_heads))  # r: row 0 is distance 1
        self.ln_out = nn.LayerNorm(d_model)
        self._initialise(layers)

    def _initialise(self, layers: list[FeedbackLayer]) -> None:
        """Orthogonal weights, with gains that let the memory be heard from the first update on and not drown the input.

        With torch's default gains (and Wo, W2 divided by sqrt(2 L)), what the first layer reads is 3 % of its input's
        norm at D = 64, M = 32; reinforcement learning, whose signal is weak to begin with, takes long to find it. With
        a gain of sqrt(2) on Wo the memory's noise drowns small observations: CartPole without velocities is learned
        half as fast, and MemoryS9 through a 3x3 view later, than with READ_GAIN.
        """
        for layer in layers:
            nn.init.orthogonal_(layer.w_q.weight)
            nn.init.orthogonal_(layer.w_o.weight, gain=READ_GAIN)
            nn.init.orthogonal_(layer.w_1.weight, gain=math.sqrt(2))
            nn.init.orthogonal_(layer.w_2.weight)
        nn.init.orthogonal_(self.w_k.weight)
        nn.init.orthogonal_(self.w_v.weight, gain=math.sqrt(2))

    def initial_state(self, batch_size: int) -> Memory:
        """An empty memory for ``batch_size`` sequences, on the parameters' device."""
        return Memory.empty(
            batch_size, self.window, self.d_model, device=self.distance.device, dtype=self.distance.dtype
        )

    def read(self, x: Tensor, memory: Memory) -> tuple[list[Tensor], Tensor]:
        """What the layers make of one input and the memory.

        Args:
            x: encoder output x_t^0, (B, D).
            memory: the memory before the step.

        Returns:
            the outputs [x_t^0, ..., x_t^L], each (B, D), and the attention (B, L, H, 1 + M): the
            null slot first, then the slots, oldest first.
        """
        k, v = self.keys_values(blank_unreadable(memory.slots, memory.length))  # (B, M, H, D/H)
        outputs, attentions = [x], []
        for layer in self.layers:
            h, attention = layer(outputs[-1], k, v, self.distance.flip(0), memory.readable)
            outputs.append(h)
            attentions.append(attention)
        return outputs, torch.stack(attentions, dim=1)

    def keys_values(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """Memory vectors (..., D) -> their keys and values, (..., H, D/H)."""
        n = self.ln_m(m)
        return self.w_k(n).unflatten(-1, (self.n_heads, -1)), self.w_v(n).unflatten(-1, (self.n_heads, -1))

    def written(self, outputs: list[Tensor]) -> Tensor:
        """The memory vector (B, D) that a step writes, of the outputs [x_t^0, ..., x_t^L]."""
        m: Tensor = torch.einsum("l,lbd->bd", self.mix.softmax(dim=0), torch.stack(outputs))
        return m

    def attention(self, x: Tensor, state: State) -> Tensor:
        """See ``Core``; what is no slot is the null slot."""
        return self.read(x, Memory(*state))[1]

    def step(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """One time step: x (B, D) and the memory before it -> features (B, D) and the memory after it."""
        outputs, _ = self.read(x, memory)
        return self.ln_out(outputs[-1]), memory.push(self.written(outputs))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, Memory]:
        """``step`` over time: x (B, T, D), a ``Memory``, episode_start (B, T) bool -> (B, T, D), memory.

        No gradient flows into the memory that the sequence starts with.
        """
        slots, length = state
        memory = Memory(slots.detach(), length)
        features = []
        for x_t, start_t in zip(x.unbind(1), episode_start.unbind(1), strict=True):
            y_t, memory = self.step(x_t, memory.reset(start_t))
            features.append(y_t)
        return torch.stack(features, dim=1), memory
