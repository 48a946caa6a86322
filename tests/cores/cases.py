"""The cases of the law: sizes, episode starts and memories, and both forms with the same parameters."""

import torch
from torch import Tensor

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.memory import Memory

B, D, H, L, F = 2, 33, 3, 2, 13
SIZES = {"T < M": (5, 7), "T > M": (11, 5), "T = 2 M + 1": (7, 3), "T = 1": (1, 5)}  # T, M
STARTS = ["none", "at 0", "middle", "two", "end"]
MEMORIES = ["empty", "half", "full"]


def make_cores(
    window: int, dtype: torch.dtype = torch.float64, seed: int = 0, **kwargs
) -> tuple[FeedbackTransformer, ...]:
    """Both forms with the same parameters, all away from their initial values so that none is without effect.

    Not far away: larger weights amplify rounding from step to step until a relu switches in one form only.
    """
    torch.manual_seed(seed)
    sizes = {"d_model": D, "n_layers": L, "n_heads": H, "window": window, "d_feedforward": F} | kwargs
    plain, fast = FeedbackTransformer(**sizes), FastFeedbackTransformer(**sizes)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    fast.load_state_dict(plain.state_dict())
    return plain.to(dtype), fast.to(dtype)


def make_memory(which: str, window: int, d_model: int = D) -> Memory:
    """Its unreadable slots hold large values, so that reading one would show."""
    length = {"empty": [0, 0], "half": [window // 2, 1], "full": [window, window]}[which]
    slots = torch.randn(B, window, d_model, generator=torch.Generator().manual_seed(1)).double()
    memory = Memory(slots, torch.tensor(length))
    return Memory(torch.where(memory.readable.unsqueeze(-1), slots, 100 * slots), memory.length)


def make_starts(which: str, steps: int) -> Tensor:
    """(B, T) bool; the second sequence starts its episodes one step later."""
    at = {"none": [], "at 0": [0], "middle": [steps // 2], "two": [1, steps - 2], "end": [steps - 1]}[which]
    return torch.tensor([[t in at for t in range(steps)], [t - 1 in at for t in range(steps)]])


def make_input(steps: int, d_model: int = D, seed: int = 2) -> Tensor:
    """Single precision holds it exactly."""
    return torch.randn(B, steps, d_model, generator=torch.Generator().manual_seed(seed)).double()


def loss_of(features: Tensor, memory: Memory) -> Tensor:
    """Weighs every element of the features and of the final slots differently."""
    generator = torch.Generator().manual_seed(3)
    parts = (features, memory.slots)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator).to(part) for part in parts]
    return sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))


def results(core: FeedbackTransformer, x: Tensor, memory: Memory, episode_start: Tensor) -> dict[str, Tensor]:
    """Everything that the law is about, by name."""
    to = core.distance
    x, slots = (tensor.detach().clone().to(to).requires_grad_() for tensor in (x, memory.slots))
    core.zero_grad()
    memory = Memory(slots, memory.length.to(to.device))
    features, final = core(x, memory, episode_start.to(to.device))
    loss_of(features, final).backward()
    assert slots.grad is None
    gradients = {name: parameter.grad for name, parameter in core.named_parameters()}
    found = {"features": features, "slots": final.slots, "length": final.length, "x": x.grad, **gradients}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def assert_law(fast: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    for name in plain:
        torch.testing.assert_close(
            fast[name], plain[name], rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
