"""What the compiled form adds to the law of ``test_feedback_scan``: blocks, threads, widths that fill no vector."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.memory import Memory
from tests.cores.cases import assert_law, make_cores

pytest.importorskip("numba")

from fbrl.cores import compiled_scan
from fbrl.cores.compiled_scan import blocks_of

WIDTHS = {
    "heads of half a vector": {"d_model": 32, "n_heads": 4, "d_feedforward": 64},
    "heads of a vector": {"d_model": 64, "n_heads": 4, "d_feedforward": 128},
    "heads of two vectors and a half": {"d_model": 80, "n_heads": 2, "d_feedforward": 17},
    "nothing fills a vector": {"d_model": 21, "n_heads": 3, "d_feedforward": 5},
}


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setattr(FastFeedbackTransformer, "form", "compiled")


@pytest.fixture
def threads():
    """Sets how many threads torch uses; sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_case(batch: int, steps: int, window: int, d_model: int) -> tuple[Tensor, Memory, Tensor]:
    """Memories of all lengths, and episodes that start anywhere."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, steps, d_model, generator=generator).double()
    slots = torch.randn(batch, window, d_model, generator=generator).double()
    length = torch.randint(0, window + 1, (batch,), generator=generator)
    return x, Memory(slots, length), torch.rand(batch, steps, generator=generator) < 0.1


def outcome(core: FeedbackTransformer, case: tuple[Tensor, Memory, Tensor]) -> dict[str, Tensor]:
    x, memory, starts = case[0].to(core.distance).requires_grad_(), *case[1:]
    core.zero_grad()
    features, final = core(x, Memory(memory.slots.to(core.distance), memory.length), starts)
    (features.sin().sum() + final.slots.pow(3).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in core.named_parameters()}
    return {"features": features, "slots": final.slots, "length": final.length, "x": x.grad, **gradients}


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("batch", "window"), [(1, 16), (7, 19), (17, 33)])
def test_law_at_all_widths(widths, batch, window):
    """Blocks of one sequence and more, windows of whole vectors and not; episodes start in one row at a time."""
    plain, compiled = make_cores(window, **WIDTHS[widths])
    case = make_case(batch, 23, window, plain.d_model)
    assert_law(outcome(compiled, case), outcome(plain, case))


def test_many_blocks_and_few_shares():
    plain, compiled = make_cores(5, d_model=12, n_heads=2)
    case = make_case(83, 3, 5, 12)
    assert len(blocks_of(83)) > compiled_scan.SHARES
    assert_law(outcome(compiled, case), outcome(plain, case))


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 16, 17, 32, 33, 83, 256])
def test_blocks_cover_all_sequences_once(batch):
    blocks = blocks_of(batch)
    assert [i for first, b in blocks for i in range(first, first + b)] == list(range(batch))
    assert max(b for _, b in blocks) <= compiled_scan.BLOCK
    assert len(blocks) > 1 or batch < 16


def test_the_result_does_not_depend_on_the_threads(threads):
    """To the last bit, forwards, backwards and acting: all but the last layer norm's gradients, which are torch's."""
    core = make_cores(19, torch.float32)[1]
    case, found = make_case(37, 11, 19, core.d_model), []
    for n in (1, 2, 5):
        threads(n)
        found.append(outcome(core, case))
        memory = core.initial_state(37)
        found[-1]["acted"] = core.actor(memory).step(case[0][:, 0].float(), case[2][:, 0])[0]
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert name.startswith("ln_out") or torch.equal(tensor, other[name]), name


def test_threads_of_the_process_that_it_was_forked_from_are_not_used():
    assert compiled_scan._pool(1) is not compiled_scan._pool(2)
    assert compiled_scan._pool(1) is compiled_scan._pool(1)


def test_an_error_in_a_thread_is_raised(threads):
    threads(2)

    def fail(job: int) -> None:
        if job == 1:
            raise KeyError(job)

    with pytest.raises(KeyError):
        compiled_scan.in_threads(fail, 2)


def test_weights_of_any_strides():
    plain, compiled = make_cores(5)
    with torch.no_grad():
        for parameter in compiled.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()
    case = make_case(3, 7, 5, plain.d_model)
    assert_law(outcome(compiled, case), outcome(plain, case))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda core: pickle.loads(pickle.dumps(core))])
def test_a_copy_computes_the_same(copied):
    core = make_cores(5)[1]
    case = make_case(3, 7, 5, core.d_model)
    expected = outcome(core, case)
    found = outcome(copied(core), case)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_was_kept_for_a_backward_is_given_back_after_it():
    core = make_cores(5)[1]
    x, memory, starts = make_case(3, 7, 5, core.d_model)
    loss = core(x.requires_grad_(), memory, starts)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.fixture
def rooms(monkeypatch):
    """No memory is kept yet."""
    monkeypatch.setattr(compiled_scan, "rooms", {})
    return compiled_scan.rooms


def kept(rooms) -> list[int]:
    return sorted(tensor.data_ptr() for of_size in rooms.values() for tensor in of_size)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("steps", "window"), [(7, 5), (3, 16), (9, 33)])
def test_the_next_tape_takes_the_memory_of_the_last_one_whatever_is_in_it(rooms, widths, steps, window):
    core = FastFeedbackTransformer(n_layers=2, window=window, **WIDTHS[widths]).double()
    case = make_case(19, steps, window, core.d_model)
    first = outcome(core, case)
    before = kept(rooms)
    assert len(before) == 2, "a tape a block"
    for tensor in (tensor for of_size in rooms.values() for tensor in of_size):
        tensor.fill_(torch.nan)
    second = outcome(core, case)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert kept(rooms) == before


def test_a_tape_that_may_still_be_wanted_is_left_alone(rooms):
    core = make_cores(5)[1]
    x, memory, starts = make_case(3, 7, 5, core.d_model)
    loss = core(x.requires_grad_(), memory, starts)[0].sin().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert not kept(rooms)
    outcome(core, make_case(3, 7, 5, core.d_model))
    assert len(kept(rooms)) == 1, "one of its own"
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)
    del loss
    assert len(kept(rooms)) == 2


def test_no_more_memory_is_kept_than_a_bound(rooms, monkeypatch):
    monkeypatch.setattr(compiled_scan, "ROOM", 800)
    small = [compiled_scan.room(size, torch.float32) for size in (100, 125)]
    del small[0]
    assert [key for key, of_size in rooms.items() if of_size] == [(100, torch.float32)]
    del small[0]
    assert [key for key, of_size in rooms.items() if of_size] == [(125, torch.float32)], "the latest"
    compiled_scan.room(101, torch.float64)
    assert [key for key, of_size in rooms.items() if of_size] == [(125, torch.float32)], "the other is too large alone"
    assert compiled_scan.room(100, torch.float64).dtype == torch.float64


def test_not_a_number_reaches_the_loss():
    """Nothing hides that a training has gone wrong."""
    core = make_cores(5)[1]
    x, memory, starts = make_case(3, 7, 5, core.d_model)
    x[1, 2, 3] = torch.nan
    features, _ = core(x, memory, starts)
    assert features[1, 2].isnan().all()
    assert features[0].isfinite().all()


def test_in_data_parallel():
    """Torch's wrapper for several processes, around a module that holds the core."""
    plain, compiled = make_cores(5)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(compiled)
        x, memory, starts = make_case(3, 7, 5, plain.d_model)
        (wrapped(x, memory, starts)[0].sum() + 0 * compiled.mix.sum()).backward()
        plain(x, memory, starts)[0].sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


SHAPES = {
    "x": lambda x, memory, starts: (x[..., :-1], memory, starts),
    "slots": lambda x, memory, starts: (x, Memory(memory.slots[:, 1:], memory.length), starts),
    "length": lambda x, memory, starts: (x, Memory(memory.slots, memory.length[:-1]), starts),
    "episode_start": lambda x, memory, starts: (x, memory, starts[:, :-1]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_shape_is_refused_and_nothing_beyond_it_is_read(name):
    core = make_cores(5)[1]
    with pytest.raises(ValueError, match=rf"^{name} must have the shape \(.*\), got \("):
        core(*SHAPES[name](*make_case(3, 7, 5, core.d_model)))


def test_layers_of_different_sizes_are_refused():
    core = make_cores(5)[1]
    core.layers[1].w_1 = nn.Linear(core.d_model, 99).double()
    with pytest.raises(ValueError, match=r"^weight 22 must have the shape \(13, 33\), got \(99, 33\)"):
        core(*make_case(3, 7, 5, core.d_model))


def test_a_step_of_a_wrong_shape_is_refused():
    core = make_cores(5)[1]
    actor = core.actor(core.initial_state(3))
    with pytest.raises(ValueError, match=r"^x must have the shape \(3, 33\), got \(2, 33\)"):
        actor.step(torch.zeros(2, 33).double(), torch.zeros(3, dtype=torch.bool))


def test_lengths_of_any_whole_numbers():
    plain, compiled = make_cores(5)
    x, memory, starts = make_case(3, 7, 5, plain.d_model)
    short = Memory(memory.slots, memory.length.to(torch.int32))
    assert torch.equal(compiled(x, short, starts)[0], compiled(x, memory, starts)[0])
