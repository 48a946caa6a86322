"""Time against time."""

import numpy as np
import pytest

from fbrl.insight.colours import shade
from fbrl.insight.still import LEFT, TOP, draw_still, save_still, time_against_time
from tests.insight.recordings import make_agent, play


@pytest.fixture(scope="module")
def episode():
    return max(play(make_agent(), 5), key=lambda episode: episode.length)  # longer than the window of five


def test_a_row_is_what_the_step_reads(episode):
    weights, length = time_against_time(episode), episode.length
    assert weights.shape == (2, length, 1 + length)
    assert length > 6
    np.testing.assert_allclose(np.nansum(weights, axis=-1), 1, atol=1e-6)
    for t in range(length):
        readable = np.flatnonzero(np.isfinite(weights[0, t, 1:]))
        np.testing.assert_array_equal(readable, np.arange(max(0, t - 5), t))
        np.testing.assert_allclose(
            weights[:, t, t], episode.steps[t].reads.mean(axis=1)[:, -1] if t else weights[:, 0, 0]
        )


def test_the_picture_has_its_colours(episode, tmp_path):
    image = draw_still(episode, "title")
    assert image.getpixel((LEFT, TOP)) == shade(1.0, (255, 200, 60))  # the first step reads nothing
    save_still(episode, tmp_path / "still.png", "title")
    assert (tmp_path / "still.png").stat().st_size > 500


def test_an_emptied_memory_can_be_drawn():
    episode = play(make_agent(), 1, zero_memory=True)[0]
    weights = time_against_time(episode)
    assert np.isnan(weights[..., 1:]).all()
    assert draw_still(episode, "title").width


def test_no_attention_no_still():
    with pytest.raises(ValueError, match="its core has no attention"):
        time_against_time(play(make_agent("gru"), 1)[0])
