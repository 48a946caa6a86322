"""Transformer-XL against its equations written out, against full causal attention, and its properties."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fbrl.cores.transformer_xl import GATE_BIAS, Gate, LayerInputs, TransformerXL, TransformerXLLayer

B, T, M, H, D, L, WIDE = 2, 11, 5, 3, 33, 2, 13
both = pytest.mark.parametrize("gate", [False, True], ids=["residual", "gate"])


def make_core(gate=False, window=M, **sizes):
    """Parameters away from their initial values, so that none is without effect."""
    torch.manual_seed(0)
    core = TransformerXL(
        **({"d_model": D, "n_layers": L, "n_heads": H, "d_feedforward": WIDE} | sizes), window=window, gate=gate
    )
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return core.double()


def make_input(steps=T, seed=1):
    return torch.randn(B, steps, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_state(*length, seed=2, window=M):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randn(len(length), window, L, D, dtype=torch.float64, generator=generator)
    return LayerInputs(slots, torch.tensor(length))


def make_starts(*at, steps=T):
    """Both sequences start an episode at the steps ``at``."""
    return torch.tensor([t in at for t in range(steps)]).expand(B, -1)


def join(module, x, y):
    """``x + y``, or the equations of the gate."""
    if not isinstance(module, Gate):
        return x + y
    (w_r, w_z, w_g), (u_r, u_z) = module.w.weight.chunk(3), module.u.weight.chunk(2)
    y = F.relu(y)
    r = torch.sigmoid(w_r @ y + u_r @ x)
    z = torch.sigmoid(w_z @ y + u_z @ x - module.b_g)
    h = torch.tanh(w_g @ y + module.u_g.weight @ (r * x))
    return (1 - z) * x + z * h


def written_out(core, x, starts, slots, length):
    """The equations of the docstring for one sequence: loops over steps, layers, heads and what is read.

    x (T, D), slots (M, L, D); returns the features and what entered each layer, (T, D) and (T, L, D).
    """
    width, entered = D // H, {j - M: slots[j] for j in range(M)}  # by step; those before the sequence are negative
    features, first = [], -length
    for t in range(len(x)):
        first = t if starts[t] else first
        h, inputs = x[t], []
        for i, layer in enumerate(core.layers):
            inputs.append(h)
            n = {j: layer.ln_1(entered[j][i] if j < t else h) for j in range(max(first, t - core.window), t + 1)}
            o = []
            for head in range(H):
                part = slice(head * width, (head + 1) * width)
                q, r = layer.w_q(n[t])[part], core.distance
                s = torch.stack([(q @ layer.w_k(n[j])[part] + q @ r[t - j]) / math.sqrt(width) for j in n])
                o.append(sum(share * layer.w_v(n[j])[part] for share, j in zip(s.softmax(dim=0), n, strict=True)))
            h = join(layer.join_1, h, layer.w_o(torch.cat(o)))
            h = join(layer.join_2, h, layer.w_2(F.relu(layer.w_1(layer.ln_2(h)))))
        entered[t] = torch.stack(inputs)
        features.append(core.ln_out(h))
    return torch.stack(features), torch.stack([entered[t] for t in range(len(x))])


@both
@torch.no_grad()
def test_equals_the_equations_written_out(gate):
    """A window that fills, a memory from before, and rows whose episodes start at different steps."""
    core, x, (slots, length) = make_core(gate), make_input(), make_state(3, M)
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 2] = starts[0, 9] = True
    features, after = core(x, (slots, length), starts)
    for b in range(B):
        expected, entered = written_out(core, x[b], starts[b].tolist(), slots[b], length[b].item())
        torch.testing.assert_close(features[b], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(after.slots[b], entered[-M:], rtol=0, atol=1e-10)
    assert after.length.tolist() == [2, M]


def test_a_window_that_covers_everything_is_full_causal_attention():
    """Of torch, over the whole sequence, with the relative positions as an additive bias."""
    core, x = make_core(window=T - 1), make_input()
    features, _ = core(x, core.initial_state(B), make_starts(0))
    h, distance = x, torch.arange(T).unsqueeze(1) - torch.arange(T)
    for layer in core.layers:
        n = layer.ln_1(h)
        q, k, v = (w(n).unflatten(-1, (H, -1)).transpose(1, 2) for w in (layer.w_q, layer.w_k, layer.w_v))
        bias = torch.einsum("bhtd,tjd->bhtj", q, core.distance[distance.clamp(min=0)]) / math.sqrt(D // H)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(distance < 0, -math.inf))
        h = h + layer.w_o(o.transpose(1, 2).flatten(2))
        h = h + layer.w_2(F.relu(layer.w_1(layer.ln_2(h))))
    torch.testing.assert_close(features, core.ln_out(h), rtol=0, atol=1e-12)


@both
def test_gradients(gate):
    core, x = make_core(gate, d_model=6, n_layers=2, d_feedforward=5, window=3), torch.randn(2, 4, 6).double()
    starts = torch.tensor([[False] * 4, [False, False, True, False]])
    state = LayerInputs(torch.randn(2, 3, 2, 6).double(), torch.tensor([2, 3]))

    def forward(x, *weights):
        names = [name for name, _ in core.named_parameters()]
        return torch.func.functional_call(core, dict(zip(names, weights, strict=True)), (x, state, starts))[0]

    assert torch.autograd.gradcheck(forward, (x.requires_grad_(), *core.parameters()), fast_mode=True)


@pytest.mark.parametrize("length", [(0, 0), (3, M), (M, M)])
@pytest.mark.parametrize("at", [(), (0,), (4,), (1, 9), (T - 1,)])
@both
def test_acting_is_evaluating(gate, at, length):
    """T calls of one step are one call of T steps."""
    core, x, state, starts = make_core(gate), make_input(), make_state(*length), make_starts(*at)
    features, after = core(x, state, starts)
    actor = core.actor(state)
    for t in range(T):
        y, state = actor.step(x[:, t], starts[:, t])
        torch.testing.assert_close(y, features[:, t], rtol=0, atol=1e-12)
    torch.testing.assert_close(state.slots, after.slots, rtol=0, atol=1e-12)
    assert torch.equal(state.length, after.length)


@pytest.mark.parametrize("cuts", [(1,), (4,), (4, 9)])
def test_one_scan_is_several_in_a_row(cuts):
    core, x, state, starts = make_core(), make_input(), make_state(2, M), make_starts(6)
    whole, last = core(x, state, starts)
    pieces = []
    for first, end in itertools.pairwise([0, *cuts, T]):
        y, state = core(x[:, first:end], state, starts[:, first:end])
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.slots, last.slots, rtol=0, atol=1e-12)
    assert torch.equal(state.length, last.length)


@both
@pytest.mark.parametrize("at", [0, 4, T - 1])
def test_an_episode_start_forgets(gate, at):
    """Bit for bit, whatever came before it."""
    core, x, starts = make_core(gate), make_input(), make_starts(at)
    features, after = core(x, make_state(M, 3), starts)
    other = torch.cat([1e6 * make_input(seed=3)[:, :at], x[:, at:]], dim=1)
    other_features, other_after = core(other, make_state(1, M, seed=4), starts)
    assert torch.equal(features[:, at:], other_features[:, at:])
    assert after.length.tolist() == other_after.length.tolist() == [min(T - at, M)] * B
    kept = after.slots[:, -min(T - at, M) :]
    assert torch.equal(kept, other_after.slots[:, -min(T - at, M) :])


def test_unreadable_slots_have_no_effect():
    core, x, state = make_core(), make_input(), make_state(0, 3)
    features, _ = core(x, state, make_starts())
    slots = state.slots.clone()
    slots[0] *= -1e6
    slots[1, : M - 3] *= -1e6
    assert torch.equal(core(x, LayerInputs(slots, state.length), make_starts())[0], features)
    slots[1, M - 3] += 1
    assert not torch.equal(core(x, LayerInputs(slots, state.length), make_starts())[0], features)


def test_each_layer_reads_m_steps_back():
    """And the gradient goes as far, within the sequence and the episode; none into what was kept from before."""
    for n_layers in (1, 2):
        core, x = make_core(n_layers=n_layers, window=3), make_input().requires_grad_()
        state = LayerInputs(torch.randn(B, 3, n_layers, D).double().requires_grad_(), torch.tensor([3, 3]))
        starts = make_starts().clone()
        starts[1, 8] = True
        features, _ = core(x, state, starts)
        features[:, -1].pow(3).sum().backward()
        reached = x.grad.abs().amax(dim=-1) > 1e-12
        assert reached[0].tolist() == [T - 1 - t <= 3 * n_layers for t in range(T)]
        assert reached[1].tolist() == [t >= 8 for t in range(T)]
        assert state.slots.grad is None


def test_order_matters_through_the_distances_alone():
    core, x, state = make_core(n_layers=1), make_input(1), make_state(M, M)
    state = LayerInputs(state.slots[:, :, :1], state.length)
    swapped = LayerInputs(state.slots[:, [0, 3, 2, 1, 4]], state.length)
    start = make_starts(steps=1)
    assert (core(x, state, start)[0] - core(x, swapped, start)[0]).abs().amax(dim=-1).min() > 1e-4
    with torch.no_grad():
        core.distance.zero_()
    torch.testing.assert_close(core(x, state, start)[0], core(x, swapped, start)[0], rtol=0, atol=1e-12)


def test_rows_do_not_see_each_other():
    core, x, state = make_core(), make_input(), make_state(2, M)
    features, _ = core(x, state, make_starts(4))
    for b in range(B):
        row = tuple(part[b : b + 1] for part in state)
        alone, _ = core(x[b : b + 1], row, make_starts(4)[:1])
        torch.testing.assert_close(alone[0], features[b], rtol=0, atol=1e-12)


def test_a_gate_by_hand():
    """One number wide: x = 1, y = 2 and then y = -2, which the relu makes 0.

    r = sigmoid(ln 3 y + 0 x) = 9/10, and 1/2; z = sigmoid(ln 2 y + 3 ln 2 x - ln 4) = 8/9, and 2/3;
    h = tanh(y + 10/9 r x) = tanh(3), and tanh(5/9); g = (1 - z) x + z h.
    """
    gate = Gate(1).double()
    assert gate.b_g.item() == GATE_BIAS == 2
    with torch.no_grad():
        gate.w.weight.copy_(torch.tensor([[math.log(3)], [math.log(2)], [1]]))
        gate.u.weight.copy_(torch.tensor([[0], [3 * math.log(2)]]))
        gate.u_g.weight.fill_(10 / 9)
        gate.b_g.fill_(math.log(4))
    x, y = torch.ones(2, 1).double(), torch.tensor([[2.0], [-2.0]]).double()
    expected = [1 / 9 + 8 / 9 * math.tanh(3), 1 / 3 + 2 / 3 * math.tanh(5 / 9)]
    torch.testing.assert_close(gate(x, y).flatten().tolist(), expected, rtol=0, atol=1e-7)


def test_gates_hand_on_most_of_their_input_at_first():
    torch.manual_seed(0)
    x, y = torch.randn(1000, D), torch.randn(1000, D)
    gate = Gate(D)
    kept = (gate(x, y) - x).norm() / x.norm()
    with torch.no_grad():
        gate.b_g.zero_()
    assert kept < 0.5 * (gate(x, y) - x).norm() / x.norm()


def test_parameter_names_and_shapes():
    """What saved agents hold."""
    block = {"ln_1.weight": (D,), "ln_1.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,)}
    block |= {f"w_{name}.weight": (D, D) for name in "qkvo"}
    block |= {"w_1.weight": (WIDE, D), "w_1.bias": (WIDE,), "w_2.weight": (D, WIDE), "w_2.bias": (D,)}
    gate = {"w.weight": (3 * D, D), "u.weight": (2 * D, D), "u_g.weight": (D, D), "b_g": (D,)}
    gated = block | {f"join_{i}.{name}": shape for i in (1, 2) for name, shape in gate.items()}
    shared = {"distance": (M + 1, D // H), "ln_out.weight": (D,), "ln_out.bias": (D,)}
    for core, layer in ((make_core(), block), (make_core(gate=True), gated)):
        expected = shared | {f"layers.{i}.{name}": shape for i in range(L) for name, shape in layer.items()}
        assert {name: tuple(value.shape) for name, value in core.state_dict().items()} == expected


@both
def test_a_late_loss_reaches_every_parameter(gate):
    core = make_core(gate)
    core(make_input(), make_state(M, 3), make_starts())[0][:, -1].pow(3).sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name


def test_runs_without_looking_at_values():
    """On the meta device, where there are none."""
    core = make_core().to("meta")
    state = core.initial_state(B)
    features, after = core(make_input().to("meta"), state, make_starts(4).to("meta"))
    assert {part.device.type for part in (*state, features, *after)} == {"meta"}
    assert (features.shape, after.slots.shape, after.length.shape) == ((B, T, D), (B, M, L, D), (B,))
    assert [part.shape for part in state] == [part.shape for part in after]


@pytest.mark.parametrize("size", ["d_model", "n_layers", "n_heads", "window", "d_feedforward"])
def test_sizes_below_one_are_errors(size):
    with pytest.raises(ValueError, match=f"^{size} must be at least 1, got 0$"):
        TransformerXL(**{size: 0})


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match=r"^n_heads must divide d_model, got n_heads=3 and d_model=32$"):
        TransformerXL(d_model=32, n_heads=3)


def test_the_feed_forward_block_is_twice_as_wide_by_default():
    assert TransformerXL(D, L, H, M).layers[0].w_1.out_features == 2 * D


@pytest.mark.parametrize("gate", [False, True])
def test_attention_is_what_a_step_pays(gate, monkeypatch):
    """What ``forward`` weighs the values with, the step itself put before the slots."""
    core = TransformerXL(8, n_layers=2, n_heads=2, window=5, gate=gate)
    start = torch.tensor([[True, False, False], [False, False, True]])
    _, state = core(torch.randn(2, 3, 8), core.initial_state(2), start)
    x, paid, attend = torch.randn(2, 8), [], TransformerXLLayer.attend

    def note(*arguments):
        paid.append(attend(*arguments)[0][:, :, 0])
        return attend(*arguments)

    monkeypatch.setattr(TransformerXLLayer, "attend", note)
    core(x.unsqueeze(1), state, torch.zeros(2, 1, dtype=torch.bool))
    expected = torch.stack(paid, dim=1)
    found = core.attention(x, state)
    torch.testing.assert_close(found[..., 1:], expected[..., :-1])
    torch.testing.assert_close(found[..., 0], expected[..., -1])
    assert ((found > 0).sum(dim=-1) == torch.tensor([4, 2])[:, None, None]).all()  # itself and what is of its episode
