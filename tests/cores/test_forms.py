"""Which form computes the scan."""

import builtins

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fbrl.cores import forms
from fbrl.cores.feedback_scan import FastFeedbackTransformer, FeedbackActor
from fbrl.cores.forms import cannot_compile, form_of

X = torch.zeros(2, 3, 5)


@pytest.fixture(autouse=True)
def forget():
    cannot_compile.cache_clear()
    yield
    cannot_compile.cache_clear()


@pytest.fixture
def without_numba(monkeypatch):
    found = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "numba":
            raise ImportError("No module named 'numba'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auto_is_compiled_where_it_can_be(dtype):
    pytest.importorskip("numba")
    x = X.to(dtype)
    assert form_of("auto", x, x, x) == "compiled"
    assert form_of("compiled", x, x, x) == "compiled"
    assert form_of("fast", x, x, x) == "fast"


def test_auto_is_fast_without_numba(without_numba):
    assert form_of("auto", X, X, X) == "fast"
    core = FastFeedbackTransformer(4, 1, 2, 3)
    state = core.initial_state(2)
    assert isinstance(core.actor(state), FeedbackActor)
    features, _ = core(torch.zeros(2, 3, 4), state, torch.zeros(2, 3, dtype=torch.bool))
    assert features.isfinite().all()


def test_compiled_without_numba_says_what_it_needs(without_numba):
    with pytest.raises(ValueError, match=r"the compiled form needs numba, of pip install fbrl\[compiled\]"):
        form_of("compiled", X, X, X)


@pytest.mark.parametrize(
    ("x", "slots", "weight", "needs"),
    [
        (X.half(), X.half(), X.half(), "float32 or float64, got torch.float16"),
        (X, X.double(), X, "numbers of one type"),
        (X, X, X.double(), "numbers of one type"),
        (X.to("meta"), X.to("meta"), X.to("meta"), "tensors on the CPU, got meta"),
        (X[:0], X[:0], X, "tensors that hold numbers"),
        (X[:, :0], X, X, "tensors that hold numbers"),
    ],
)
def test_what_cannot_be_compiled_is_left_to_the_fast_form(x, slots, weight, needs):
    assert form_of("auto", x, slots, weight) == "fast"
    with pytest.raises(ValueError, match=needs):
        form_of("compiled", x, slots, weight)


def test_tensors_without_values_are_left_to_the_fast_form():
    with FakeTensorMode():
        x = torch.zeros(2, 3, 5)
        assert form_of("auto", x, x, x) == "fast"


def test_what_is_traced_is_the_fast_form(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert form_of("auto", X, X, X) == "fast"


def test_an_unknown_form_is_refused():
    core = FastFeedbackTransformer(4, 1, 2, 3)
    core.form = "fastest"
    with pytest.raises(ValueError, match="form must be one of auto, compiled, triton, fast, plain, got 'fastest'"):
        core(torch.zeros(1, 1, 4), core.initial_state(1), torch.zeros(1, 1, dtype=torch.bool))


def test_neither_the_mode_nor_the_steps_choose(monkeypatch):
    """Training and evaluating, one step and many."""
    seen = []
    monkeypatch.setattr(forms, "_lacks_type", lambda x, slots, weight: seen.append((x.dtype, x.device)))
    core = FastFeedbackTransformer(4, 1, 2, 3)
    for steps in (1, 5):
        for mode in (True, False):
            core.train(mode)
            core(torch.zeros(1, steps, 4), core.initial_state(1), torch.zeros(1, steps, dtype=torch.bool))
    assert len(set(seen)) == 1


def test_plain_is_the_definition():
    core = FastFeedbackTransformer(4, 1, 2, 3)
    core.form = "plain"
    x, starts = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    from fbrl.cores.feedback import FeedbackTransformer

    plain = FeedbackTransformer(4, 1, 2, 3)
    plain.load_state_dict(core.state_dict())
    assert torch.equal(core(x, core.initial_state(2), starts)[0], plain(x, plain.initial_state(2), starts)[0])
    assert not isinstance(core.actor(core.initial_state(2)), FeedbackActor)


def test_triton_on_a_gpu_that_it_runs_on(monkeypatch):
    """With a stand-in for the GPU: what auto and triton are, and what each thing that is missing makes of them."""
    x = torch.zeros(2, 3, 5)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(forms, "cannot_run_triton", lambda device: None)
    assert form_of("auto", x, x, x) == "triton"
    assert form_of("triton", x, x, x) == "triton"
    assert form_of("fast", x, x, x) == "fast"
    assert form_of("auto", x, x, torch.zeros(129, 128)) == "fast"
    with pytest.raises(ValueError, match="M D/H of at most 16384, got 5 and 16512"):
        form_of("triton", x, x, torch.zeros(129, 128))
    assert form_of("auto", x.half(), x, x) == "fast"
    monkeypatch.setattr(forms, "cannot_run_triton", lambda device: "a C compiler")
    assert form_of("auto", x, x, x) == "fast"
    with pytest.raises(ValueError, match="the triton form needs a C compiler"):
        form_of("triton", x, x, x)


def test_why_triton_cannot_run(monkeypatch):
    forms.cannot_run_triton.cache_clear()
    monkeypatch.setattr(forms, "find_spec", lambda name: None)
    assert forms.cannot_run_triton(torch.device("cpu")) == "triton, of pip install fbrl[triton]"
    monkeypatch.undo()
    forms.cannot_run_triton.cache_clear()
    feedback_triton = pytest.importorskip("fbrl.cores.feedback_triton")
    monkeypatch.setattr(feedback_triton, "INTERPRETED", False)
    assert forms.cannot_run_triton(torch.device("cpu")).startswith(
        "an NVIDIA GPU of compute capability 8.0 or more, got cpu"
    )
    forms.cannot_run_triton.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))

    def fails(device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(feedback_triton, "try_out", fails)
    found = forms.cannot_run_triton(torch.device("cuda"))
    assert found == "Triton to work, which says: RuntimeError: Failed to find C compiler."
    forms.cannot_run_triton.cache_clear()
