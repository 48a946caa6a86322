import os

import pytest
import torch

torch.set_num_threads(1)  # the tests are small; threads would only wait for each other
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run on the CPU then


@pytest.fixture(scope="session", autouse=True)
def last_evaluations_are_short():
    """Trainings end with 20 episodes in the place of 200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiment.training.FINAL_EPISODES", 20)
        yield
