"""GRU and LSTM against torch's own: in one call without resets, in calls between them with resets."""

import itertools

import pytest
import torch

from fbrl.cores.rnn import GRU, LSTM

B, T, D, L = 3, 11, 5, 2
every_class = pytest.mark.parametrize("core_class", [GRU, LSTM])
# (sequence, step) of the episode starts: pieces of all lengths, none longer than a power of two and longer
STARTS = {
    "none": [],
    "at 0": [(0, 0), (2, 0)],
    "middle": [(1, 5)],
    "two": [(0, 0), (0, 4), (0, 9), (2, 1)],
    "end": [(1, T - 1), (2, T - 1)],
    "every step": [(0, t) for t in range(T)],
}


def make_core(core_class):
    """Biases and gains away from their initial values, so that none is without effect."""
    torch.manual_seed(0)
    core = core_class(D, L)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return core.double()


def make_input(steps=T, seed=1):
    return torch.randn(B, steps, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_state(core, seed=2):
    generator = torch.Generator().manual_seed(seed)
    state = core.initial_state(B)
    return type(state)(*(torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in state))


def make_starts(which, steps=T):
    starts = torch.zeros(B, steps, dtype=torch.bool)
    for row, step in STARTS[which]:
        starts[row, step] = True
    return starts


def reference(core, x, state, starts):
    """Torch's module, called for each sequence and each stretch between its episode starts."""
    features, states = [], []
    for row in range(len(x)):
        parts = tuple(part[row].unsqueeze(1).contiguous() for part in state)  # (L, 1, D)
        cuts = [0, *(step for step in range(1, x.shape[1]) if starts[row, step]), x.shape[1]]
        pieces = []
        for begin, end in itertools.pairwise(cuts):
            if starts[row, begin]:
                parts = tuple(torch.zeros_like(part) for part in parts)
            y, parts = core.rnn(x[row : row + 1, begin:end], parts if len(parts) == 2 else parts[0])
            parts = parts if isinstance(parts, tuple) else (parts,)
            pieces.append(y)
        features.append(torch.cat(pieces, dim=1))
        states.append([part.squeeze(1) for part in parts])
    return core.ln_out(torch.cat(features)), [torch.stack(part) for part in zip(*states, strict=True)]


def gradients(core, x, features, state):
    """Of a loss that weighs every element of the features and the last state differently."""
    generator = torch.Generator().manual_seed(3)
    x.grad = None
    core.zero_grad()
    sum(
        (part * torch.randn(part.shape, dtype=part.dtype, generator=generator)).sum() for part in (features, *state)
    ).backward()
    return {"x": x.grad} | {name: parameter.grad for name, parameter in core.named_parameters()}


@every_class
def test_without_resets_it_is_one_call_of_torch(core_class):
    core, x = make_core(core_class), make_input()
    state = make_state(core)
    calls = []
    core.rnn.register_forward_hook(lambda *call: calls.append(call))
    features, after = core(x, state, make_starts("none"))
    assert len(calls) == 1
    by_layer = tuple(part.transpose(0, 1).contiguous() for part in state)
    expected, last = core.rnn(x, by_layer if core_class is LSTM else by_layer[0])
    assert torch.equal(features, core.ln_out(expected))
    for part, same in zip(after, last if core_class is LSTM else (last,), strict=True):
        assert torch.equal(part, same.transpose(0, 1))


@every_class
@pytest.mark.parametrize("which", STARTS)
def test_equals_calls_between_resets(core_class, which):
    """In features, in the last state and in every gradient."""
    core, x, starts = make_core(core_class), make_input().requires_grad_(), make_starts(which)
    state = make_state(core)
    found, expected = core(x, state, starts), reference(core, x, state, starts)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    for part, same in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=1e-12)
    exact = gradients(core, x, *expected)
    for name, gradient in gradients(core, x, *found).items():
        torch.testing.assert_close(
            gradient, exact[name], rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_class
@pytest.mark.parametrize("which", STARTS)
def test_single_precision_follows_double(core_class, which):
    """On a CPU torch has another LSTM for it."""
    core, x, starts = make_core(core_class), make_input().requires_grad_(), make_starts(which)
    state = make_state(core)
    exact = gradients(core, x, *core(x, state, starts))
    single, x_32 = make_core(core_class).float(), x.detach().float().requires_grad_()
    features, after = single(x_32, tuple(part.float() for part in state), starts)
    assert {part.dtype for part in (features, *after)} == {torch.float32}
    for name, gradient in gradients(single, x_32, features.double(), [part.double() for part in after]).items():
        torch.testing.assert_close(
            gradient.double(), exact[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_class
@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 32])
def test_few_calls_wherever_episodes_start(core_class, steps):
    core, x = make_core(core_class), make_input(steps)
    starts = torch.rand(B, steps, generator=torch.Generator().manual_seed(0)) < 0.3
    starts[1, 1:] |= torch.arange(1, steps) == steps // 2
    state, calls = make_state(core), []
    core.rnn.register_forward_hook(lambda *call: calls.append(call[1][0].shape[:2]))
    features, _ = core(x, state, starts)
    n_calls, n_steps = len(calls), sum(batch * length for batch, length in calls)
    assert n_calls <= steps.bit_length()
    assert n_steps == B * steps, "no step is computed twice, and none is padding"
    torch.testing.assert_close(features, reference(core, x, state, starts)[0], rtol=0, atol=1e-12)


@every_class
@pytest.mark.parametrize("at", [0, 4, T - 1])
def test_an_episode_start_forgets(core_class, at):
    """Bit for bit, whatever came before it: even what is not a number."""
    core, starts = make_core(core_class), torch.zeros(B, T, dtype=torch.bool)
    starts[:, at] = True
    x, state = make_input(), make_state(core)
    features, after = core(x, state, starts)
    other = torch.cat([torch.full_like(x[:, :at], torch.nan), x[:, at:]], dim=1)
    nothing = tuple(torch.full_like(part, torch.nan) for part in state)
    other_features, other_after = core(other, nothing, starts)
    assert torch.equal(features[:, at:], other_features[:, at:])
    assert other_features[:, :at].isnan().all()
    for part, same in zip(after, other_after, strict=True):
        assert torch.equal(part, same)


@every_class
def test_an_episode_start_concerns_its_own_row_only(core_class):
    core, x, starts = make_core(core_class), make_input(), make_starts("middle")
    state = make_state(core)
    features, _ = core(x, state, starts)
    without, _ = core(x, state, make_starts("none"))
    torch.testing.assert_close(features[[0, 2]], without[[0, 2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(features[1, :5], without[1, :5], rtol=0, atol=1e-12)
    assert (features[1, 5:] - without[1, 5:]).abs().amax(dim=-1).min() > 1e-6


@every_class
@pytest.mark.parametrize("cut", [1, 4, 5, 9])
def test_one_scan_is_two_halves(core_class, cut):
    core, x, starts = make_core(core_class), make_input(), make_starts("two")
    state = make_state(core)
    whole, last = core(x, state, starts)
    first, state = core(x[:, :cut], state, starts[:, :cut])
    second, state = core(x[:, cut:], state, starts[:, cut:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-12)
    for part, same in zip(state, last, strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=1e-12)


@every_class
def test_no_gradient_into_the_first_state_nor_across_an_episode_start(core_class):
    core, x = make_core(core_class), make_input().requires_grad_()
    state = tuple(part.requires_grad_() for part in make_state(core))
    features, _ = core(x, state, make_starts("middle"))
    features[:, -1].pow(3).sum().backward()
    assert all(part.grad is None for part in state)
    reached = x.grad.abs().amax(dim=-1) > 0
    assert reached[[0, 2]].all()
    assert reached[1].tolist() == [t >= 5 for t in range(T)]


@every_class
def test_the_state_is_a_value(core_class):
    core, x, starts = make_core(core_class), make_input(), make_starts("two")
    state = make_state(core)
    before = [part.clone() for part in state]
    first, second = (core(x, tuple(state), starts) for _ in range(2))
    assert torch.equal(first[0], second[0])
    for part, same in zip(state, before, strict=True):
        assert torch.equal(part, same)


@every_class
def test_the_initial_state_and_the_first_weights(core_class):
    core = core_class(D, L)
    state = core.initial_state(B)
    assert state._fields == (("h", "c") if core_class is LSTM else ("h",))
    for part in state:
        assert torch.equal(part, torch.zeros(B, L, D))
    for name, parameter in core.rnn.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            torch.testing.assert_close(parameter.T @ parameter, torch.eye(D), rtol=0, atol=1e-5)


@every_class
def test_runs_on_the_device_of_its_parameters(core_class):
    """On "meta", where nothing can be looked at: episode starts are, on the CPU, but not those of a single step."""
    core = make_core(core_class).to("meta")
    x = make_input().to("meta")
    features, after = core(x, core.initial_state(B), make_starts("two"))
    step, _ = core(x[:, :1], after, torch.zeros(B, 1, dtype=torch.bool, device="meta"))
    assert {part.device.type for part in (features, step, *after)} == {"meta"}
    assert (features.shape, step.shape, after[0].shape) == ((B, T, D), (B, 1, D), (B, L, D))


@every_class
@pytest.mark.parametrize("size", ["d_model", "n_layers"])
def test_sizes_below_one_are_errors(core_class, size):
    with pytest.raises(ValueError, match=f"^{size} must be at least 1, got 0$"):
        core_class(**{size: 0})
