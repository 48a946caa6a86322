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
    """Whether a step of ``core`` is ``FeedbackTransformer``'s: no subclass's own."""
    parts = ("step", "read", "keys_values", "written")
    plain = all(getattr(type(core), part) is getattr(FeedbackTransformer, part) for part in parts)
    return plain and all(type(layer) is FeedbackLayer for layer in core.layers)


def step_once(core: FeedbackTransformer, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One time step: x (B, D) and the memory before it -> features (B, D) and the memory after it."""
    heads, window, length = core.n_heads, core.window, memory.length.unsqueeze(1)
    n = core.ln_m(blank_unreadable(memory.slots, memory.length))
    # the null slot stands last: its vector and its embedding, hence its score and its value, are 0
    n = F.pad(n, (0, 0, 0, 1))  # (B, M + 1, D)
    r = F.pad(core.distance.flip(0), (0, 0, 0, 1)).t()  # (D/H, M + 1)
    readable = torch.arange(window + 1, device=length.device) >= window - length
    hidden = torch.where(readable, 0.0, -math.inf).to(n.dtype).unsqueeze(1)
    w_k, w_v = (w.weight.unflatten(0, (heads, -1)) for w in (core.w_k, core.w_v))  # (H, D/H, D)
    w_k, r = (part / math.sqrt(w_k.shape[1]) for part in (w_k, r))
    outputs = [x]
    for layer in core.layers:
        assert isinstance(layer, FeedbackLayer)
        h = outputs[-1]
        q = layer.w_q(layer.ln_1(h)).unflatten(-1, (heads, -1))  # (B, H, D/H)
        by_content = (q.transpose(0, 1) @ w_k).transpose(0, 1) @ n.transpose(1, 2)  # (B, H, M + 1)
        attention = (by_content + q @ r + hidden).softmax(dim=-1)
        read = (attention @ n).transpose(0, 1) @ w_v.transpose(1, 2)  # (H, B, D/H)
        h = h + layer.w_o(read.transpose(0, 1).flatten(1))
        outputs.append(h + layer.w_2(F.relu(layer.w_1(layer.ln_2(h)))))
    slots = torch.cat([memory.slots[:, 1:], mixed(core, outputs)], dim=1)
    return core.ln_out(outputs[-1]), Memory(slots, (memory.length + 1).clamp(max=window))


def mixed(core: FeedbackTransformer, outputs: list[Tensor]) -> Tensor:
    """The memory vector (B, 1, D) that a step writes, of the outputs [x_t^0, ..., x_t^L], in fewer operations."""
    by_layer = torch.cat(outputs, dim=-1).unflatten(-1, (len(outputs), -1))
    written: Tensor = core.mix.softmax(dim=0).unsqueeze(0) @ by_layer
    return written
