"""Every form of the core, of any sizes and from any memory, is what ``reference`` makes of the equations."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_passes import parallel_passes
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.memory import Memory
from tests.cores import reference

GARBAGE = [0.0, 1e30, float("nan"), float("inf")]


@st.composite
def cases(draw):
    """Sizes, a core's weights, an input, episode starts, and a memory with garbage where nothing may be read."""
    batch, steps, window = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    heads, layers, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    sizes = {"d_model": heads * width * 2, "n_layers": layers, "n_heads": heads, "window": window}
    core = FastFeedbackTransformer(**sizes, d_feedforward=draw(st.integers(1, 9))).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    starts = draw(st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=batch, max_size=batch))
    length = torch.tensor(draw(st.lists(st.integers(0, window), min_size=batch, max_size=batch)))
    memory = Memory(torch.randn(batch, window, core.d_model).double(), length)
    garbage = memory.slots.masked_fill(~memory.readable.unsqueeze(-1), draw(st.sampled_from(GARBAGE)))
    x = torch.randn(batch, steps, core.d_model).double()
    return core, x, Memory(garbage, length), torch.tensor(starts)


def expected(core, x, memory, starts):
    """Of all rows: features (B, T, D), and the memory vectors of each."""
    weights = dict(core.named_parameters())
    rows = []
    for row in range(len(x)):
        readable = list(memory.slots[row, len(memory.slots[row]) - memory.length[row] :])
        rows.append(reference.run(weights, core.n_heads, x[row], readable, starts[row].tolist()))
    return torch.stack([torch.stack(features) for features, _ in rows]), [left for _, left in rows]


def plain(core, x, memory, starts):
    other = FeedbackTransformer(core.d_model, len(core.layers), core.n_heads, core.window, len(core.layers[0].w_1.bias))
    other.double()
    # the very parameters, so that their gradients are comparable
    for name, parameter in core.named_parameters():
        owner = other.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], parameter)
    return other(x, memory, starts)


def fast(core, x, memory, starts):
    return core(x, memory, starts)


def passes(core, x, memory, starts):
    """As many as steps; they start from anything."""
    memories = torch.zeros_like(x)
    features, after, _ = parallel_passes(core, x, memory, starts, memories, x.shape[1])
    return features, after


def in_two(core, x, memory, starts):
    half = (x.shape[1] + 1) // 2
    first, memory = core(x[:, :half], memory, starts[:, :half])
    if half == x.shape[1]:
        return first, memory
    second, memory = core(x[:, half:], memory, starts[:, half:])
    return torch.cat([first, second], dim=1), memory


def acting(core, x, memory, starts):
    actor = core.actor(memory)
    features = [actor.step(x_t, start)[0] for x_t, start in zip(x.unbind(1), starts.unbind(1), strict=True)]
    return torch.stack(features, dim=1), actor.state


WITH_GRADIENTS = [plain, fast, passes]
FORMS = [*WITH_GRADIENTS, in_two, acting]
patient = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
quick = settings(max_examples=25, derandomize=True, **patient)
long = settings(max_examples=1000, **patient)


def check_values(form, case):
    with torch.no_grad():
        features, left = expected(*case)
        found, after = form(*case)
    torch.testing.assert_close(found, features, rtol=0, atol=1e-9)
    for row, vectors in enumerate(left):
        assert after.length[row] == len(vectors)
        if vectors:
            torch.testing.assert_close(after.slots[row, -len(vectors) :], torch.stack(vectors), rtol=0, atol=1e-9)


def check_gradients(form, case):
    """Of the features and of what is left in the memory, at the input and at every weight."""
    core, x, memory, starts = case

    def gradients(run):
        core.zero_grad()
        given = x.clone().requires_grad_()
        features, vectors = run(core, given, memory, starts)
        loss = (features * torch.linspace(-1, 2, features.numel()).view_as(features)).sum()
        (loss + sum((vector * vector).sum() for vector in vectors)).backward()
        return {"x": given.grad} | {name: p.grad for name, p in core.named_parameters()}

    def of_form(*arguments):
        features, after = form(*arguments)
        return features, [after.slots[row][after.readable[row]] for row in range(len(after.slots))]

    def of_reference(*arguments):
        features, left = expected(*arguments)
        return features, [vector for vectors in left for vector in vectors]

    wanted, found = gradients(of_reference), gradients(of_form)
    for name, gradient in wanted.items():
        gradient = torch.zeros_like(found[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@quick
@given(case=cases())
def test_values(form, case):
    check_values(form, case)


@pytest.mark.parametrize("form", WITH_GRADIENTS, ids=lambda form: form.__name__)
@quick
@given(case=cases())
def test_gradients(form, case):
    check_gradients(form, case)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@long
@given(case=cases())
def test_values_of_many(form, case):
    check_values(form, case)


@pytest.mark.slow
@pytest.mark.parametrize("form", WITH_GRADIENTS, ids=lambda form: form.__name__)
@long
@given(case=cases())
def test_gradients_of_many(form, case):
    check_gradients(form, case)
