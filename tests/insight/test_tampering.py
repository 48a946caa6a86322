"""A memory that was tampered with is what it is said to be."""

import numpy as np
import pytest

from fbrl.insight.seen import look
from fbrl.insight.tampering import Tampered, cut_to, shuffled
from tests.tasks import make_model

BATCH = 3


class Notes:
    """An agent that hands on what it was given."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return observation, state


def windows(length):
    slots = np.arange(2 * 5, dtype=float).reshape(2, 5, 1)
    return slots, np.array(length)


def test_shuffling_moves_what_can_be_read_and_nothing_else():
    slots, length = windows([3, 5])
    given = Tampered(Notes(), shuffled(np.random.default_rng(1))).predict(None, (slots, length))[1]
    np.testing.assert_array_equal(given[0][0, :2], slots[0, :2])
    for row, readable in enumerate((3, 5)):
        assert sorted(given[0][row, 5 - readable :, 0]) == sorted(slots[row, 5 - readable :, 0])
    assert not np.array_equal(given[0], slots)
    np.testing.assert_array_equal(given[1], length)


def test_a_window_is_cut_short():
    slots, length = windows([1, 5])
    given = Tampered(Notes(), cut_to(2)).predict(None, (slots, length))[1]
    np.testing.assert_array_equal(given[0], slots)
    np.testing.assert_array_equal(given[1], [1, 2])


def test_before_the_first_step_there_is_nothing_to_tamper_with():
    assert Tampered(Notes(), cut_to(2)).predict(None, None)[1] is None


@pytest.mark.parametrize("core", ["fast", "transformer_xl"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_agent_reads_no_more_than_it_is_left(core, shared):
    """Also a critic's own core: every window of the state is cut."""
    model = make_model(core, policy_kwargs={"share_features_extractor": shared})
    rng, state, agent = np.random.default_rng(0), None, Tampered(model, cut_to(2))
    for _ in range(6):
        _, state = agent.predict(rng.normal(size=(BATCH, 3)).astype(np.float32), state)
    seen = look(model.policy, rng.normal(size=(BATCH, 3)).astype(np.float32), cut_to(2)(state))
    assert (np.isfinite(seen.attention).sum(axis=-1) == 3).all()  # no step, and two slots
