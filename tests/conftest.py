import os

import pytest
import torch

torch.set_num_threads(1)  # the tests are small; threads would only wait for each other
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run on the CPU then


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Where two processes share the tests, each begins with the kernels of another type, and finds the rest on disk."""
    dtype = {"gw0": torch.float32, "gw1": torch.float64}.get(os.environ.get("PYTEST_XDIST_WORKER"))
    if dtype is None:
        return
    from fbrl.cores.feedback_scan import FastFeedbackTransformer  # after TRITON_INTERPRET is set

    core = FastFeedbackTransformer(d_model=4, n_layers=1, n_heads=1, window=2).to(dtype)
    x, start = torch.zeros(2, 2, 4, dtype=dtype), torch.zeros(2, 2, dtype=torch.bool)
    features, _ = core(x, core.initial_state(2), start)
    features.sum().backward()
    actor = core.actor(core.initial_state(2))
    for t in range(2):
        actor.step(x[:, t], start[:, t])


@pytest.fixture(scope="session", autouse=True)
def last_evaluations_are_short():
    """Trainings end with 20 episodes in the place of 200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiment.training.FINAL_EPISODES", 20)
        yield
