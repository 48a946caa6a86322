"""minGRU and linear attention against their recurrences, step by step in loops written apart from them."""

import pytest
import torch
from torch.nn import functional as F

from fbrl.cores.linear_attention import LinearAttention
from fbrl.cores.mingru import MinGRU, linear_recurrence

B, T, D, L, H = 3, 11, 6, 2, 2
STARTS = {
    "none": [],
    "at 0": [(0, 0), (2, 0)],
    "middle": [(1, 5)],
    "two": [(0, 0), (0, 4), (0, 9), (2, 1)],
    "end": [(1, T - 1), (2, T - 1)],
    "every step": [(0, t) for t in range(T)],
}
CORES = {
    "mingru": lambda: MinGRU(D, L, 7),
    "linear_attention": lambda: LinearAttention(D, L, H, 7),
}


def make_core(name):
    """Biases and gains away from their initial values, so that none is without effect."""
    torch.manual_seed(0)
    core = CORES[name]()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return core.double()


def make_input(steps=T, seed=1):
    return torch.randn(B, steps, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_state(core, empty):
    state = core.initial_state(B)
    if empty:
        return state
    generator = torch.Generator().manual_seed(2)
    return type(state)(*(torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in state))


def make_starts(which, steps=T):
    starts = torch.zeros(B, steps, dtype=torch.bool)
    for row, step in STARTS[which]:
        starts[row, step] = True
    return starts


def norm(ln, x):
    x = x - x.mean()
    return x / (x.square().mean() + ln.eps).sqrt() * ln.weight + ln.bias


def block(layer, h):
    inner = layer.feed_forward
    return h + inner.w_2.weight @ (inner.w_1.weight @ norm(inner.ln_2, h) + inner.w_1.bias).relu() + inner.w_2.bias


def mingru_step(layer, x, h):
    n = norm(layer.ln_1, x)
    z = 1 / (1 + (-(layer.w_z.weight @ n + layer.w_z.bias)).exp())
    h = h - z * h + z * (layer.w_h.weight @ n + layer.w_h.bias)
    return block(layer, x + layer.w_o.weight @ h), h


def linear_attention_step(layer, x, s):
    n = norm(layer.ln_1, x)
    q, k, v = (weight @ n for weight in layer.w_qkv.weight.split(D))
    a = 1 / (1 + (-(layer.w_a.weight @ n + layer.w_a.bias)).exp())
    outputs, after = [], []
    for head in range(H):
        part = slice(head * D // H, (head + 1) * D // H)
        new = a[head] * s[head] + torch.outer(k[part], v[part])
        o = new.T @ q[part] / (D // H) ** 0.5
        outputs.append(o / (o.square().mean() + torch.finfo(o.dtype).eps).sqrt())
        after.append(new)
    gate = layer.w_gate.weight @ n
    o = torch.cat(outputs) * gate / (1 + (-gate).exp())
    return block(layer, x + layer.w_o.weight @ o), torch.stack(after)


STEPS = {"mingru": mingru_step, "linear_attention": linear_attention_step}


def reference(name, core, x, state, starts):
    """Sequence by sequence, step by step, layer by layer."""
    features, last = [], []
    for row in range(B):
        memory = list(state[0][row])
        for t in range(x.shape[1]):
            if starts[row, t]:
                memory = [torch.zeros_like(part) for part in memory]
            h = x[row, t]
            for index, layer in enumerate(core.layers):
                h, memory[index] = STEPS[name](layer, h, memory[index])
            features.append(norm(core.ln_out, h))
        last.append(torch.stack(memory))
    return torch.stack(features).view(B, -1, D), torch.stack(last)


def gradients(core, x, features, state):
    """Of a loss that weighs every element of the features and the last state differently."""
    generator = torch.Generator().manual_seed(3)
    x.grad = None
    core.zero_grad()
    parts = (
        (part * torch.randn(part.shape, dtype=part.dtype, generator=generator)).sum() for part in (features, state)
    )
    sum(parts).backward()
    return {"x": x.grad} | {name: parameter.grad for name, parameter in core.named_parameters()}


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "carried"])
@pytest.mark.parametrize("which", STARTS)
@pytest.mark.parametrize("name", CORES)
def test_it_is_its_recurrence(name, which, empty):
    core, x, starts = make_core(name), make_input().requires_grad_(), make_starts(which)
    state = make_state(core, empty)
    features, after = core(x, state, starts)
    ours = gradients(core, x, features, after[0])
    expected, last = reference(name, core, x, state, starts)
    theirs = gradients(core, x, expected, last)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(after[0], last, rtol=0, atol=1e-9)
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, rtol=0, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}")
        assert gradient.any(), parameter


@pytest.mark.parametrize("name", CORES)
def test_two_halves_are_the_whole_and_steps_are_too(name):
    core, x, starts = make_core(name), make_input(), make_starts("two")
    state = make_state(core, empty=False)
    whole, after = core(x, state, starts)
    for size in (1, 4):
        found, carried = [], state
        for t in range(0, T, size):
            y, carried = core(x[:, t : t + size], carried, starts[:, t : t + size])
            found.append(y)
        torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(carried[0], after[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CORES)
def test_float32_is_near_float64(name):
    """Over more steps than a sequence has, with shares that are kept from nearly none to nearly all."""
    core = make_core(name)
    x, state, starts = 3 * make_input(300), make_state(core, empty=False), make_starts("two", 300)
    exact, _ = core(x, state, starts)
    near, _ = core.float()(x.float(), type(state)(state[0].float()), starts)
    torch.testing.assert_close(near.double(), exact, rtol=0, atol=2e-4)


def test_worked_numbers():
    a, b = torch.tensor([[0.5, 0.5, 0.0, 2.0]]), torch.tensor([[8.0, 1.0, 3.0, -1.0]])
    torch.testing.assert_close(linear_recurrence(a, b), torch.tensor([[8.0, 5.0, 3.0, 5.0]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinGRU(0), "d_model must be at least 1, got 0"),
        (lambda: MinGRU(4, 0), "n_layers must be at least 1, got 0"),
        (lambda: LinearAttention(6, 1, 4), "n_heads must divide d_model, got n_heads=4 and d_model=6"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_the_reference_norm_is_torchs():
    """The linear attention's own norm has no gain, and the smallest epsilon of its type."""
    o = torch.randn(5, dtype=torch.float64)
    by_hand = o / (o.square().mean() + torch.finfo(o.dtype).eps).sqrt()
    torch.testing.assert_close(F.rms_norm(o, (5,)), by_hand, rtol=0, atol=1e-15)
