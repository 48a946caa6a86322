"""The settings of one experiment: what a YAML file and the command line may say, with defaults and units."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line that names it."""


@dataclass
class EnvSettings:
    """The task.

    Args:
        id: Environment id: one of this repository's (fbrl/TMaze-v0), any of MiniGrid's, BabyAI's or Gymnasium's.
        n_envs: Environments that are stepped together.
        previous_action: Add the previous action to the observation.
        previous_reward: Add the previous reward to the observation.
        kwargs: Keyword arguments of the environment, for example {"corridor": 20}.
    """

    id: str = "fbrl/TMaze-v0"
    n_envs: int = 16
    previous_action: bool = False
    previous_reward: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CoreSettings:
    """The memory.

    Args:
        name: feedback is the Feedback Transformer; none is the memoryless control, Stable-Baselines3's own PPO.
        d_model: D, width of every layer and of a memory vector; the encoder's width too.
        n_layers: L, number of layers.
        n_heads: H, attention heads; divides d_model.
        window: M, memory slots: how many steps back the agent can look directly.
        d_feedforward: Width inside a feed-forward block; null means 2 d_model.
    """

    name: Literal["feedback", "none"] = "feedback"
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    window: int = 32
    d_feedforward: int | None = None


@dataclass
class PPOSettings:
    """The training.

    Args:
        timesteps: Environment steps in all, counted over all environments.
        learning_rate: Adam's step size at the start.
        learning_rate_end: Step size at the end; linear in between.
        n_steps: Steps of each environment in a rollout; a multiple of seq_len.
        seq_len: Steps that the loss is back-propagated through.
        batch_size: Steps in a minibatch; a multiple of seq_len.
        n_epochs: Passes over a rollout.
        gamma: Discount a step, 0 to 1.
        gae_lambda: Bias against variance of the advantage, 0 to 1.
        clip_range: How far the probability ratio may move from one.
        ent_coef: Weight of the entropy bonus at the start.
        ent_coef_end: Weight of the entropy bonus at the end; linear in between; null means as at the start.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradients are clipped to this norm.
        target_kl: Ends the epochs of an update when the policy has moved further than 1.5 times this; null means never.
    """

    timesteps: int = 500_000
    learning_rate: float = 5e-4
    learning_rate_end: float = 0.0
    n_steps: int = 128
    seq_len: int = 32
    batch_size: int = 512
    n_epochs: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.01
    ent_coef_end: float | None = None
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None


@dataclass
class RunSettings:
    """The run.

    Args:
        name: Folder of the run, inside folder; null means the task and the seed.
        folder: Where runs go.
        seed: Seed of weights, environments and sampling.
        device: auto, cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
        threads: CPU threads that PyTorch uses; null leaves PyTorch's default.
        eval_every: Environment steps between evaluations.
        eval_episodes: Episodes of an evaluation, played with the most probable action.
        checkpoint_every: Environment steps between checkpoints that can be resumed.
        stop_at_success: Ends the training early once an evaluation reaches this success rate, 0 to 1; null means never.
        control: Train the memoryless control on the same task too, and print both.
        progress_bar: Show a progress bar.
    """

    name: str | None = None
    folder: str = "runs"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    eval_every: int = 50_000
    eval_episodes: int = 64
    checkpoint_every: int = 100_000
    stop_at_success: float | None = None
    control: bool = False
    progress_bar: bool = True


@dataclass
class Settings:
    """One experiment."""

    env: EnvSettings = field(default_factory=EnvSettings)
    core: CoreSettings = field(default_factory=CoreSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def save(self, path: Path) -> None:
        """Writes all settings as YAML."""
        path.write_text(yaml.safe_dump(asdict(self), sort_keys=False))


GROUPS: dict[str, type[Any]] = {"env": EnvSettings, "core": CoreSettings, "ppo": PPOSettings, "run": RunSettings}


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, whose errors are one line on stderr and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits."""
        raise SettingsError(one_line(message))


def one_line(message: object) -> str:
    """A message with its line breaks and runs of blanks folded."""
    return " ".join(str(message).split())


def add_settings(parser: OneLineParser) -> None:
    """Adds ``--config`` and every setting as ``--group.name`` to a parser."""
    parser.add_argument("--config", action="config", help="YAML file with settings; what follows it overrides it.")
    for name, group in GROUPS.items():
        parser.add_class_arguments(group, name)


def to_settings(namespace: Namespace) -> Settings:
    """The settings that a parser read, checked against each other.

    Raises:
        SettingsError: where a number is out of range or two sizes do not fit.
    """
    settings = Settings(**{name: group(**dict(namespace[name].items())) for name, group in GROUPS.items()})
    check(settings)
    return settings


def load_settings(path: str | Path) -> Settings:
    """The settings in a YAML file.

    Raises:
        SettingsError: where the file is missing, or holds something that is not a setting; the message names the file.
    """
    if not Path(path).is_file():
        raise SettingsError(f"{path}: no such file; expected a YAML file with settings")
    parser = OneLineParser(exit_on_error=True)
    add_settings(parser)
    try:
        return to_settings(parser.parse_args([f"--config={path}"]))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def check(settings: Settings) -> None:
    """Raises SettingsError, naming the setting, what was given and what is allowed."""
    env, core, ppo, run = settings.env, settings.core, settings.ppo, settings.run
    at_least_one = {
        "env.n_envs": env.n_envs,
        "core.d_model": core.d_model,
        "core.n_layers": core.n_layers,
        "core.n_heads": core.n_heads,
        "core.window": core.window,
        "ppo.timesteps": ppo.timesteps,
        "ppo.seq_len": ppo.seq_len,
        "ppo.n_epochs": ppo.n_epochs,
        "run.threads": 1 if run.threads is None else run.threads,
        "run.eval_every": run.eval_every,
        "run.eval_episodes": run.eval_episodes,
        "run.checkpoint_every": run.checkpoint_every,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise SettingsError(f"{name} must be at least 1, got {value}")
    if run.seed < 0:
        raise SettingsError(f"run.seed must be at least 0, got {run.seed}")
    for name, share in {"ppo.gamma": ppo.gamma, "ppo.gae_lambda": ppo.gae_lambda}.items():
        if not 0 <= share <= 1:
            raise SettingsError(f"{name} must be between 0 and 1, got {share}")
    for name, value in {"ppo.n_steps": ppo.n_steps, "ppo.batch_size": ppo.batch_size}.items():
        if value < 1 or value % ppo.seq_len:
            raise SettingsError(f"{name} must be a multiple of ppo.seq_len = {ppo.seq_len}, got {value}")
    if core.d_model % core.n_heads:
        raise SettingsError(f"core.n_heads must divide core.d_model = {core.d_model}, got {core.n_heads}")
    check_device("run.device", run.device)


def check_device(name: str, device: str) -> None:
    """Raises SettingsError where PyTorch has no such device; Stable-Baselines3 would take the CPU without a word."""
    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or one that this machine lacks
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{name} must be auto, cpu, cuda, cuda:1, ..., got {device}: {reason}") from None


def fail(error: object) -> NoReturn:
    """Ends a script on bad input: one line on stderr, exit code 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(2)
