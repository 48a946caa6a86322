"""Acting with keys and values kept is the scan with T = 1."""

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer, FeedbackActor
from fbrl.memory import Memory

pytestmark = pytest.mark.usefixtures("form")

B, D, H, L = 3, 20, 5, 2


def make_core(window: int, kind: type[FeedbackTransformer] = FastFeedbackTransformer) -> FeedbackTransformer:
    torch.manual_seed(0)
    core = kind(D, L, H, window).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return core


def make_memory(window: int) -> Memory:
    """Half full, with other lengths in each row."""
    return Memory(torch.randn(B, window, D).double(), torch.arange(B) * window // B)


def episode(steps: int) -> tuple[Tensor, Tensor]:
    """x (T, B, D) and episode starts (T, B), at other steps in each row and seldom enough for a full window."""
    torch.manual_seed(1)
    return torch.randn(steps, B, D).double(), torch.rand(steps, B) < 0.02


def scan(core: FeedbackTransformer, x: Tensor, memory: Memory, start: Tensor) -> tuple[Tensor, Memory]:
    with torch.no_grad():
        features, memory = core(x.unsqueeze(1), memory, start.unsqueeze(1))
    return features.squeeze(1), memory


@pytest.mark.parametrize("kind", [FeedbackTransformer, FastFeedbackTransformer], ids=["plain", "fast"])
@pytest.mark.parametrize("window", [1, 7, 40])
def test_equals_the_scan(window, kind):
    """Over resets, full windows, and several rooms' worth of steps."""
    core, memory = make_core(window, kind), make_memory(window)
    actor, full = core.actor(memory), 0
    x, starts = episode(steps=150)
    for x_t, start in zip(x, starts, strict=True):
        features, state = actor.step(x_t, start)
        expected, memory = scan(core, x_t, memory, start)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(state[0], memory.slots, rtol=0, atol=1e-12)
        assert torch.equal(state[1], memory.length)
        full += int((memory.length == window).all())
    assert starts.any()
    assert full > 5


def test_a_state_stays_as_it_was():
    core = make_core(7)
    actor = core.actor(make_memory(7))
    kept = []
    for x, start in zip(*episode(steps=100), strict=True):
        _, state = actor.step(x, start)
        kept.append((state, Memory(state.slots.clone(), state.length.clone())))
    for state, copy in kept:
        assert torch.equal(state.slots, copy.slots)
        assert torch.equal(state.length, copy.length)


def test_keys_and_values_are_those_of_the_weights():
    """An optimiser's step between two steps of acting."""
    core = make_core(7)
    memory = make_memory(7)
    actor = core.actor(memory)
    x, starts = episode(steps=20)
    optimiser = SGD(core.parameters(), lr=0.1)
    for t, (x_t, start) in enumerate(zip(x, starts, strict=True)):
        if t == 11:
            core(x.transpose(0, 1), memory, starts.t())[0].square().mean().backward()
            before = scan(core, x_t, memory, start)[0]
            optimiser.step()
            assert (scan(core, x_t, memory, start)[0] - before).abs().max() > 1e-3
        features, _ = actor.step(x_t, start)
        expected, memory = scan(core, x_t, memory, start)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


class Watch(TorchDispatchMode):
    """Bytes of the tensors made inside, and the most rows of a matrix product."""

    def __init__(self):
        super().__init__()
        self.made = self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(t.untyped_storage()) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        storages = {id(t.untyped_storage()): t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)}
        self.made += sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in given)
        if func is torch.ops.aten.mm.default:
            self.rows = max(self.rows, len(args[0]))
        return result


def watch_a_step(window: int, act) -> Watch:
    """A step for which there is room: every ``max(M, 32)`` steps room for as many is made."""
    core, memory = make_core(window), make_memory(window)
    x, starts = episode(steps=12)
    step = act(core, memory)
    for t in range(10):
        step(x[t], starts[t])
    with Watch() as watch:
        step(x[10], starts[10])
    return watch


def test_nothing_that_is_made_in_a_step_grows_with_the_window(form):
    def act(core, memory):
        return core.actor(memory).step

    small, large = (watch_a_step(window, act) for window in (8, 64))
    assert small.made == large.made
    rows = {"fast": B, "compiled": 0}[form]  # the compiled form asks torch for no product
    assert small.rows == large.rows == rows, "one memory vector is projected, and not the whole window"


def test_the_watch_sees_what_grows():
    """The scan with T = 1 makes the window anew, so the test above can fail."""

    def act(core, memory):
        return lambda x, start: scan(core, x, memory, start)

    small, large = (watch_a_step(window, act) for window in (8, 64))
    assert large.made > small.made + (64 - 8) * B * D * 8


class Halved(FastFeedbackTransformer):
    """Reads half of its input."""

    def forward(self, x, state, episode_start):
        return super().forward(x / 2, state, episode_start)


def test_a_core_of_ones_own_acts_as_it_learns():
    core = make_core(5, Halved)
    memory, x, start = make_memory(5), torch.randn(B, D).double(), torch.zeros(B, dtype=torch.bool)
    features, _ = core.actor(memory).step(x, start)
    torch.testing.assert_close(features, scan(core, x, memory, start)[0], rtol=0, atol=1e-12)


def test_gives_no_gradient():
    core = make_core(5)
    features, state = core.actor(core.initial_state(B)).step(torch.randn(B, D).double(), torch.zeros(B).bool())
    assert not features.requires_grad
    assert not state.slots.requires_grad


def test_autocast_leaves_the_precision_alone():
    core = make_core(5).float()
    x, start = torch.randn(B, D), torch.zeros(B, dtype=torch.bool)
    expected, _ = core.actor(core.initial_state(B)).step(x, start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, state = core.actor(core.initial_state(B)).step(x, start)
    assert features.dtype == state.slots.dtype == torch.float32
    assert torch.equal(features, expected)


def test_runs_without_looking_at_values(monkeypatch):
    """On the meta device, where there are none; past the end of a room."""
    monkeypatch.setattr(FastFeedbackTransformer, "form", "auto")
    core = make_core(5).to("meta")
    actor = core.actor(core.initial_state(B))
    assert isinstance(actor, FeedbackActor)
    for _ in range(40):
        x, start = (
            torch.empty(B, D, dtype=torch.float64, device="meta"),
            torch.empty(B, dtype=torch.bool, device="meta"),
        )
        features, state = actor.step(x, start)
    assert {tensor.device.type for tensor in (features, *state)} == {"meta"}
    assert (features.shape, state.slots.shape, state.length.shape) == ((B, D), (B, 5, D), (B,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_equals_the_scan_on_a_second_device(fast_form):
    core, memory = make_core(7).cuda(), Memory(*(part.cuda() for part in make_memory(7)))
    actor = core.actor(memory)
    for x, start in zip(*(part.cuda() for part in episode(steps=50)), strict=True):
        features, _ = actor.step(x, start)
        expected, memory = scan(core, x, memory, start)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
