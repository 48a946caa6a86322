"""The definition: numbers worked out by hand, the equations written out in loops, and properties."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fbrl.cores.feedback import READ_GAIN, FeedbackTransformer
from fbrl.memory import Memory

B, T, M, H, D, L, F = 2, 7, 5, 3, 33, 2, 13


def make_core(**kwargs) -> FeedbackTransformer:
    """A core whose every parameter is away from its initial value, so that none of them is without effect."""
    torch.manual_seed(0)
    sizes = {"d_model": D, "n_layers": L, "n_heads": H, "window": M, "d_feedforward": F}
    core = FeedbackTransformer(**(sizes | kwargs))
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return core.double()


def make_input(steps: int = T, seed: int = 1) -> Tensor:
    return torch.randn(B, steps, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_memory(*length: int, seed: int = 2) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randn(len(length), M, D, dtype=torch.float64, generator=generator)
    return Memory(slots, torch.tensor(length))


def starts(*at: int, steps: int = T) -> Tensor:
    """Both sequences start an episode at the steps ``at``."""
    return torch.tensor([t in at for t in range(steps)]).expand(B, -1)


def write_only_the_input(core: FeedbackTransformer) -> None:
    """w such that m_t = x_t^0 exactly: the other layers' share underflows to zero."""
    with torch.no_grad():
        core.mix.copy_(torch.tensor([1000.0] + [0.0] * (len(core.mix) - 1)))


def assert_same(actual: tuple[Tensor, Memory], expected: tuple[Tensor, Memory]) -> None:
    """Features and memories are equal bit for bit."""
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1].slots, expected[1].slots)
    assert torch.equal(actual[1].length, expected[1].length)


def test_numbers_worked_out_by_hand():
    """Six steps through a window of two, with a new episode at the fifth.

    A layer norm of two numbers, with nothing added to the variance, is (1, -1) or (-1, 1). With
    e, f, c, g for the sign of (first - second) in a step's input x, its memory vector m, what
    enters its feed-forward block and its output x^1, the weights below make of the equations

        q   = Wq e (1, -1)   = sqrt(2) ln(2) e (1, -1)
        k_j = Wk f_j (1, -2) = f_j (1, 0)              LN_m has the gain (1, 2)
        v_j = Wv f_j (1, -2) = f_j (3, 1)
        exp(s_j) = 2^(e (f_j + 1)) at distance 1, 2^(e (f_j + 2)) at distance 2, 1 for the null slot
        a   = sum_j softmax_j(s) f_j, o = a (3, 1), Wo o = a (3, 7)
        feed-forward = (2, 4) relu(c + 1/2) + (1, -1)  = (4, 5) if c = 1, (1, -1) if c = -1
        m   = x / 4 + 3 x^1 / 4
        y   = (2, 0) if g = 1, (-2, 2) if g = -1       LN_out has the gain (2, 1) and the bias (0, 1)

    step 0  x = (3, 1), e = +1. Nothing to read: h = (3, 1), c = +1, x^1 = (7, 6).
            m = (3/4 + 21/4, 1/4 + 18/4) = (6, 19/4), f = +1, g = +1.
    step 1  x = (0, 2), e = -1. Distance 1: f = +1, 2^-2 = 1/4. The sum with the null slot is 5/4.
            a = 1/5, Wo o = (3/5, 7/5), h = (3/5, 17/5), c = -1, x^1 = (8/5, 12/5).
            m = (6/5, 1/2 + 9/5) = (6/5, 23/10), f = -1, g = -1.
    step 2  x = (5, -1), e = +1. Distance 1: f = -1, 2^0 = 1. Distance 2: f = +1, 2^3 = 8. The sum is 10.
            a = -1/10 + 8/10 = 7/10, Wo o = (21/10, 49/10), h = (71/10, 39/10), c = +1, x^1 = (111/10, 89/10).
            m = (5/4 + 333/40, -1/4 + 267/40) = (383/40, 257/40), f = +1, g = +1.
    step 3  x = (1, 2), e = -1. Step 0 has left the window. Distance 1: f = +1, 2^-2 = 1/4.
            Distance 2: f = -1, 2^-1 = 1/2. The sum is 7/4. a = 1/7 - 2/7 = -1/7, Wo o = (-3/7, -1),
            h = (4/7, 1), c = -1, x^1 = (11/7, 0). m = (1/4 + 33/28, 1/2) = (10/7, 1/2), f = +1, g = +1.
    step 4  A new episode, x = (4, 1). Nothing to read: h = (4, 1), c = +1, x^1 = (8, 6).
            m = (7, 19/4), f = +1, g = +1.
    step 5  x = (0, 1), e = -1. Distance 1: f = +1, 2^-2 = 1/4; distance 2 is another episode's.
            a = 1/5, h = (3/5, 12/5), c = -1, x^1 = (8/5, 7/5). m = (6/5, 13/10), g = +1.
    """
    core = FeedbackTransformer(d_model=2, n_layers=1, n_heads=1, window=2, d_feedforward=1).double()
    (layer,) = core.layers
    scale = math.sqrt(2) * math.log(2)
    weights = {
        layer.w_q.weight: [[2 * scale, scale], [0, scale]],
        layer.w_o.weight: [[1, 0], [2, 1]],
        layer.w_1.weight: [[0.5, -0.5]],
        layer.w_1.bias: [0.5],
        layer.w_2.weight: [[2], [4]],
        layer.w_2.bias: [1, -1],
        core.mix: [0, math.log(3)],
        core.ln_m.weight: [1, 2],
        core.w_k.weight: [[1, 0], [4, 2]],
        core.w_v.weight: [[5, 1], [3, 1]],
        core.distance: [[1, 0], [1, -1]],
        core.ln_out.weight: [2, 1],
        core.ln_out.bias: [0, 1],
    }
    with torch.no_grad():
        for parameter, values in weights.items():
            parameter.copy_(torch.tensor(values, dtype=torch.float64))
    for norm in (layer.ln_1, layer.ln_2, core.ln_m, core.ln_out):
        norm.eps = 1e-30  # lost beside a variance, and makes zeros of the zeros in an empty slot
    x = torch.tensor([[3, 1], [0, 2], [5, -1], [1, 2], [4, 1], [0, 1]]).double()
    expected_m = [
        [6.0, 19 / 4],
        [6 / 5, 23 / 10],
        [383 / 40, 257 / 40],
        [10 / 7, 1 / 2],
        [7.0, 19 / 4],
        [6 / 5, 13 / 10],
    ]
    expected_y = [[2.0, 0.0], [-2.0, 2.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    expected_length = [1, 2, 2, 2, 1, 2]

    memory = core.initial_state(1)
    for t in range(6):
        y, memory = core(x[t].view(1, 1, 2), memory, torch.tensor([[t == 4]]))
        torch.testing.assert_close(memory.slots[0, -1].tolist(), expected_m[t], rtol=0, atol=1e-12)
        torch.testing.assert_close(y[0, 0].tolist(), expected_y[t], rtol=0, atol=1e-12)
        assert memory.length.item() == expected_length[t]


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    scaled = (x - x.mean()) / math.sqrt(x.var() + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def written_out(core: FeedbackTransformer, x: np.ndarray, episode_start: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """The equations of the docstring for one sequence that starts empty: loops over steps, layers, heads and slots.

    Slots are named by the step that wrote them; returns the features and the memory vectors of every step.
    """
    p = {name: parameter.detach().numpy() for name, parameter in core.named_parameters()}
    mix = np.exp(p["mix"]) / np.exp(p["mix"]).sum()
    width = core.d_model // core.n_heads
    features, written, first = [], [], 0
    for t in range(len(x)):
        first = t if episode_start[t] else first
        readable = [j for j in range(first, t) if t - j <= core.window]
        h, outputs = x[t], [x[t]]
        for i, layer in enumerate(core.layers):
            q = p[f"layers.{i}.w_q.weight"] @ layer_norm(h, layer.ln_1)
            o = np.zeros(core.d_model)
            for head in range(core.n_heads):
                part = slice(head * width, (head + 1) * width)
                weights, values = [1.0], [np.zeros(width)]  # the null slot: exp(0), 0
                for j in readable:
                    k = (p["w_k.weight"] @ layer_norm(written[j], core.ln_m))[part]
                    v = (p["w_v.weight"] @ layer_norm(written[j], core.ln_m))[part]
                    r = p["distance"][t - j - 1]
                    weights.append(math.exp((q[part] @ k + q[part] @ r) / math.sqrt(width)))
                    values.append(v)
                o[part] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            h = h + p[f"layers.{i}.w_o.weight"] @ o
            inner = p[f"layers.{i}.w_1.weight"] @ layer_norm(h, layer.ln_2) + p[f"layers.{i}.w_1.bias"]
            h = h + p[f"layers.{i}.w_2.weight"] @ np.maximum(inner, 0) + p[f"layers.{i}.w_2.bias"]
            outputs.append(h)
        features.append(layer_norm(h, core.ln_out))
        written.append(sum(share * output for share, output in zip(mix, outputs, strict=True)))
    return np.array(features), np.array(written)


def test_equals_the_equations_written_out():
    """Several layers and heads, a window that fills, and rows whose episodes start at different steps."""
    steps, core = 11, make_core()
    x = make_input(steps)
    episode_start = torch.zeros(B, steps, dtype=torch.bool)
    episode_start[0, 0] = episode_start[1, 3] = episode_start[1, 9] = True
    y, memory = core(x, core.initial_state(B), episode_start)
    for b in range(B):
        features, written = written_out(core, x[b].numpy(), episode_start[b].tolist())
        torch.testing.assert_close(y[b], torch.from_numpy(features), rtol=0, atol=1e-10)
        torch.testing.assert_close(memory.slots[b], torch.from_numpy(written[-M:]), rtol=0, atol=1e-10)
    assert memory.length.tolist() == [M, 2]


def test_order_matters():
    """Two slots that trade places change the output, and they do so through their distance alone."""
    core, x, memory = make_core(), make_input()[:, 0], make_memory(M, M)
    swapped = Memory(memory.slots[:, [0, 3, 2, 1, 4]], memory.length)
    difference = (core.step(x, memory)[0] - core.step(x, swapped)[0]).abs().amax(dim=-1)
    assert (difference > 1e-3).all()
    with torch.no_grad():
        core.distance.zero_()
    torch.testing.assert_close(core.step(x, memory)[0], core.step(x, swapped)[0], rtol=0, atol=1e-12)


def test_unreadable_slots_have_no_effect():
    core, x, memory = make_core(), make_input(), make_memory(0, 3)
    expected = core(x, memory, starts())
    garbage = torch.where(memory.readable.unsqueeze(-1), memory.slots, 1e6 * torch.randn_like(memory.slots))
    assert_same(core(x, Memory(garbage, memory.length), starts()), expected)


def test_every_readable_slot_has_an_effect():
    core, x, memory = make_core(), make_input()[:, 0], make_memory(M, 3)
    memory.slots.requires_grad_()
    core.read(x, memory)[0][-1].sum().backward()
    assert torch.equal(memory.slots.grad.abs().amax(dim=-1) > 0, memory.readable)


@pytest.mark.parametrize("at", [0, 3, T - 1])
def test_an_episode_start_forgets(at):
    """Whatever came before it, nothing from the episode's first step on changes."""
    core, x = make_core(), make_input()
    other = torch.cat([make_input(seed=3)[:, :at], x[:, at:]], dim=1)
    y, memory = core(x, make_memory(M, 3), starts(at))
    other_y, other_memory = core(other, make_memory(1, M, seed=4), starts(at))
    assert torch.equal(y[:, at:], other_y[:, at:])
    assert torch.equal(memory.length, other_memory.length)
    assert memory.length.tolist() == [min(T - at, M)] * B
    kept = memory.readable
    assert torch.equal(memory.slots[kept], other_memory.slots[kept])


def test_an_episode_start_concerns_its_own_row_only():
    core, x, memory = make_core(), make_input(), make_memory(M, M)
    episode_start = starts().clone()
    episode_start[0, 3] = True
    y, _ = core(x, memory, episode_start)
    without, _ = core(x, memory, starts())
    assert torch.equal(y[1], without[1])
    assert not torch.equal(y[0, 3], without[0, 3])


@pytest.mark.parametrize("cuts", [[3], [1, 6], list(range(1, T))])
def test_one_scan_equals_the_scan_in_pieces(cuts):
    core, x, episode_start = make_core(), make_input(), starts(4)
    whole = core(x, make_memory(2, M), episode_start)
    pieces, memory = [], make_memory(2, M)
    for first, last in zip([0, *cuts], [*cuts, T], strict=True):
        y, memory = core(x[:, first:last], memory, episode_start[:, first:last])
        pieces.append(y)
    assert_same((torch.cat(pieces, dim=1), memory), whole)


def test_acting_equals_the_scan():
    """``step`` after step is what ``forward`` does."""
    core, x, memory = make_core(), make_input(), make_memory(2, M)
    expected = core(x, memory, starts())
    features = []
    for t in range(T):
        y, memory = core.step(x[:, t], memory)
        features.append(y)
    assert_same((torch.stack(features, dim=1), memory), expected)


def test_rows_do_not_see_each_other():
    core, x, memory = make_core(), make_input(), make_memory(2, M)
    y, _ = core(x, memory, starts(4))
    for b in range(B):
        row = Memory(memory.slots[b : b + 1], memory.length[b : b + 1])
        alone, _ = core(x[b : b + 1], row, starts(4)[:1])
        torch.testing.assert_close(alone[0], y[b], rtol=0, atol=1e-12)


def test_a_step_is_not_among_its_own_keys():
    """With nothing to read, neither the output nor what is written depends on how memories are read."""
    core, x = make_core(), make_input()[:, 0]
    expected = core.step(x, core.initial_state(B))
    with torch.no_grad():
        for parameter in (core.w_k.weight, core.w_v.weight, core.distance, core.ln_m.weight):
            parameter.normal_()
    assert_same(core.step(x, core.initial_state(B)), expected)


def test_an_empty_memory_reads_zero():
    """Attention is on the null slot alone, and the layer is its feed-forward block."""
    core, x = make_core(n_layers=1), make_input()[:, 0]
    outputs, attention = core.read(x, core.initial_state(B))
    assert torch.equal(attention[..., 0], torch.ones(B, 1, H, dtype=torch.float64))
    (layer,) = core.layers
    assert torch.equal(outputs[1], x + layer.w_2(torch.relu(layer.w_1(layer.ln_2(x)))))


def test_attention_sums_to_one_over_the_readable_slots():
    core, memory = make_core(), make_memory(0, 3)
    outputs, attention = core.read(make_input()[:, 0], memory)
    assert [tuple(output.shape) for output in outputs] == [(B, D)] * (L + 1)
    assert attention.shape == (B, L, H, 1 + M)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(B, L, H, dtype=torch.float64), rtol=0, atol=1e-12)
    readable = memory.readable.view(B, 1, 1, M).expand(-1, L, H, -1)
    assert (attention[..., 1:][readable] > 0).all()
    assert (attention[..., 1:][~readable] == 0).all()
    assert (attention[..., 0] > 0).all()


def test_the_window_ends_after_m_steps():
    """Where only inputs are written, an input is read for M steps and then has no effect at all."""
    core, x = make_core(), make_input()
    write_only_the_input(core)
    changed = torch.cat([make_input(seed=3)[:, :1], x[:, 1:]], dim=1)
    y, memory = core(x, core.initial_state(B), starts())
    other_y, other_memory = core(changed, core.initial_state(B), starts())
    differs = (y - other_y).abs().amax(dim=(0, 2)) > 0
    assert differs.tolist() == [t <= M for t in range(T)]
    assert torch.equal(memory.slots, x[:, -M:])
    assert torch.equal(other_memory.slots, memory.slots)


def test_memory_vectors_carry_further_than_the_window():
    """Where the layers' outputs are written, step 0 still counts M + 1 steps later: a recurrence, not a window."""
    core, x = make_core(window=2), make_input().requires_grad_()
    y, _ = core(x, core.initial_state(B), starts())
    y[:, -1].pow(2).sum().backward()
    assert (x.grad.abs().amax(dim=-1) > 1e-9).all()


def test_a_late_loss_reaches_how_and_what_was_written():
    """Every parameter has a gradient, that of the mix w included; without it nothing learns to write."""
    core = make_core()
    y, _ = core(make_input(), core.initial_state(B), starts())
    y[:, -1].pow(3).sum().backward()
    for name, parameter in core.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name


def test_no_gradient_crosses_an_episode_start():
    core, x = make_core(), make_input().requires_grad_()
    y, _ = core(x, core.initial_state(B), starts(3))
    y[:, 3:].pow(3).sum().backward()
    assert (x.grad[:, :3] == 0).all()
    assert (x.grad[:, 3:].abs().amax(dim=-1) > 0).all()


def test_no_gradient_into_the_first_memory():
    core, x, memory = make_core(), make_input(), make_memory(M, M)
    memory.slots.requires_grad_()
    y, _ = core(x, memory, starts())
    y.pow(3).sum().backward()
    assert memory.slots.grad is None


def test_the_state_is_a_value():
    """It is not changed by a call, the module keeps nothing, and a second call gives the same."""
    core, x, memory = make_core(), make_input(), make_memory(2, M)
    slots, length = memory.slots.clone(), memory.length.clone()
    before = {name: value.clone() for name, value in core.state_dict().items()}
    first, second = (core(x, memory, starts(4)) for _ in range(2))
    assert_same(second, first)
    assert torch.equal(memory.slots, slots)
    assert torch.equal(memory.length, length)
    assert all(torch.equal(value, before[name]) for name, value in core.state_dict().items())


def test_a_plain_tuple_is_a_state():
    core, x, memory = make_core(), make_input(), make_memory(2, M)
    assert_same(core(x, tuple(memory), starts(4)), core(x, memory, starts(4)))


def test_initial_values():
    torch.manual_seed(0)
    core = FeedbackTransformer(D, L, H, M, F)
    assert torch.equal(core.mix, torch.zeros(L + 1))
    torch.testing.assert_close(core.distance.std().item(), 1.0, rtol=0.3, atol=0)

    def assert_orthogonal(weight: Tensor, gain: float) -> None:
        """The rows, or where there are more of them the columns, are orthogonal and of length ``gain``."""
        short = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(len(short)), rtol=0, atol=1e-4)

    for layer in core.layers:
        assert_orthogonal(layer.w_q.weight, 1.0)
        assert_orthogonal(layer.w_o.weight, READ_GAIN)
        assert_orthogonal(layer.w_1.weight, math.sqrt(2))
        assert_orthogonal(layer.w_2.weight, 1.0)
    assert_orthogonal(core.w_k.weight, 1.0)
    assert_orthogonal(core.w_v.weight, math.sqrt(2))


def test_the_first_mix_is_the_mean_of_the_layers():
    torch.manual_seed(0)
    core = FeedbackTransformer(D, L, H, M, F).double()
    x, memory = make_input()[:, 0], make_memory(2, M)
    outputs, _ = core.read(x, memory)
    written = core.step(x, memory)[1].slots[:, -1]
    torch.testing.assert_close(written, torch.stack(outputs).mean(dim=0), rtol=0, atol=1e-12)


def test_parameter_names_and_shapes():
    """What saved agents hold. One projection to keys and values, one table of distances, for all layers."""
    layer = {
        "ln_1.weight": (D,),
        "ln_1.bias": (D,),
        "w_q.weight": (D, D),
        "w_o.weight": (D, D),
        "ln_2.weight": (D,),
        "ln_2.bias": (D,),
        "w_1.weight": (F, D),
        "w_1.bias": (F,),
        "w_2.weight": (D, F),
        "w_2.bias": (D,),
    }
    expected = {f"layers.{i}.{name}": shape for i in range(L) for name, shape in layer.items()}
    expected |= {"mix": (L + 1,), "ln_m.weight": (D,), "ln_m.bias": (D,), "w_k.weight": (D, D), "w_v.weight": (D, D)}
    expected |= {"distance": (M, D // H), "ln_out.weight": (D,), "ln_out.bias": (D,)}
    assert {name: tuple(value.shape) for name, value in make_core().state_dict().items()} == expected


def test_the_feed_forward_block_is_twice_as_wide_by_default():
    assert FeedbackTransformer(D, L, H, M).layers[0].w_1.out_features == 2 * D


@pytest.mark.parametrize("size", ["d_model", "n_layers", "n_heads", "window", "d_feedforward"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_errors(size, value):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got {value}"):
        FeedbackTransformer(**{size: value})


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="n_heads must divide d_model, got n_heads=3 and d_model=32"):
        FeedbackTransformer(d_model=32, n_heads=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_parameters(dtype):
    core = make_core().to(dtype)
    y, memory = core(make_input().to(dtype), core.initial_state(B), starts(4))
    assert y.dtype == memory.slots.dtype == dtype
    assert memory.length.dtype == torch.int64


def test_float32_follows_float64():
    core = make_core()
    y, _ = core(make_input(), core.initial_state(B), starts(4))
    core.float()
    y_32, _ = core(make_input().float(), core.initial_state(B), starts(4))
    torch.testing.assert_close(y_32.double(), y, rtol=0, atol=1e-4)


def test_runs_on_the_device_of_its_parameters():
    """On "meta", a tensor made on the default device would raise."""
    core = make_core().to("meta")
    state = core.initial_state(B)
    y, memory = core(make_input().to("meta"), state, starts(4).to("meta"))
    assert y.shape == (B, T, D)
    for tensor in (*state, y, *memory):
        assert tensor.device.type == "meta"
