"""What no step may read has no effect in any form, whatever it holds: zero times NaN would be NaN."""

import pytest
import torch

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_passes import parallel_passes
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.linear_attention import LinearAttention
from fbrl.cores.mingru import MinGRU
from fbrl.cores.rnn import GRU, LSTM
from fbrl.cores.transformer_xl import TransformerXL
from fbrl.memory import Memory

B, T, M, D = 3, 7, 5, 6
SIZES = {"d_model": D, "n_layers": 2, "n_heads": 2, "window": M}
CORES = {
    "plain": (FeedbackTransformer, SIZES),
    "fast": (FastFeedbackTransformer, SIZES),
    "compiled": (FastFeedbackTransformer, SIZES),
    "transformer_xl": (TransformerXL, SIZES),
    "gtrxl": (TransformerXL, SIZES | {"gate": True}),
    "gru": (GRU, {"d_model": D, "n_layers": 2}),
    "lstm": (LSTM, {"d_model": D, "n_layers": 2}),
    "mingru": (MinGRU, {"d_model": D, "n_layers": 2}),
    "linear_attention": (LinearAttention, {"d_model": D, "n_layers": 2, "n_heads": 2}),
}
GARBAGE = [1e30, torch.nan, torch.inf, -torch.inf]


def scan(core, x, state, starts, _):
    return core(x, state, starts)[0]


def act(core, x, state, starts, _):
    actor = core.actor(state)
    return torch.stack([actor.step(x_t, start)[0] for x_t, start in zip(x.unbind(1), starts.unbind(1), strict=True)], 1)


def passes(core, x, state, starts, value):
    """The memory vectors of the last steps of sequences and episodes are unreadable too."""
    unread = torch.cat([starts[:, 1:], torch.ones(B, 1, dtype=torch.bool)], 1).unsqueeze(-1)
    memories = torch.randn(B, T, D, generator=torch.Generator().manual_seed(5)).masked_fill(unread, value)
    return parallel_passes(core, x, state, starts, memories, 2)[0]


FORMS = [
    *((name, scan) for name in CORES),
    *((name, act) for name in CORES),
    ("fast", passes),
]


def outcome(core, form, x, state, starts, value):
    """Features and all gradients."""
    x = x.clone().requires_grad_()
    core.zero_grad()
    features = form(core, x, state, starts, value)
    found = {"features": features.detach()}
    if features.requires_grad:
        features.square().sum().backward()
        found |= {"x": x.grad} | {name: p.grad for name, p in core.named_parameters()}
    return found


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(("name", "form"), FORMS, ids=lambda part: getattr(part, "__name__", part))
def test_what_cannot_be_read_has_no_effect(monkeypatch, name, form, garbage):
    """The first row starts an episode, so that its whole state is unreadable; the second row's memory is part full."""
    torch.manual_seed(0)
    core_class, sizes = CORES[name]
    if name == "compiled":
        pytest.importorskip("numba")
    if name in ("fast", "compiled"):
        monkeypatch.setattr(FastFeedbackTransformer, "form", name)
    core, x = core_class(**sizes), torch.randn(B, T, D)
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 0] = starts[1, 3] = True
    clean = core.initial_state(B)
    first = torch.tensor([0])
    slots, length = torch.randn(clean[0].shape), torch.tensor([M, 2, 0])

    def state(value):
        if clean[-1].dtype != torch.int64:  # no slots with a length
            return tuple(part.index_fill(0, first, value) for part in clean)
        unreadable = ~Memory(slots, length.index_fill(0, first, 0)).readable
        return slots.masked_fill(unreadable.view(*unreadable.shape, *[1] * (slots.dim() - 2)), value), length

    expected, found = (outcome(core, form, x, state(value), starts, value) for value in (0.0, garbage))
    assert all(value.isfinite().all() for value in expected.values())
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
