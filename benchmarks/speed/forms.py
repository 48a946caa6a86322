"""What ``benchmarks.speed.scan`` compares: ways to run T steps of B sequences of vectors, forward and backward.

- ``plain``, ``fast`` and, on a CPU with numba, ``compiled``: this repository's forms of one function, with the same
  parameters.
- ``graphs``: on a GPU, the fast form as CUDA graphs; ``fast`` is without there, and ``triton`` the form of Triton
  kernels, where Triton runs.
- ``passes_p``: p parallel passes over the same parameters, from given memory vectors. The same function only where
  these are the scan's own, and the scan's gradients only for p = T; what it costs does not depend on them.
- ``lucidrains``: the layers of the package feedback-transformer-pytorch, one token a step (``seq_len=1``) as the
  recurrence demands, and given vectors: its token embedding and its logits are left out. Its feed-forward block (a
  gated one of three times the size) makes room for ours, so that the multiplications are the same. It computes
  something else: its relative bias does not know where in the memory a slot lies, and there is no norm on the
  memory, no null slot and no episode start.
- ``lstm_1`` and ``lstm_L``: ``torch.nn.LSTM`` of the same width with one and with L layers, without episode starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.report import SEED
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_passes import parallel_passes
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.forms import Form as FormName
from fbrl.cores.forms import cannot_compile, cannot_run_triton
from fbrl.memory import Memory

PASSES = (1, 2, 3)
RIVALS = (
    "lucidrains",
    "lstm_1",
    "lstm_L",
    *(f"passes_{passes}" for passes in PASSES),
)  # what the fast form is set beside


class Size(NamedTuple):
    """Width, layers, heads, slots, steps, sequences."""

    D: int
    L: int
    H: int
    M: int
    T: int
    B: int


class Case(NamedTuple):
    """What a scan is given."""

    x: Tensor  # (B, T, D)
    memory: Memory
    episode_start: Tensor  # (B, T)


class Form(NamedTuple):
    """One way to run the scan."""

    forward: Callable[[], Tensor]  # gives the features (B, T, D)
    wanted: list[Tensor]  # what needs a gradient: the input and the parameters


def make_case(size: Size, dtype: torch.dtype, device: str = "cpu") -> Case:
    """Inputs, full memories, no episode starts."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(size.B, size.T, size.D, generator=generator).to(device, dtype).requires_grad_()
    slots = torch.randn(size.B, size.M, size.D, generator=generator).to(device, dtype)
    length = torch.full((size.B,), size.M, device=device)
    return Case(x, Memory(slots, length), torch.zeros(size.B, size.T, dtype=torch.bool, device=device))


def make_cores(size: Size, dtype: torch.dtype, device: str = "cpu") -> dict[str, FeedbackTransformer]:
    """The forms of the scan that the device has, the plain one first, with the same parameters."""
    torch.manual_seed(SEED)
    fast = FastFeedbackTransformer(*size[:4])
    fast.form = "fast"
    cores = {"plain": FeedbackTransformer(*size[:4]), "fast": fast}
    if torch.device(device).type == "cpu" and cannot_compile() is None:
        cores["compiled"] = compiled = FastFeedbackTransformer(*size[:4])
        compiled.form = "compiled"
    if torch.device(device).type == "cuda":
        fast.cuda_graphs = False
        for name, form in gpu_forms(device).items():
            of_gpu = FastFeedbackTransformer(*size[:4])
            of_gpu.form, cores[name] = form, of_gpu
    for core in cores.values():
        core.load_state_dict(cores["plain"].state_dict())
    return {name: core.to(device, dtype) for name, core in cores.items()}


def gpu_forms(device: str) -> dict[str, FormName]:
    """What only a GPU has."""
    graphs: dict[str, FormName] = {"graphs": "fast"}
    return graphs if cannot_run_triton(torch.device(device)) else graphs | {"triton": "triton"}


def make_forms(size: Size, device: str = "cpu") -> dict[str, Form]:
    """Every form of the size, in single precision; a new one gets its line here."""
    case = make_case(size, torch.float32, device)
    cores = make_cores(size, torch.float32, device)
    forms: dict[str, Form | None] = {
        **{name: core_form(core, case) for name, core in cores.items()},
        **{f"passes_{passes}": passes_form(cores["plain"], case, passes) for passes in PASSES},
        "lucidrains": lucidrains_form(size, case),
        "lstm_1": lstm_form(nn.LSTM(size.D, size.D, 1, batch_first=True, device=device), case),
        "lstm_L": lstm_form(nn.LSTM(size.D, size.D, size.L, batch_first=True, device=device), case),
    }
    return {name: form for name, form in forms.items() if form is not None}


def core_form(core: FeedbackTransformer, case: Case) -> Form:
    """One of this repository's cores."""
    return Form(lambda: core(*case)[0], [case.x, *core.parameters()])


def passes_form(core: FeedbackTransformer, case: Case, passes: int) -> Form:
    """Parallel passes with the weights of a core."""
    memories = case.x.detach()
    return Form(lambda: parallel_passes(core, *case, memories, passes)[0], [case.x, *core.parameters()])


def lstm_form(lstm: nn.LSTM, case: Case) -> Form:
    """torch's LSTM, from an empty state."""
    return Form(lambda: lstm(case.x)[0], [case.x, *lstm.parameters()])


class _Given(nn.Module):
    """Hands out vectors in the place of a token embedding."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.x


def lucidrains_form(size: Size, case: Case) -> Form | None:
    """The package's layers, or ``None`` where it is not installed (``pip install -e .[bench]``)."""
    try:
        from feedback_transformer_pytorch import FeedbackTransformer as Lucidrains
    except ImportError:
        return None
    model: Any = Lucidrains(
        num_tokens=1, dim=size.D, depth=size.L, mem_len=size.M, seq_len=1, heads=size.H, dim_head=size.D // size.H
    )
    model.token_emb, model.to_logits = _Given(case.x), model.to_logits[0]  # the layer norm, which ours has too
    for _, feed_forward in model.layers:
        feed_forward.fn.fn = nn.Sequential(nn.Linear(size.D, 2 * size.D), nn.ReLU(), nn.Linear(2 * size.D, size.D))
    model.to(case.x.device)
    tokens = torch.zeros(size.B, size.T, dtype=torch.long, device=case.x.device)

    def forward() -> Tensor:
        features: Tensor = model(tokens, memory=model.shared_kv_proj(case.memory.slots).chunk(2, dim=-1))
        return features

    return Form(forward, [case.x, *model.parameters()])
