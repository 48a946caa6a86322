"""The Feedback Transformer written from its equations alone: one sequence, numbers one by one, a list for a memory.

Nothing is shared with ``fbrl.cores``: no mask, no batch, no slot that is not there. Weights come by their names.
"""

import math

import torch
from torch import Tensor


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Layer norm of a vector."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def weighted(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    """The sum of the values by the softmax of the scores."""
    largest = max(score.item() for score in scores)
    shares = [torch.exp(score - largest) for score in scores]
    return sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)


def attend(n: Tensor, memory: list[Tensor], weights: dict[str, Tensor], layer: str, heads: int) -> Tensor:
    """What the heads read of the memory vectors, oldest first, and of the null slot."""
    d_head = len(n) // heads
    q = weights[f"{layer}.w_q.weight"] @ n
    normed = [norm(m, weights, "ln_m") for m in memory]
    k, v = ([weights[f"{name}.weight"] @ m for m in normed] for name in ("w_k", "w_v"))
    read = []
    for head in range(heads):
        part = slice(head * d_head, (head + 1) * d_head)
        scores, values = [q.new_zeros(())], [q.new_zeros(d_head)]
        for j in range(len(memory)):
            r = weights["distance"][len(memory) - j - 1]  # the newest one is one step away
            scores.append((q[part] @ (k[j][part] + r)) / math.sqrt(d_head))
            values.append(v[j][part])
        read.append(weighted(scores, values))
    return weights[f"{layer}.w_o.weight"] @ torch.cat(read)


def run(
    weights: dict[str, Tensor], heads: int, x: Tensor, memory: list[Tensor], starts: list[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """x (T, D), at most M memory vectors, T truth values -> T features and the memory vectors that are left."""
    window, features = len(weights["distance"]), []
    layers = sum(name.endswith("w_q.weight") for name in weights)
    for x_t, start in zip(x, starts, strict=True):
        memory = [] if start else memory
        outputs = [x_t]
        for number in range(layers):
            layer, h = f"layers.{number}", outputs[-1]
            h = h + attend(norm(h, weights, f"{layer}.ln_1"), memory, weights, layer, heads)
            u = weights[f"{layer}.w_1.weight"] @ norm(h, weights, f"{layer}.ln_2") + weights[f"{layer}.w_1.bias"]
            outputs.append(h + weights[f"{layer}.w_2.weight"] @ torch.clamp(u, min=0) + weights[f"{layer}.w_2.bias"])
        features.append(norm(outputs[-1], weights, "ln_out"))
        memory = [*memory, weighted(list(weights["mix"]), outputs)][-window:]
    return features, memory
