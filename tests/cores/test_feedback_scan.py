"""The law between the two forms: outputs, final memory and every gradient are the same."""

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.memory import Memory
from tests.cores.cases import (
    MEMORIES,
    SIZES,
    STARTS,
    B,
    D,
    assert_law,
    loss_of,
    make_cores,
    make_input,
    make_memory,
    make_starts,
    results,
)

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("episode_start", STARTS)
@pytest.mark.parametrize("size", SIZES)
def test_law_in_double_precision(size, episode_start, memory):
    steps, window = SIZES[size]
    plain, fast = make_cores(window)
    case = make_input(steps), make_memory(memory, window), make_starts(episode_start, steps)
    assert_law(results(fast, *case), results(plain, *case))


@pytest.mark.parametrize("sizes", [{"n_layers": 1}, {"n_layers": 3}, {"n_heads": 1}, {"n_heads": 33}, {"window": 1}])
def test_law_at_other_sizes(sizes):
    window = sizes.pop("window", 5)
    plain, fast = make_cores(window, **sizes)
    case = make_input(7), make_memory("half", window), make_starts("middle", 7)
    assert_law(results(fast, *case), results(plain, *case))


@pytest.mark.parametrize("size", ["T < M", "T > M"])
def test_law_in_single_precision(size):
    """The fast form's error against double precision is within twice the plain form's.

    The errors are root mean squares over all cases, each with its own weights and inputs: whose roundings
    are luckier in one case, by up to four times, is chance.
    """
    steps, window = SIZES[size]
    errors: dict[str, dict[str, float]] = {}
    for seed, (episode_start, memory) in enumerate(itertools.product(STARTS, MEMORIES)):
        case = make_input(steps, seed=seed), make_memory(memory, window), make_starts(episode_start, steps)
        exact = results(make_cores(window, seed=seed)[0], *case)
        for form, core in zip(("plain", "fast"), make_cores(window, torch.float32, seed), strict=True):
            for name, tensor in results(core, *case).items():
                of_name = errors.setdefault(name, {"plain": 0.0, "fast": 0.0})
                of_name[form] += (tensor.double() - exact[name]).square().sum().item()
    assert {name: of for name, of in errors.items() if of["fast"] > 2**2 * of["plain"]} == {}


def test_same_saved_weights():
    plain, fast = make_cores(5)
    assert list(plain.state_dict()) == list(fast.state_dict())


def test_acting_is_the_scan_one_step_at_a_time():
    _, fast = make_cores(5)
    x, memory, episode_start = make_input(11), make_memory("half", 5), make_starts("two", 11)
    with torch.no_grad():
        expected, final = fast(x, memory, episode_start)
        for t in range(11):
            y, memory = fast(x[:, t : t + 1], memory, episode_start[:, t : t + 1])
            torch.testing.assert_close(y[:, 0], expected[:, t])
    torch.testing.assert_close(memory.slots, final.slots)
    assert torch.equal(memory.length, final.length)


def test_gradcheck():
    """Against finite differences, the final slots included, in x and every parameter."""
    _, fast = make_cores(3, d_model=4, n_heads=2, d_feedforward=3)
    names = [name for name, _ in fast.named_parameters()]
    memory, episode_start = make_memory("half", 3, 4), make_starts("middle", 4)

    def function(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, parameters, strict=True))
        features, final = functional_call(fast, named, (x, memory, episode_start))
        return features, final.slots

    inputs = [make_input(4, 4), *(parameter.detach() for parameter in fast.parameters())]
    assert torch.autograd.gradcheck(function, [tensor.clone().requires_grad_() for tensor in inputs])


def test_no_grad_gives_the_same():
    _, fast = make_cores(5)
    case = make_input(7), make_memory("half", 5), make_starts("middle", 7)
    with_grad, with_memory = fast(*case)
    with torch.no_grad():
        without, memory = fast(*case)
    assert torch.equal(with_grad, without)
    assert torch.equal(with_memory.slots, memory.slots)
    assert with_grad.requires_grad
    assert with_memory.slots.requires_grad
    assert not without.requires_grad
    assert not memory.slots.requires_grad


@pytest.mark.parametrize("of", ["features", "slots"])
def test_loss_on_one_result_only(of):
    plain, fast = make_cores(5)
    case = make_input(7), make_memory("half", 5), make_starts("middle", 7)
    found = []
    for core in (fast, plain):
        x = case[0].clone().requires_grad_()
        features, memory = core(x, *case[1:])
        (features if of == "features" else memory.slots).square().sum().backward()
        found.append({"x": x.grad} | {name: p.grad for name, p in core.named_parameters() if p.grad is not None})
    fast_grads, plain_grads = found
    for name, gradient in fast_grads.items():  # the fast form may give zeros where the plain form gives nothing
        expected = plain_grads.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert set(plain_grads) <= set(fast_grads)


@pytest.mark.parametrize("wanted", ["x", "mix", "distance", "ln_m.bias", "w_k.weight", "layers.0.w_q.weight"])
def test_gradient_of_one_input_only(wanted):
    plain, fast = make_cores(5)
    case = make_input(7), make_memory("half", 5), make_starts("middle", 7)
    found = []
    for core in (fast, plain):
        core.requires_grad_(False)
        x = case[0].clone()
        leaf = (dict(core.named_parameters()) | {"x": x})[wanted].requires_grad_()
        loss_of(*core(x, *case[1:])).backward()
        found.append(leaf.grad)
        assert all(p.grad is None for p in core.parameters() if p is not leaf)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_two_forwards_before_a_backward():
    """As PPO may do, here with a parameter that the loss also uses elsewhere."""
    found = []
    for core in make_cores(5):
        x = make_input(7).requires_grad_()
        first, memory = core(x[:, :3], make_memory("half", 5), make_starts("none", 3))
        second, memory = core(2 * x, memory, make_starts("middle", 7))
        (first.square().sum() + loss_of(second, memory) + core.w_k.weight.square().sum()).backward()
        found.append([x.grad, *(parameter.grad for parameter in core.parameters())])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_backward_twice_through_a_kept_graph():
    _, fast = make_cores(5)
    x = make_input(7).requires_grad_()
    loss = loss_of(*fast(x, make_memory("half", 5), make_starts("middle", 7)))
    first, second = (torch.autograd.grad(loss, [x, *fast.parameters()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_second_derivatives_are_refused():
    _, fast = make_cores(5)
    x = make_input(7).requires_grad_()
    features, _ = fast(x, make_memory("half", 5), make_starts("middle", 7))
    (gradient,) = torch.autograd.grad(features.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_writes_to_nothing_that_it_is_given():
    _, fast = make_cores(3)
    case = make_input(7), make_memory("half", 3), make_starts("middle", 7)
    kept = copy.deepcopy(case)
    features, memory = fast(*case)
    loss = loss_of(features, memory)
    features.detach().zero_()  # nor does it read, going backwards, what it gave away
    memory.slots.detach().zero_()
    loss.backward()
    found = fast.w_v.weight.grad.clone()
    assert torch.equal(case[0], kept[0])
    assert torch.equal(case[1].slots, kept[1].slots)
    assert torch.equal(case[1].length, kept[1].length)
    assert torch.equal(case[2], kept[2])
    assert torch.equal(found, results(fast, *kept)["w_v.weight"])


def test_any_strides():
    _, fast = make_cores(5)
    x, memory, episode_start = make_input(7), make_memory("full", 5), make_starts("middle", 7)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    slots = memory.slots.transpose(0, 1).contiguous().transpose(0, 1)
    features, final = fast(strided, Memory(slots, memory.length), episode_start.t().contiguous().t())
    expected, expected_final = fast(x, memory, episode_start)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(final.slots, expected_final.slots)
    assert features.is_contiguous()
    assert final.slots.is_contiguous()


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_precision_alone(x_dtype):
    _, fast = make_cores(5, torch.float32)
    memory = make_memory("half", 5)
    memory = Memory(memory.slots.float(), memory.length)
    x, episode_start = make_input(7).to(x_dtype).requires_grad_(), make_starts("middle", 7)
    expected, _ = fast(x.float(), memory, episode_start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, final = fast(x, memory, episode_start)
        loss = features.square().sum()
    assert features.dtype == final.slots.dtype == torch.float32
    assert torch.equal(features, expected)
    loss.backward()
    assert x.grad.dtype == x_dtype
    assert fast.w_k.weight.grad.dtype == torch.float32


def test_runs_without_looking_at_values(monkeypatch):
    """On the meta device, where there are none: the compiled form leaves it to the fast form, if it may."""
    monkeypatch.setattr(FastFeedbackTransformer, "form", "auto")
    fast = make_cores(5)[1].to("meta")
    x = torch.empty(B, 7, D, dtype=torch.float64, device="meta", requires_grad=True)
    features, memory = fast(x, fast.initial_state(B), torch.empty(B, 7, dtype=torch.bool, device="meta"))
    features.sum().backward()
    assert (features.device.type, x.grad.device.type, memory.slots.device.type) == ("meta",) * 3
    assert (features.shape, memory.slots.shape, memory.length.shape) == ((B, 7, D), (B, 5, D), (B,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", SIZES)
def test_law_on_a_second_device(size, fast_form):
    steps, window = SIZES[size]
    plain, fast = make_cores(window)
    case = make_input(steps), make_memory("half", window), make_starts("two", steps)
    assert_law(results(fast.cuda(), *case), results(plain, *case))
