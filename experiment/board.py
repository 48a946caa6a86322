"""What TensorBoard shows of a run beside figures: settings, a first page, how old what is read is, pictures."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from experiment.callbacks import MemoryFigures
from experiment.distributed import say
from experiment.evaluating import Evaluate
from experiment.events import Events, writing
from experiment.insight import draws_pictures, made_to_watch
from experiment.randomness import apart
from experiment.settings import Settings
from fbrl.insight.recording import Episode, can_show_attention, record
from fbrl.insight.still import draw_still
from fbrl.insight.video import draw, save_gif, scenes

STEPS = 60  # of the episode that is drawn at an evaluation, the first so many
METRICS = ("eval/success", "eval/return")
LAYOUT = {
    "1. The story": {
        "Does it succeed?": ["Multiline", ["eval/success", "rollout/success_rate"]],
        "What does it earn?": ["Multiline", ["eval/return", "rollout/ep_rew_mean"]],
        "What does it do? (P of each action)": ["Multiline", ["rollout/p_action_.*"]],
        "How much of the attention goes to the memory?": ["Multiline", ["memory/read_.*"]],
        "How old is what it reads? (steps)": ["Multiline", ["memory/mean_age_.*"]],
        "What do the layers write?": ["Multiline", ["memory/mix_.*"]],
    },
    "2. The learning": {
        "Value loss: on a memory task it falls before success rises": ["Multiline", ["train/value_loss"]],
        "Entropy, with a minus": ["Multiline", ["train/entropy_loss"]],
        "How far an update moves the policy (KL)": ["Multiline", ["train/approx_kl"]],
        "Share of clipped steps": ["Multiline", ["train/clip_fraction"]],
        "Explained variance of the values": ["Multiline", ["train/explained_variance"]],
    },
    "3. The time": {
        "Steps a second": ["Multiline", ["time/steps_per_second"]],
        "Where the time goes": ["Multiline", ["time/environment", "time/acting", "time/update", "time/other"]],
    },
}


class Board(BaseCallback):
    """Writes to a run's TensorBoard events what is no figure.

    - at the start: the settings as text and as hparams, with success as the metric, and the layout of custom scalars;
      a run that goes on writes the text once more, as of that step, for its settings may be others;
    - after every rollout: ``memory/age_l``, a histogram of how old what layer l reads is;
    - after every evaluation, with run.eval_pictures, an episode: ``eval/episode`` (a short film, where the task
      draws pictures) and ``eval/attention`` (which step reads which, where the core attends).

    Args:
        settings: the run's.
        evaluate: the run's; goes before this one.
        figures: what knows what was read in the rollout; goes before this one.
    """

    def __init__(self, settings: Settings, evaluate: Evaluate, figures: MemoryFigures) -> None:
        super().__init__()
        self.settings, self.evaluate, self.figures, self.drawn = settings, evaluate, figures, 0
        self.draws = self.pictures = False

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        self.drawn, env = len(self.evaluate.lines), self.settings.env
        if self.settings.run.eval_pictures:
            self.pictures = draws_pictures(env)
            self.draws = self.pictures or can_show_attention(self.model)  # type: ignore[arg-type]
            if not self.draws:
                say("run.eval_pictures has nothing to draw: the task draws no pictures, and the core does not attend")
        for events, writer in _writers(self.logger):
            with writing(events.folder):
                write_settings(writer, self.settings, self.model.num_timesteps)

    def _on_rollout_start(self) -> None:
        self.draw()

    def _on_rollout_end(self) -> None:
        if self.figures.attention is None:
            return
        mass = self.figures.attention[..., 1:].sum(dim=(0, 2)).double().cpu().numpy()  # (L, M), the oldest first
        for events, writer in _writers(self.logger):
            with writing(events.folder):
                for layer, row in enumerate(mass, start=1):
                    write_ages(writer, f"memory/age_{layer}", row[::-1], self.model.num_timesteps)

    def draw(self) -> None:
        """Draws an episode if there was an evaluation since the last one."""
        if not self.draws or len(self.evaluate.lines) == self.drawn:
            return
        self.drawn, step = len(self.evaluate.lines), self.model.num_timesteps
        with apart(self.evaluate.seed):
            episode = self._play()
        for events, writer in _writers(self.logger):
            with writing(events.folder):
                if episode.steps[0].reads is not None:
                    title = f"{step:,} steps: {episode.outcome}, return {episode.returns:.2f}"
                    still = np.asarray(draw_still(episode, title))
                    writer.add_image("eval/attention", still, step, dataformats="HWC")
                if episode.steps[0].frame is not None:
                    write_film(writer, "eval/episode", episode, step)

    def _play(self) -> Episode:
        run, env = self.settings.run, self.settings.env
        with made_to_watch(env, self.evaluate.seed, run.eval_max_steps, self.pictures) as made:
            watched: gym.Env[Any, Any] = made
            if (normalized := self.model.get_vec_normalize_env()) is not None:  # in what the training sees
                watched = gym.wrappers.TransformObservation(made, normalized.normalize_obs, made.observation_space)
            return record(self.model, watched, deterministic=run.eval_deterministic, max_steps=STEPS)  # type: ignore[arg-type]


def write_settings(writer: SummaryWriter, settings: Settings, step: int = 0) -> None:
    """The settings as text; at the start also as hparams, and the layout."""
    groups = asdict(settings)
    writer.add_text("config", "```yaml\n" + yaml.safe_dump(groups, sort_keys=False) + "```", step)
    if step:  # TensorBoard takes one set of hparams a run: the first
        return
    writer.add_custom_scalars(LAYOUT)
    flat = {
        f"{group}.{name}": value if isinstance(value, bool | int | float | str) else str(value)
        for group, entries in groups.items()
        for name, value in entries.items()
    }
    for summary in hparams(flat, dict.fromkeys(METRICS, 0.0)):
        writer._get_file_writer().add_summary(summary)


def write_ages(writer: SummaryWriter, tag: str, mass: np.ndarray[Any, Any], step: int) -> None:
    """A histogram of ages 1, 2, ... steps, each with its mass."""
    age = np.arange(1, len(mass) + 1)
    writer.add_histogram_raw(
        tag,
        min=1,
        max=len(mass),
        num=float(mass.sum()),
        sum=float((mass * age).sum()),
        sum_squares=float((mass * age**2).sum()),
        bucket_limits=(age + 0.5).tolist(),
        bucket_counts=mass.tolist(),
        global_step=step,
    )


def write_film(writer: SummaryWriter, tag: str, episode: Episode, step: int) -> None:
    """The episode as a GIF that moves where TensorBoard shows images."""
    shown, buffer = scenes([episode]), io.BytesIO()
    save_gif(shown, buffer)
    image = draw(shown[0])
    gif = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=buffer.getvalue())
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=gif)]), step)


def _writers(logger: Logger) -> list[tuple[Events, SummaryWriter]]:
    found = []
    for events in logger.output_formats:
        if isinstance(events, Events) and events.writer is not None:
            found.append((events, events.writer))
    return found
