"""What TensorBoard is given, read back from the events."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.training import train
from fbrl.insight.recording import record

LIMITS = {"images": 0, "histograms": 0, "tensors": 0, "scalars": 0}


def settings(folder, core="feedback", env=None, **run):
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "window": 4}
    return Settings(
        env or EnvSettings(n_envs=4, kwargs={"corridor": 2}),
        CoreSettings(core, **sizes),
        PPOSettings(timesteps=256, n_steps=32, seq_len=8, batch_size=64, n_epochs=1),
        RunSettings(
            name="run", folder=str(folder), device="cpu", eval_every=128, eval_episodes=4, progress_bar=False, **run
        ),
    )


def events(folder):
    return EventAccumulator(str(folder), size_guidance=LIMITS).Reload()


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return events(train(settings(tmp_path_factory.mktemp("runs"), eval_pictures=True)))


def content(board, tag):
    return board.SummaryMetadata(tag).plugin_data.content


def test_the_settings_are_text(board):
    text = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    told = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))
    assert (told["env"]["kwargs"], told["core"]["window"]) == ({"corridor": 2}, 4)


def test_the_settings_are_hparams_and_success_is_the_metric(board):
    experiment = HParamsPluginData.FromString(content(board, "_hparams_/experiment")).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["eval/success", "eval/return"]
    assert board.Scalars("eval/success")  # which is what the metric shows
    start = HParamsPluginData.FromString(content(board, "_hparams_/session_start_info")).session_start_info
    assert start.hparams["core.window"].number_value == 4
    assert start.hparams["env.id"].string_value == "fbrl/TMaze-v0"
    assert start.hparams["ppo.target_kl"].string_value == "None"


def test_the_first_page_tells_the_story(board):
    """Every tag of it stands for figures that there are; a pattern for several."""
    import re

    layout = Layout.FromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["1. The story", "2. The learning", "3. The time"]
    scalars = board.Tags()["scalars"]
    for chart in layout.category[0].chart:
        for tag in chart.multiline.tag:
            assert [one for one in scalars if re.fullmatch(tag, one)], tag


def test_the_ages_are_a_histogram(board):
    found = board.Histograms("memory/age_2")
    assert [one.step for one in found] == [128, 256]
    value = found[-1].histogram_value
    read = board.Scalars("memory/read_2")[-1].value
    assert value.num == pytest.approx(4 * 2 * read, rel=1e-4)  # of four environments and two heads
    mean = board.Scalars("memory/mean_age_2")[-1].value
    assert value.sum / value.num == pytest.approx(mean, rel=1e-4)
    assert sum(value.bucket) == pytest.approx(value.num)


def test_every_evaluation_is_drawn(board):
    assert [one.step for one in board.Images("eval/attention")] == [128, 256]
    films = board.Images("eval/episode")
    assert [one.step for one in films] == [128, 256]
    with Image.open(io.BytesIO(films[0].encoded_image_string)) as film:
        assert film.format == "GIF"
        assert film.n_frames > 1
        assert film.size == (films[0].width, films[0].height)


def test_pictures_do_not_change_the_training(board, tmp_path):
    other = events(train(settings(tmp_path)))
    assert "eval/attention" not in other.Tags()["images"]
    for tag in ("train/loss", "eval/return", "memory/mix_1"):
        mine, theirs = ([one.value for one in which.Scalars(tag)] for which in (board, other))
        assert mine == theirs


def test_other_cores_and_tasks_have_what_there_is(tmp_path, capsys):
    env = EnvSettings("fbrl/Counting-v0", n_envs=4)
    recurrent = events(train(settings(tmp_path / "a", "gru", env, eval_pictures=True)))
    assert "run.eval_pictures has nothing to draw" in capsys.readouterr().out
    assert recurrent.Tags()["images"] == recurrent.Tags()["histograms"] == []
    attending = events(train(settings(tmp_path / "b", "transformer_xl", env, eval_pictures=True)))
    assert set(attending.Tags()["images"]) == {"eval/attention"}
    assert set(attending.Tags()["histograms"]) == {"memory/age_1", "memory/age_2"}
    assert np.isfinite([one.value for one in attending.Scalars("memory/mean_age_1")]).all()


def test_frames_in_stacks_are_not_drawn(tmp_path):
    env = EnvSettings("CartPole-v1", n_envs=4, frame_stack=2)
    with pytest.raises(SettingsError, match=r"^run.eval_pictures: true: env.frame_stack must be null, got 2$"):
        train(settings(tmp_path, env=env, eval_pictures=True))


def test_normalized_observations_are_drawn_as_the_agent_knows_them(tmp_path, monkeypatch):
    shown = []

    def note(model, env, **how):
        episode = record(model, env, **how)
        shown.append((episode, model.get_vec_normalize_env()))
        return episode

    monkeypatch.setattr("experiment.board.record", note)
    env = EnvSettings("CartPole-v1", n_envs=4, normalize_observations=True)
    train(settings(tmp_path, env=env, eval_pictures=True))
    episode, normalized = shown[-1]
    first = episode.steps[0].observation["observation"]
    back = normalized.unnormalize_obs(first)
    assert np.abs(back).max() <= 0.05 + 1e-6  # where CartPole starts
    assert np.abs(first).max() > 0.05


def test_a_run_that_goes_on_writes_the_settings_it_goes_on_with(tmp_path):
    folder = train(settings(tmp_path))
    longer = settings(tmp_path)
    longer.ppo.timesteps += 128
    train(longer, folder)
    told = events(folder).Tensors("config/text_summary")
    texts = [one.tensor_proto.string_val[0].decode() for one in told]
    steps = [yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))["ppo"]["timesteps"] for text in texts]
    assert [(one.step, step) for one, step in zip(told, steps, strict=True)] == [(0, 256), (256, 384)]
