"""Parallel passes against the scan: equal at the fixed point, and in gradient as the passes grow."""

import itertools
import math

import pytest
import torch

from fbrl.cores.attention import skew
from fbrl.cores.feedback_passes import parallel_passes
from fbrl.memory import Memory
from tests.cores.cases import (
    MEMORIES,
    SIZES,
    STARTS,
    B,
    D,
    loss_of,
    make_cores,
    make_input,
    make_memory,
    make_starts,
)


def make_case(size, episode_start="middle", memory="half"):
    """A core, its input, and the memory vectors that the scan writes."""
    steps, window = SIZES[size]
    core, _ = make_cores(window)
    x, before, starts = make_input(steps), make_memory(memory, window), make_starts(episode_start, steps)
    written, state = [], before
    with torch.no_grad():
        for t in range(steps):
            _, state = core.step(x[:, t], state.reset(starts[:, t]))
            written.append(state.slots[:, -1])
    return core, (x, before, starts), torch.stack(written, dim=1)


def gradients(core, x, forward):
    """Of a loss that weighs every output differently, at the input and at every parameter; 0 for those without."""
    x.grad = None
    x.requires_grad_()
    core.zero_grad()
    loss_of(*forward()).backward()
    found = {"x": x.grad} | {name: parameter.grad for name, parameter in core.named_parameters()}
    return {name: torch.zeros(()) if grad is None else grad.clone() for name, grad in found.items()}


def error(found, exact):
    return math.sqrt(sum((found[name] - exact[name]).square().sum().item() for name in exact))


def test_skew_by_hand():
    window = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    no = -math.inf
    expected = [[1, 2, no, no, no], [no, 3, 4, no, no], [no, no, 5, 6, no]]
    assert torch.equal(skew(window), torch.tensor(expected))
    assert torch.equal(skew(window.expand(2, 3, 3, 2))[1, 2], torch.tensor(expected))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("episode_start", STARTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("passes", [1, 3])
def test_equal_in_value_to_the_scan_at_unchanged_weights(passes, size, episode_start, memory):
    core, case, written = make_case(size, episode_start, memory)
    features, after = core(*case)
    found, found_after, memories = parallel_passes(core, *case, written, passes)
    torch.testing.assert_close(found, features, rtol=0, atol=1e-9)
    torch.testing.assert_close(memories, written, rtol=0, atol=1e-9)
    torch.testing.assert_close(found_after.slots, after.slots, rtol=0, atol=1e-9)
    assert torch.equal(found_after.length, after.length)


@pytest.mark.parametrize("size", SIZES)
def test_from_anywhere_as_many_passes_as_steps_reach_the_scan(size):
    core, case, written = make_case(size)
    steps = written.shape[1]
    features, _ = core(*case)
    far = written + torch.randn_like(written)
    assert torch.allclose(parallel_passes(core, *case, far, steps)[0], features, rtol=0, atol=1e-9)
    if steps > 1:
        assert not torch.allclose(parallel_passes(core, *case, far, 1)[0], features, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", ["T < M", "T > M"])
def test_the_gradient_converges_to_the_scans(size):
    core, (x, *rest), written = make_case(size, "none")
    steps = written.shape[1]
    exact = gradients(core, x, lambda: core(x, *rest))
    errors = [
        error(gradients(core, x, lambda p=p: parallel_passes(core, x, *rest, written, p)[:2]), exact)
        for p in range(1, steps + 1)
    ]
    assert all(after < before for before, after in itertools.pairwise(errors)), errors
    size_of_all = error(exact, {name: torch.zeros(()) for name in exact})
    assert errors[0] > 0.1 * size_of_all
    assert errors[-1] < 1e-12 * size_of_all


def test_each_pass_carries_the_gradient_one_hop_further():
    """From the last step to the first one, T - 1 = 12 steps back: three hops of at most M = 5 steps."""
    core, _ = make_cores(5)
    x, starts = torch.randn(B, 13, D).double(), torch.zeros(B, 13, dtype=torch.bool)
    written = torch.randn(B, 13, D).double()
    for passes, reached in ((1, 0), (2, 5), (3, 10), (4, 12)):
        x = x.detach().requires_grad_()
        features, _, _ = parallel_passes(core, x, core.initial_state(B), starts, written, passes)
        features[:, -1, 0].sum().backward()
        touched = x.grad.abs().sum(dim=(0, 2)) > 0
        assert touched.tolist() == [12 - t <= reached for t in range(13)]


def test_one_pass_teaches_nothing_about_what_to_write():
    core, (x, *rest), written = make_case("T > M")
    for passes, learns in ((1, False), (2, True)):
        core.zero_grad()
        parallel_passes(core, x, *rest, written, passes)[0].square().mean().backward()
        assert (core.mix.grad is not None) == learns


def test_no_gradient_reaches_what_was_given():
    core, (x, memory, starts), written = make_case("T > M")
    slots, written = memory.slots.requires_grad_(), written.requires_grad_()
    features, _, _ = parallel_passes(core, x, Memory(slots, memory.length), starts, written, 2)
    features.sum().backward()
    assert slots.grad is None
    assert written.grad is None


def test_runs_without_looking_at_values():
    """On the meta device, where there are none."""
    core = make_cores(5)[0].to("meta")
    x = torch.empty(B, 7, D, dtype=torch.float64, device="meta", requires_grad=True)
    starts = torch.empty(B, 7, dtype=torch.bool, device="meta")
    features, memory, memories = parallel_passes(core, x, core.initial_state(B), starts, torch.empty_like(x), 2)
    features.sum().backward()
    assert {part.device.type for part in (features, *memory, memories, x.grad)} == {"meta"}
    assert (features.shape, memory.slots.shape, memories.shape) == ((B, 7, D), (B, 5, D), (B, 7, D))
