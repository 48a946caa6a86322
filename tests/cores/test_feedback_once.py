"""A step that projects no memory vector is the plain step."""

import pytest
import torch

from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_once import is_plain_step, step_once
from fbrl.memory import Memory
from tests.cores.cases import MEMORIES, B, D, H, make_cores, make_input, make_memory


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("window", [1, 2, 7])
def test_equals_the_plain_step(window, memory):
    """Over several steps, so that memory vectors that it wrote are read."""
    plain, _ = make_cores(window)
    expected = found = make_memory(memory, window)
    for x in make_input(4).unbind(1):
        wanted, expected = plain.step(x, expected)
        features, found = step_once(plain, x, found)
        torch.testing.assert_close(features, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_read_has_no_effect():
    plain, _ = make_cores(4)
    (x,) = make_input(1).unbind(1)
    memory = make_memory("half", 4)
    nan = Memory(memory.slots.masked_fill(~memory.readable.unsqueeze(-1), torch.nan), memory.length)
    torch.testing.assert_close(step_once(plain, x, nan)[0], step_once(plain, x, memory)[0])


def test_on_the_device_of_its_input():
    with torch.device("meta"):
        core = FeedbackTransformer(D, 2, H, 5)
        features, memory = step_once(core, torch.empty(B, D), core.initial_state(B))
    assert features.device.type == memory.slots.device.type == "meta"


def test_the_step_of_a_subclass_is_its_own():
    class Loud(FeedbackTransformer):
        def written(self, outputs):
            return 2 * super().written(outputs)

    assert is_plain_step(FeedbackTransformer(D, 2, H, 5))
    assert not is_plain_step(Loud(D, 2, H, 5))
