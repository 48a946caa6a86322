"""Every core trains and acts under autocast, near what it computes without."""

import pytest
import torch

from fbrl.cores.names import CORES, core_kwargs


@pytest.mark.parametrize("name", CORES)
def test_a_core_under_autocast(name):
    torch.manual_seed(0)
    core = CORES[name][0](**core_kwargs(name, {"d_model": 32, "n_layers": 2, "n_heads": 2, "window": 8}))
    x, start = torch.randn(3, 5, 32), torch.arange(15).view(3, 5) % 4 == 1
    expected, gradients = None, {}
    for enabled in (False, True):
        core.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            features, _ = core(x, core.initial_state(3), start)
            with torch.no_grad():
                acted, _ = core.actor(core.initial_state(3)).step(x[:, 0], start[:, 0])
        features.float().square().mean().backward()
        gradients[enabled] = torch.cat([p.grad.flatten() for p in core.parameters() if p.grad is not None])
        assert (acted - features[:, 0]).norm() < 0.02 * acted.norm()
        expected = features if expected is None else expected
        assert (features - expected).norm() < 0.02 * expected.norm()
    assert (gradients[True] - gradients[False]).norm() < 0.1 * gradients[False].norm()
