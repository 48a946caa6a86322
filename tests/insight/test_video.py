"""The film shows what was recorded."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from fbrl.insight.colours import of_layer
from fbrl.insight.recording import by_step
from fbrl.insight.video import BORDERS, SIDE, draw, save_video, scenes
from tests.insight.recordings import make_agent, play, task


@pytest.fixture(scope="module")
def episodes():
    return play(make_agent(), 3)


def test_a_film_ends_with_the_outcome_of_each_episode(episodes):
    film = scenes(episodes)
    assert len(film) == sum(len(episode.steps) + 1 for episode in episodes)
    ends = [scene for scene in film if scene.ended]
    assert [scene.success for scene in ends] == [episode.success for episode in episodes]
    assert all(scene.caption.split("   ")[1].split(",")[0] in ("success", "failure") for scene in ends)
    assert draw(ends[0]).getpixel((0, 0)) == BORDERS[ends[0].success]
    assert draw(film[0]).getpixel((0, 0)) == BORDERS[None]


def test_the_frame_read_most_stands_beside_the_picture(episodes):
    episode = max(episodes, key=lambda episode: episode.length)
    t = episode.length - 1
    scene = scenes([episode])[t]
    for read in scene.read:
        weights = by_step(episode.steps[t].reads, t)[read.layer].mean(axis=0)
        assert read.step == weights.argmax()
        assert read.share == pytest.approx(weights.max())
        assert read.frame is episode.steps[read.step].frame
        assert scene.attention[read.layer, 1 + read.slot] == pytest.approx(read.share)
    drawn = np.asarray(draw(scene))[:, -SIDE:]
    for layer in range(2):
        assert (drawn == of_layer(layer)).all(axis=-1).any()


def test_the_first_step_reads_nothing(episodes):
    assert scenes(episodes)[0].read == ()


def test_an_agent_without_attention_has_its_pictures():
    film = scenes(play(make_agent("lstm"), 1))
    assert film[0].attention is None
    assert draw(film[0]).width < draw(scenes(play(make_agent(), 1))[0]).width


def test_the_gif_shows_every_step(episodes, tmp_path):
    save_video(episodes, tmp_path / "agent.gif")
    with Image.open(tmp_path / "agent.gif") as gif:
        assert gif.n_frames == len(scenes(episodes))
        assert gif.size == draw(scenes(episodes)[0]).size


def test_mp4(episodes, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs pip install fbrl[video]")
    save_video(episodes, tmp_path / "agent.mp4")
    shown = scenes(episodes)
    height, width = (size + size % 2 for size in np.asarray(draw(shown[0])).shape[:2])
    command = [ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "agent.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    assert len(frames) == len(shown) + 5 * sum(scene.ended for scene in shown)
    first = np.asarray(draw(shown[0]))
    difference = frames[0][: first.shape[0], : first.shape[1]].astype(int) - first
    assert np.abs(difference).mean() < 8  # of 255: the film is compressed


def test_episodes_without_pictures_are_refused():
    with pytest.raises(ValueError, match="makes no film; record it with render_mode='rgb_array'"):
        scenes(play(make_agent(), 1, task(render_mode=None)))
