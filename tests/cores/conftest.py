"""What the tests of the cores share."""

import pytest

from fbrl.cores.feedback_scan import FastFeedbackTransformer


@pytest.fixture(params=["fast", "compiled"])
def form(request, monkeypatch):
    """Every fast form of the Feedback Transformer in turn."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(FastFeedbackTransformer, "form", request.param)
    return request.param


@pytest.fixture
def fast_form(monkeypatch):
    """The fast form, where the compiled one would be taken."""
    monkeypatch.setattr(FastFeedbackTransformer, "form", "fast")
