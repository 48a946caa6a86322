"""The settings of one experiment, with defaults and units."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiment import files
from experiment.typed import SettingsError as SettingsError
from fbrl.cores.forms import Form


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
        action_masks: Ask the environment's action_masks() at every step, in training and in evaluations, and give no
            probability to what it does not allow. Needs pip install fbrl[masks].
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
    action_masks: bool = False


CoreName = Literal[
    "feedback",
    "feedback_plain",
    "gru",
    "lstm",
    "mingru",
    "linear_attention",
    "transformer_xl",
    "gtrxl",
    "memoryless",
    "none",
]


@dataclass
class CoreSettings:
    """The memory.

    Args:
        name: feedback is the Feedback Transformer. gru, lstm, mingru, linear_attention, transformer_xl and gtrxl (the
            same with gates) are its rivals. memoryless has layers but no memory; none has neither and is
            Stable-Baselines3's own PPO. feedback_plain is feedback with form plain, as older files have it.
        d_model: D, width of every layer and of a memory vector; the encoder's width too.
        n_layers: L, number of layers; of all cores but none.
        n_heads: H, attention heads; divides d_model. Of those with attention.
        window: M, memory slots: how many steps back a layer can look directly. Of feedback, feedback_plain,
            transformer_xl and gtrxl.
        d_feedforward: Width inside a feed-forward block; null means 2 d_model. Of all but gru and lstm.
        form: What computes feedback's scan; all forms learn the same. compiled is machine code for a CPU, the fastest
            there, and needs pip install fbrl[compiled]; triton is kernels for an NVIDIA GPU, the fastest there; fast is
            PyTorch's, and plain the definition, slower, for comparison. auto takes compiled or triton where they can be
            had, and fast elsewhere.
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
        cuda_graphs: On a GPU, where the fast form computes the scan, replay its kernels as CUDA graphs, captured once
            for each shape of a minibatch.
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
