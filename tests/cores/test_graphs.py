"""The scan as CUDA graphs: what surrounds them, with calls in the place of graphs; and on a GPU, the law."""

import copy
import gc
import pickle
import warnings

import pytest
import torch

from fbrl.cores import feedback_scan, graphs
from fbrl.cores.feedback_backward import scan_gradients
from fbrl.cores.feedback_forward import scan
from fbrl.cores.graphs import MOST, Captured, ScanGraphs
from fbrl.memory import Memory
from tests.cores.cases import (
    SIZES,
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


class Calls:
    """Stands in for ``capture``: a replay calls the function again and writes over what it gave before, as a graph."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, forward, backward):
        self.captures += 1
        results = forward()
        gradients = backward(results[1])

        def again(function, found):
            def replay():
                self.replays += 1
                with torch.no_grad():
                    for old, new in zip(found, function(), strict=True):
                        old.copy_(new)

            return replay

        tape = results[1]
        flat = (results[0], *tape)
        return Captured(
            again(lambda: (lambda outputs, new: (outputs, *new))(*forward()), flat),
            again(lambda: backward(tape), gradients),
            results,
            gradients,
        )


class Device:
    """Stands in for ``torch.cuda.device``."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def calls(monkeypatch, fast_form):
    """The fast form takes its graphs on the CPU, too."""
    stand_in = Calls()
    monkeypatch.setattr(graphs, "capture", stand_in)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(feedback_scan, "_on_gpu", lambda x: True)
    return stand_in


def case(steps=7, window=5, seed=2):
    return make_input(steps, seed=seed), make_memory("half", window), make_starts("two", steps)


@pytest.mark.parametrize("size", SIZES)
def test_law(calls, size):
    steps, window = SIZES[size]
    plain, fast = make_cores(window)
    for seed in range(4):  # the first two make the graph, the others replay it with other numbers
        given = case(steps, window, seed)
        assert_law(results(fast, *given), results(plain, *given))
    assert (calls.captures, calls.replays) == (1, 6)


def test_what_was_given_away_stays(calls):
    """The next call does not write over it, and what is changed outside does not reach the graph."""
    _, fast = make_cores(5)
    kept = []
    for seed in range(4):
        found = results(fast, *case(seed=seed))
        kept.append((found, {name: tensor.clone() for name, tensor in found.items()}))
    for found, copied in kept:
        assert all(torch.equal(found[name], copied[name]) for name in found)
    features, _ = fast(*case(seed=3))
    features.detach().zero_()
    assert torch.equal(results(fast, *case(seed=3))["features"], kept[3][0]["features"])


def test_gradients_add_up(calls):
    """Over two backwards, as autograd adds them in place."""
    plain, fast = make_cores(5)
    for core in (plain, fast):
        core.zero_grad()
        for seed in range(4):
            loss_of(*core(*case(seed=seed))).backward()
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_two_forwards_before_a_backward(calls):
    """The second one finds the graph waiting for the first one's backward, and does without."""
    plain, fast = make_cores(5)
    for _ in range(2):
        results(fast, *case())
    before = calls.replays
    for core in (plain, fast):
        core.zero_grad()
        first, second = (loss_of(*core(*case(seed=seed))) for seed in (3, 4))
        (first + 2 * second).backward()
    assert calls.replays == before + 2
    torch.testing.assert_close(fast.w_k.weight.grad, plain.w_k.weight.grad, rtol=1e-9, atol=1e-9)
    assert_law(results(fast, *case(seed=5)), results(plain, *case(seed=5)))
    assert calls.replays == before + 4


def test_a_backward_that_never_comes(calls):
    _, fast = make_cores(5)
    for _ in range(2):
        results(fast, *case())
    before = calls.replays
    fast(*case())  # thrown away
    gc.collect()
    fast(*case())
    assert calls.replays == before + 2


def test_backward_twice(calls):
    _, fast = make_cores(5)
    for _ in range(2):
        results(fast, *case())
    x = make_input(7).requires_grad_()
    loss = loss_of(*fast(x, *case()[1:]))
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    results(fast, *case(seed=4))
    with pytest.raises(RuntimeError, match="a second backward, after another forward"):
        torch.autograd.grad(loss, x)


def test_one_graph_a_shape_and_not_more_than_some(calls):
    _, fast = make_cores(5)
    for steps in range(1, MOST + 3):
        for _ in range(3):
            results(fast, make_input(steps), make_memory("half", 5), make_starts("at 0", steps))
    assert calls.captures == MOST
    assert calls.replays == MOST * 2 * 2


def test_a_shape_that_comes_once_gets_none(calls):
    _, fast = make_cores(5)
    results(fast, *case())
    assert (calls.captures, calls.replays) == (0, 0)


def test_without_gradients_and_switched_off(calls):
    _, fast = make_cores(5)
    with torch.no_grad():
        for _ in range(3):
            fast(*case())
    fast.cuda_graphs = False
    for _ in range(3):
        results(fast, *case())
    assert (calls.captures, calls.replays) == (0, 0)


def test_where_capturing_fails_it_says_so_once(calls, monkeypatch):
    plain, fast = make_cores(5)

    def fails(forward, backward):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture", fails)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):
            assert_law(results(fast, *case()), results(plain, *case()))
    (line,) = said
    assert "without CUDA graphs" in str(line.message)
    assert "operation not permitted" in str(line.message)


def test_a_copy_begins_with_none(calls):
    _, fast = make_cores(5)
    for _ in range(2):
        results(fast, *case())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other._graphs.graphs == {}, other
        assert_law(results(other, *case()), results(fast, *case()))


def test_on_the_cpu_they_are_never_touched(monkeypatch):
    monkeypatch.setattr(ScanGraphs, "__call__", lambda *arguments: pytest.fail("called"))
    _, fast = make_cores(5)
    for _ in range(3):
        results(fast, *case())
    fast = fast.to("meta")
    x = torch.empty(B, 7, D, dtype=torch.float64, device="meta", requires_grad=True)
    features, _ = fast(x, fast.initial_state(B), torch.empty(B, 7, dtype=torch.bool, device="meta"))
    features.sum().backward()


def test_every_tensor_is_on_the_device_of_the_input():
    """On the meta device, where any other one among them would be refused."""
    fast = make_cores(5)[1].to("meta")
    x = torch.empty(7, B, D, dtype=torch.float64, device="meta")
    k = torch.empty(B, 5, D, dtype=torch.float64, device="meta")
    weights = [weight.detach() for weight in fast._weights()]
    outputs, tape = scan(
        True, fast.n_heads, x, k, k, torch.empty(7, B, 6, dtype=torch.float64, device="meta"), *weights
    )
    found = scan_gradients(tape, weights, outputs, torch.empty_like(outputs))
    assert {tensor.device.type for tensor in (outputs, *tape, *found)} == {"meta"}


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("size", [pytest.param(size, marks=gpu) for size in SIZES])
def test_law_of_graphs_on_a_gpu(size):
    steps, window = SIZES[size]
    plain, fast = make_cores(window)
    fast.form, fast = "fast", fast.cuda()  # auto takes the Triton kernels
    for seed in range(5):
        given = case(steps, window, seed)
        assert_law(results(fast, *given), results(plain, *given))
    (graph,) = fast._graphs.graphs.values()
    assert graph is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_optimiser_between_replays_on_a_gpu():
    """Five steps of training with graphs and without end in the same weights."""
    found = []
    for with_graphs in (True, False):
        fast = make_cores(5, torch.float32)[1].cuda()
        fast.form, fast.cuda_graphs = "fast", with_graphs
        optimiser = torch.optim.Adam(fast.parameters(), lr=1e-3)
        x, (slots, length), starts = case()
        x, memory, starts = x.float().cuda(), Memory(slots.float().cuda(), length.cuda()), starts.cuda()
        for _ in range(5):
            optimiser.zero_grad()
            loss_of(*fast(x, memory, starts)).backward()
            optimiser.step()
        found.append([parameter.detach().cpu() for parameter in fast.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
