"""The settings of one experiment, with defaults and units, and what they may be.

Over 300 lines, most of which say what each setting means: they stand in one file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml

from experiment import files
from experiment.typed import SettingsError as SettingsError
from experiment.typed import convert, shown
from fbrl.cores.forms import Form, cannot_compile
from fbrl.cores.names import CORES, core_kwargs


@dataclass
class EnvSettings:
    """The task.

    Args:
        id: Environment id: one of this repository's (fbrl/TMaze-v0), any of MiniGrid's, BabyAI's or Gymnasium's.
        n_envs: Environments that are stepped together.
        previous_action: Add the previous action to the observation.
        previous_reward: Add the previous reward to the observation.
        kwargs: Keyword arguments of the environment, for example {"corridor": 20}.
        wrappers: What is put around the environment, innermost first: import paths of Gymnasium wrappers, for example
            [minigrid.wrappers.FullyObsWrapper], or {path: {keyword arguments}}.
        engine: What steps the training's environments: minigrid, in Python, plays any task; envpool, in C++, needs
            pip install fbrl[envpool] and plays MiniGrid's. Evaluations always take minigrid.
        frame_stack: Show the last so many observations in one, zeros before the episode's start; null means one by
            one. For observations in a Box or a Dict of them.
        novelty: What the training pays, besides the task's own reward, for each step to an observation that the episode
            has not shown yet (previous_action and previous_reward aside), at the start; it falls linearly to 0. For
            observations in whole numbers.
        novelty_steps: Environment steps, counted over all environments, after which novelty is 0.
        normalize_observations: Show observations in units of their running deviation, around their running mean, by
            Stable-Baselines3's VecNormalize; the statistics are saved with the agent. For real numbers, no symbols.
        normalize_rewards: Train on rewards in units of the running deviation of returns, by VecNormalize.
    """

    id: str = "fbrl/TMaze-v0"
    n_envs: int = 16
    previous_action: bool = False
    previous_reward: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: list[Any] = field(default_factory=list)
    engine: Literal["minigrid", "envpool"] = "minigrid"
    frame_stack: int | None = None
    novelty: float = 0.0
    novelty_steps: int = 2_000_000
    normalize_observations: bool = False
    normalize_rewards: bool = False


CoreName = Literal["feedback", "feedback_plain", "gru", "lstm", "transformer_xl", "gtrxl", "memoryless", "none"]


@dataclass
class CoreSettings:
    """The memory.

    Args:
        name: feedback is the Feedback Transformer. gru, lstm, transformer_xl and gtrxl (the same with gates) are its
            rivals. memoryless has layers but no memory; none has neither and is Stable-Baselines3's own PPO.
            feedback_plain is feedback with form plain, as older files have it.
        d_model: D, width of every layer and of a memory vector; the encoder's width too.
        n_layers: L, number of layers; of all cores but none.
        n_heads: H, attention heads; divides d_model. Of feedback, feedback_plain, transformer_xl and gtrxl.
        window: M, memory slots: how many steps back a layer can look directly. Of those with heads.
        d_feedforward: Width inside a feed-forward block; null means 2 d_model. Of those with heads, and memoryless.
        form: What computes feedback's scan; all forms learn the same. compiled is machine code for a CPU, the fastest
            there, and needs pip install fbrl[compiled]; fast is PyTorch's, and plain the definition, slower, for
            comparison. auto takes compiled where it can be had, and fast elsewhere.
    """

    name: CoreName = "feedback"
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    window: int = 32
    d_feedforward: int | None = None
    form: Form = "auto"


@dataclass
class PPOSettings:
    """The training.

    Args:
        timesteps: Environment steps in all, counted over all environments.
        learning_rate: Adam's step size at the start.
        learning_rate_end: Step size at the end; linear in between.
        n_steps: Steps of each environment in a rollout; a multiple of seq_len.
        seq_len: Steps that the loss is back-propagated through.
        passes: Train with so many parallel passes over each sequence in the place of the scan; null means the scan.
        batch_size: Steps in a minibatch; a multiple of seq_len.
        n_epochs: Passes over a rollout.
        gamma: Discount a step, 0 to 1.
        gae_lambda: Bias against variance of the advantage, 0 to 1.
        clip_range: How far the probability ratio may move from one.
        ent_coef: Weight of the entropy bonus at the start.
        ent_coef_end: Weight of the entropy bonus at the end; linear in between; null means as at the start.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradients are clipped to this norm.
        net_arch: Widths of the layers between the memory and the policy's and the value's head, each of which has its
            own; [] means that the heads read the memory's output as it is. Of core.name none, [] means
            Stable-Baselines3's own layers.
        activation: Activation function of the layers of net_arch.
        ortho_init: Start the layers outside the memory orthogonal.
        use_sde: Explore by noise that depends on the state (gSDE); for actions in a Box.
        sde_sample_freq: Steps after which gSDE draws new noise; -1 means once a rollout.
        log_std_init: Logarithm of the deviation of actions in a Box at the start.
        clip_range_end: How far the ratio may move at the end; linear in between; null means as at the start.
        target_kl: Ends the epochs of an update when the policy has moved further than 1.5 times this; null means never.
    """

    timesteps: int = 500_000
    learning_rate: float = 5e-4
    learning_rate_end: float = 0.0
    n_steps: int = 128
    seq_len: int = 32
    passes: int | None = None
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
    net_arch: list[int] = field(default_factory=list)
    activation: Literal["relu", "tanh", "elu", "leaky_relu", "gelu", "silu"] = "relu"
    ortho_init: bool = True
    use_sde: bool = False
    sde_sample_freq: int = -1
    log_std_init: float = 0.0
    clip_range_end: float | None = None


@dataclass
class RunSettings:
    """The run.

    Args:
        name: Folder of the run, inside folder; null means the task and the seed.
        folder: Where runs go.
        start_from: Folder or .zip of a trained agent whose weights a new run starts with; its spaces and core must be
            the same, the task may be another. Null means new weights.
        seed: Seed of weights, environments and sampling.
        device: auto, cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
        threads: CPU threads that PyTorch uses; null leaves PyTorch's default.
        cuda_graphs: On a GPU, replay the scan's kernels as CUDA graphs, captured once for each shape of a minibatch.
        eval_every: Environment steps between evaluations.
        eval_episodes: Episodes of an evaluation.
        eval_envs: Environments that evaluations play in together, at most.
        eval_max_steps: Steps after which an evaluation cuts an episode, which then counts as not solved.
        eval_deterministic: Evaluations take the most probable actions; false: they sample, as the training does. They
            decide which agent becomes best.zip.
        eval_pictures: With every evaluation, draw an episode for TensorBoard: a short film, and which step reads which.
        checkpoint_every: Environment steps between checkpoints that can be resumed.
        stop_at_success: Ends the training early once an evaluation reaches this success rate, 0 to 1; null means never.
        control: Train the memoryless control on the same task too, and print both.
        progress_bar: Show a progress bar.
        callbacks: Import paths of Stable-Baselines3 callbacks, or of functions that make one, such as
            wandb.integration.sb3.WandbCallback; called with those of settings and folder that they have parameters for.
    """

    name: str | None = None
    folder: str = "runs"
    start_from: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    cuda_graphs: bool = True
    eval_every: int = 50_000
    eval_episodes: int = 64
    eval_envs: int = 8
    eval_max_steps: int = 10_000
    eval_deterministic: bool = True
    eval_pictures: bool = False
    checkpoint_every: int = 100_000
    stop_at_success: float | None = None
    control: bool = False
    progress_bar: bool = True
    callbacks: list[str] = field(default_factory=list)


@dataclass
class Settings:
    """One experiment."""

    env: EnvSettings = field(default_factory=EnvSettings)
    core: CoreSettings = field(default_factory=CoreSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def save(self, path: Path) -> None:
        """Writes all settings as YAML."""
        files.write(path, yaml.safe_dump(asdict(self), sort_keys=False))


GROUPS: dict[str, type[Any]] = {"env": EnvSettings, "core": CoreSettings, "ppo": PPOSettings, "run": RunSettings}
RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        (
            *("env.n_envs", "env.frame_stack", "env.novelty_steps"),
            *("core.d_model", "core.n_layers", "core.n_heads", "core.window", "core.d_feedforward"),
            *("ppo.timesteps", "ppo.seq_len", "ppo.passes", "ppo.n_epochs"),
            *("run.threads", "run.eval_every", "run.eval_episodes", "run.eval_envs", "run.eval_max_steps"),
            "run.checkpoint_every",
        ),
    ),
    (
        "at least 0",
        lambda value: value >= 0,
        (
            "env.novelty",
            "ppo.learning_rate_end",
            "ppo.clip_range_end",
            "ppo.ent_coef",
            "ppo.ent_coef_end",
            "ppo.vf_coef",
            "run.seed",
        ),
    ),
    (
        "more than 0",
        lambda value: value > 0,
        ("ppo.learning_rate", "ppo.clip_range", "ppo.max_grad_norm", "ppo.target_kl"),
    ),
    ("between 0 and 1", lambda value: 0 <= value <= 1, ("ppo.gamma", "ppo.gae_lambda", "run.stop_at_success")),
)


MOST_OF_ALL = 10**12  # of a number for which nothing less is said
MOST = {  # beyond what machines have; what is less may still be too much for one of them
    **dict.fromkeys(("env.n_envs", "core.d_model", "core.n_heads", "run.eval_envs"), 100_000),
    **dict.fromkeys(("env.frame_stack", "core.n_layers", "run.threads"), 1_000),
    **dict.fromkeys(("core.window", "core.d_feedforward", "ppo.seq_len", "ppo.n_epochs", "ppo.passes"), 1_000_000),
    **dict.fromkeys(("ppo.n_steps", "ppo.batch_size", "run.eval_episodes"), 100_000_000),
    **dict.fromkeys(("ppo.learning_rate", "ppo.learning_rate_end", "ppo.clip_range", "ppo.target_kl"), 1_000),
    **dict.fromkeys(("ppo.ent_coef", "ppo.ent_coef_end", "ppo.vf_coef", "ppo.max_grad_norm", "env.novelty"), 10**6),
    "run.seed": 2**31 - 1,  # with room for the seeds of evaluations and further environments below 2^32
}
WINDOWS = os.name == "nt"
PATHS = ("run.folder", "run.start_from")
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[ .]$')  # in a name, on Windows


def check(settings: Settings) -> None:
    """Raises SettingsError, naming the setting, what was given and what is allowed."""
    _check_types(settings)
    env, core, ppo, run = settings.env, settings.core, settings.ppo, settings.run
    for allowed, holds, names in RULES:
        for name in names:
            group, _, key = name.partition(".")
            value = getattr(getattr(settings, group), key)
            if value is not None and not holds(value):
                raise SettingsError(f"{name} must be {allowed}, got {value}")
    _check_most(settings)
    _check_name(settings.run.name)
    for name, value in {"ppo.n_steps": ppo.n_steps, "ppo.batch_size": ppo.batch_size}.items():
        if value < 1 or value % ppo.seq_len:
            raise SettingsError(f"{name} must be a multiple of ppo.seq_len = {ppo.seq_len}, got {value}")
    # advantages are normalised in every minibatch, which takes two of them
    for name, value in {"ppo.batch_size": ppo.batch_size, "ppo.n_steps x env.n_envs": ppo.n_steps * env.n_envs}.items():
        if value < 2:
            raise SettingsError(f"{name} must be at least 2, got {value}")
    for wrapper in env.wrappers:
        is_mapping = isinstance(wrapper, dict) and len(wrapper) == 1 and isinstance(next(iter(wrapper.values())), dict)
        path = next(iter(wrapper)) if is_mapping else wrapper
        if not isinstance(path, str) or "." not in path:
            allowed = "import paths such as minigrid.wrappers.FullyObsWrapper, or {path: {keyword arguments}}"
            raise SettingsError(f"env.wrappers must hold {allowed}, got {wrapper}")
    if env.wrappers and env.engine == "envpool":
        raise SettingsError(f"env.wrappers must be [] where env.engine is envpool, got {env.wrappers}")
    if any(width < 1 for width in ppo.net_arch):
        raise SettingsError(f"ppo.net_arch must hold widths of at least 1, got {ppo.net_arch}")
    if core.form == "compiled" and (lacks := cannot_compile()):
        raise SettingsError(f"core.form must be auto, fast or plain without {lacks}, got compiled")
    if core.form == "compiled" and run.device != "cpu" and (run.device != "auto" or torch.cuda.is_available()):
        raise SettingsError(f"core.form must be auto, fast or plain where run.device is {run.device}, got compiled")
    if ppo.sde_sample_freq < 1 and ppo.sde_sample_freq != -1:
        raise SettingsError(f"ppo.sde_sample_freq must be at least 1, or -1, got {ppo.sde_sample_freq}")
    if abs(ppo.log_std_init) > 20:
        raise SettingsError(f"ppo.log_std_init must be between -20 and 20, got {ppo.log_std_init}")
    has_heads = core.name in CORES and "n_heads" in core_kwargs(core.name, asdict(core))
    if has_heads and core.d_model % core.n_heads:
        raise SettingsError(f"core.n_heads must divide core.d_model = {core.d_model}, got {core.n_heads}")


def _check_types(settings: Settings) -> None:
    """Settings may also be made in Python, where types are not looked at."""
    for group, kind in GROUPS.items():
        for key, hint in get_type_hints(kind).items():
            convert(f"{group}.{key}", getattr(getattr(settings, group), key), hint)


def _check_most(settings: Settings) -> None:
    for group in GROUPS:
        for key, value in vars(getattr(settings, group)).items():
            name = f"{group}.{key}"
            most = MOST.get(name, MOST_OF_ALL)
            if isinstance(value, (int, float)) and value > most:
                raise SettingsError(f"{name} must be at most {most:,}, got {value}")
    if len(settings.ppo.net_arch) > MOST["core.n_layers"] or any(
        width > MOST["core.d_model"] for width in settings.ppo.net_arch
    ):
        raise SettingsError(
            f"ppo.net_arch must hold widths of at most {MOST['core.d_model']:,}, got {shown(settings.ppo.net_arch)}"
        )


def _check_name(name: str | None) -> None:
    if name is None:
        return
    path = Path(name)
    if not name.strip() or path.is_absolute() or ".." in path.parts or path == Path():
        raise SettingsError(f"run.name must be a folder inside run.folder, got {name or 'nothing'}")
    if WINDOWS and FORBIDDEN.search(name):
        raise SettingsError(f"run.name must be without characters that Windows forbids in a name, got {name}")


def check_device(name: str, device: str) -> None:
    """Raises SettingsError where PyTorch has no such device; Stable-Baselines3 would take the CPU without a word."""
    if device == "auto":
        return
    if not re.fullmatch(r"cpu|(cuda|mps|xpu|hpu)(:\d{1,3})?", device):
        raise SettingsError(f"{name} must be auto, cpu, cuda, cuda:1, ..., got {shown(device)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or one that this machine lacks
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{name} must be auto, cpu, cuda, cuda:1, ..., got {device}: {reason}") from None
