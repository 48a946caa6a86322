"""One step of the Feedback Transformer that projects no memory vector: for those who keep memory vectors and no keys.

The function of ``FeedbackTransformer.step``. A score is q . (Wk n + r) = (Wk^T q) . n + q . r, with n the layer-normed
memory vector, and what a head reads is Wv times the sum of what it attends to: so each layer projects its query and
its sum, once, in the place of all M vectors. That takes L (2 D^2 + 2 H M D) multiplications and not 2 M D^2 + 2 L M D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fbrl.cores.feedback import FeedbackLayer, FeedbackTransformer
from fbrl.memory import Memory, blank_unreadable


def is_plain_step(core: FeedbackTransformer) -> bool:
    """Whether a step of ``core`` is what ``step_once`` computes: no subclass's own."""
    parts = ("step", "read", "keys_values", "written")
    plain = all(getattr(type(core), part) is getattr(FeedbackTransformer, part) for part in parts)
    return plain and all(type(layer) is FeedbackLayer for layer in core.layers)


def step_once(core: FeedbackTransformer, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One time step: x (B, D) and the memory before it -> features (B, D) and the memory after it."""
    n = core.ln_m(blank_unreadable(memory.slots, memory.length))  # (B, M, D)
    hidden = torch.zeros(memory.readable.shape, dtype=x.dtype, device=x.device)
    hidden = hidden.masked_fill(~memory.readable, -math.inf).unsqueeze(1)
    w_k, w_v = (w.weight.unflatten(0, (core.n_heads, -1)) for w in (core.w_k, core.w_v))  # (H, D/H, D)
    outputs = [x]
    for layer in core.layers:
        assert isinstance(layer, FeedbackLayer)
        h = outputs[-1]
        q = layer.w_q(layer.ln_1(h)).unflatten(-1, (core.n_heads, -1)).transpose(0, 1)  # (H, B, D/H)
        q = q / math.sqrt(q.shape[-1])
        s = (q @ w_k).transpose(0, 1) @ n.transpose(1, 2)  # (B, H, M)
        s = s + (q @ core.distance.flip(0).t()).transpose(0, 1) + hidden
        attention = F.pad(s, (1, 0)).softmax(dim=-1)[..., 1:]  # the null slot's score and value are 0
        read = (attention @ n).transpose(0, 1) @ w_v.transpose(1, 2)  # (H, B, D/H)
        h = h + layer.w_o(read.transpose(0, 1).flatten(1))
        outputs.append(h + layer.w_2(F.relu(layer.w_1(layer.ln_2(h)))))
    return core.ln_out(outputs[-1]), memory.push(core.written(outputs))
