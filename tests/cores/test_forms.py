"""Which form computes the scan."""

import builtins

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fbrl.cores import forms
from fbrl.cores.feedback_scan import FastFeedbackTransformer, FeedbackActor
from fbrl.cores.forms import cannot_compile, is_compiled

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
    assert is_compiled("auto", x, x, x)
    assert is_compiled("compiled", x, x, x)
    assert not is_compiled("fast", x, x, x)


def test_auto_is_fast_without_numba(without_numba):
    assert not is_compiled("auto", X, X, X)
    core = FastFeedbackTransformer(4, 1, 2, 3)
    state = core.initial_state(2)
    assert isinstance(core.actor(state), FeedbackActor)
    features, _ = core(torch.zeros(2, 3, 4), state, torch.zeros(2, 3, dtype=torch.bool))
    assert features.isfinite().all()


def test_compiled_without_numba_says_what_it_needs(without_numba):
    with pytest.raises(ValueError, match=r"the compiled form needs numba, of pip install fbrl\[compiled\]"):
        is_compiled("compiled", X, X, X)


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
    assert not is_compiled("auto", x, slots, weight)
    with pytest.raises(ValueError, match=needs):
        is_compiled("compiled", x, slots, weight)


def test_tensors_without_values_are_left_to_the_fast_form():
    with FakeTensorMode():
        x = torch.zeros(2, 3, 5)
        assert not is_compiled("auto", x, x, x)


def test_what_is_traced_is_the_fast_form(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not is_compiled("auto", X, X, X)


def test_an_unknown_form_is_refused():
    core = FastFeedbackTransformer(4, 1, 2, 3)
    core.form = "fastest"
    with pytest.raises(ValueError, match="form must be one of auto, compiled, fast, plain, got 'fastest'"):
        core(torch.zeros(1, 1, 4), core.initial_state(1), torch.zeros(1, 1, dtype=torch.bool))


def test_neither_the_mode_nor_the_steps_choose(monkeypatch):
    """Training and evaluating, one step and many."""
    seen = []
    monkeypatch.setattr(forms, "_lacks", lambda x, slots, weight: seen.append((x.dtype, x.device)))
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
