"""The control: the Feedback Transformer that never has anything to read."""

import pytest
import torch

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.memoryless import Memoryless

B, T, D, L, F = 2, 7, 33, 3, 13


def make_input():
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_is_a_feedback_transformer_that_forgets_before_every_step():
    torch.manual_seed(0)
    feedback = FeedbackTransformer(D, L, n_heads=3, window=5, d_feedforward=F).double()
    with torch.no_grad():
        for parameter in feedback.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    core = Memoryless(D, L, F).double()
    shared = {name: value for name, value in feedback.state_dict().items() if name in core.state_dict()}
    core.load_state_dict(shared)  # strict: every parameter has its counterpart
    x = make_input()
    expected, _ = feedback(x, feedback.initial_state(B), torch.ones(B, T, dtype=torch.bool))
    features, _ = core(x, core.initial_state(B), torch.zeros(B, T, dtype=torch.bool))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


def test_starts_with_the_weights_of_its_kind():
    """Orthogonal, with the gains of the Feedback Transformer's feed-forward blocks."""
    torch.manual_seed(0)
    for layer in Memoryless(D, L, F).layers:
        torch.testing.assert_close(layer.w_1.weight @ layer.w_1.weight.T, 2 * torch.eye(F), rtol=0, atol=1e-4)
        torch.testing.assert_close(layer.w_2.weight.T @ layer.w_2.weight, torch.eye(F), rtol=0, atol=1e-4)


def test_steps_do_not_see_each_other():
    core = Memoryless(D, L, F).double()
    x = make_input().requires_grad_()
    features, state = core(x, core.initial_state(B), torch.zeros(B, T, dtype=torch.bool))
    assert [tuple(part.shape) for part in state] == [(B, 0)]
    features[1, 4].pow(3).sum().backward()
    reached = x.grad.abs().amax(dim=-1) > 0
    assert reached.nonzero().tolist() == [[1, 4]]


def test_sizes():
    assert Memoryless(D, L).layers[0].w_1.out_features == 2 * D
    for size in ("d_model", "n_layers", "d_feedforward"):
        with pytest.raises(ValueError, match=f"^{size} must be at least 1, got 0$"):
            Memoryless(**{size: 0})
