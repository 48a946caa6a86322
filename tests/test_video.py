"""The attention that is drawn is the one that the agent paid."""

import numpy as np
import pytest
from PIL import Image

import envs
from fbrl import MemoryPPO
from fbrl.video import BORDERS, attention, draw, record, save_gif

LAYERS, WINDOW = 2, 3


@pytest.fixture(scope="module")
def agent():
    sizes = {"d_model": 8, "n_layers": LAYERS, "n_heads": 2, "window": WINDOW}
    return MemoryPPO("MlpPolicy", make(), device="cpu", seed=0, policy_kwargs={"core_kwargs": sizes})


def make():
    return envs.make("fbrl/TMaze-v0", seed=0, corridor=2, render_mode="rgb_array")


def test_attention_is_over_the_null_slot_and_what_was_written(agent):
    state = None
    for written in range(WINDOW + 2):
        seen = attention(agent.policy, 2, state)
        assert seen.shape == (LAYERS, 1 + WINDOW)
        np.testing.assert_array_equal(np.isfinite(seen[:, 1:]).sum(axis=1), min(written, WINDOW))
        assert np.isfinite(seen[:, WINDOW + 1 - min(written, WINDOW) :]).all()  # the newest are at the right
        np.testing.assert_allclose(np.nansum(seen, axis=1), 1, atol=1e-6)
        _, state = agent.predict(2, state)


def test_a_recording_ends_with_the_outcome_of_each_episode(agent):
    steps = record(agent, make(), 2)
    ends = [step for step in steps if step.ended]
    assert len(ends) == 2
    assert all(step.caption.split("   ")[1].split(",")[0] in ("success", "failure") for step in ends)
    assert draw(ends[0]).getpixel((0, 0)) == BORDERS[ends[0].success]
    assert draw(steps[0]).getpixel((0, 0)) == BORDERS[None]


def test_zero_memory_looks_at_the_null_slot_only(agent):
    for step in record(agent, make(), 1, zero_memory=True):
        np.testing.assert_array_equal(step.attention[:, 0], np.ones(LAYERS))


def test_a_recording_stops_after_max_steps(agent):
    assert len(record(agent, make(), 50, max_steps=7)) in (7, 8)  # the end of an episode has a picture of its own


def test_the_gif_shows_every_step(agent, tmp_path):
    steps = record(agent, make(), 2)
    save_gif(steps, tmp_path / "agent.gif")
    with Image.open(tmp_path / "agent.gif") as gif:
        pictures = gif.n_frames
        gif.seek(pictures - 1)
        assert gif.size == draw(steps[0]).size
    assert pictures == len(steps)


def test_an_environment_without_pictures_is_refused(agent):
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array', got None"):
        record(agent, envs.make("fbrl/TMaze-v0"), 1)
