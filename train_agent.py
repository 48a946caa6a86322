"""Trains one agent: settings -> environments -> model -> learn -> evaluate -> save.

python train_agent.py --config configs/tmaze.yaml --ppo.gamma 0.995
python train_agent.py --resume runs/TMaze-v0_feedback_0
torchrun --nproc-per-node 4 train_agent.py --config configs/tmaze.yaml
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from envs.pool import EnvPoolVecEnv
from evaluate_agent import all_kwargs, check_agent, make_batch, make_env
from fbrl import MemoryPPO
from fbrl.callbacks import Checkpoint, EntropySchedule, Evaluate, MemoryFigures, ProgressBar
from fbrl.cores.names import CORES, core_kwargs
from fbrl.distributed import (
    ProcessLost,
    Together,
    in_any,
    in_parallel,
    is_lost,
    launcher,
    of_first,
    process_group,
    rank,
    say,
    share,
)
from fbrl.encoders import MiniGridEncoder, is_minigrid_space
from fbrl.evaluation import load_agent, play, summarise
from fbrl.ppo import check_spaces
from fbrl.runs import create_run, load_checkpoint, note_resumed, run_folder
from fbrl.settings import (
    EnvSettings,
    OneLineParser,
    Settings,
    SettingsError,
    add_settings,
    check_device,
    fail,
    load_settings,
    to_settings,
)
from fbrl.timing import TimeShares
from fbrl.vec_env import FiniteVecEnv, stack_frames

FINAL_EPISODES = 200


class Interrupted(Exception):
    """The training was asked to stop, and saved first; holds the number of steps."""


def make_envs(env: EnvSettings, seed: int, n_envs: int) -> VecEnv:
    """``n_envs`` environments of the task, seeded with seed, seed + 1, ..., that log whole episodes.

    Raises:
        SettingsError: where the task cannot be made.
        ValueError: where its observations cannot be stacked as env.frame_stack asks.
    """
    return stack_frames(_unstacked_envs(env, seed, n_envs), env.frame_stack)


def _unstacked_envs(env: EnvSettings, seed: int, n_envs: int) -> VecEnv:
    """As ``make_envs``, whose observations are not stacked yet."""
    if env.engine == "envpool":
        task_kwargs = all_kwargs(env)
        try:
            return EnvPoolVecEnv(env.id, n_envs, seed, **task_kwargs)
        except Exception as error:  # as in make_env
            task = f"env.id {env.id} with env.kwargs {env.kwargs}"
            raise SettingsError(f"{task} cannot be made by env.engine envpool: {error}") from error

    batch = make_batch(env, seed, n_envs)
    if batch is not None:
        check_spaces(batch)
        return batch

    def make(seed: int) -> gym.Env[Any, Any]:
        made = make_env(env, seed=seed)
        check_spaces(made)
        return Monitor(made)

    # one process: on a few cores, environments in processes of their own are slower than the time they take
    return FiniteVecEnv([partial(make, seed + index) for index in range(n_envs)])


def evaluation_envs(env: EnvSettings, seed: int, n_envs: int) -> VecEnv:
    """As ``make_envs``, always by minigrid: evaluations are of the same levels whichever engine the training takes."""
    return make_envs(dataclasses.replace(env, engine="minigrid"), seed, n_envs)


def make_model(settings: Settings, env: VecEnv) -> PPO:
    """The agent: PPO with the core of ``core.name``, or Stable-Baselines3's own PPO with the same encoder."""
    ppo, core, space = settings.ppo, settings.core, env.observation_space
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    else:
        policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    policy_kwargs: dict[str, Any] = {}
    if is_minigrid_space(space):
        policy_kwargs["features_extractor_class"] = MiniGridEncoder
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": core.d_model}
    kwargs: dict[str, Any] = {
        "learning_rate": LinearSchedule(ppo.learning_rate, ppo.learning_rate_end, end_fraction=1.0),
        "n_steps": ppo.n_steps,
        "batch_size": ppo.batch_size,
        "n_epochs": ppo.n_epochs,
        "gamma": ppo.gamma,
        "gae_lambda": ppo.gae_lambda,
        "clip_range": ppo.clip_range,
        "ent_coef": ppo.ent_coef,
        "vf_coef": ppo.vf_coef,
        "max_grad_norm": ppo.max_grad_norm,
        "target_kl": ppo.target_kl,
        "seed": settings.run.seed,
        "device": settings.run.device,
    }
    if core.name == "none":
        return PPO(policy, env, policy_kwargs=policy_kwargs, **kwargs)
    sizes = dataclasses.asdict(core)
    policy_kwargs |= {"core_class": CORES[core.name][0], "core_kwargs": core_kwargs(core.name, sizes)}
    return MemoryPPO(policy, env, seq_len=ppo.seq_len, passes=ppo.passes, policy_kwargs=policy_kwargs, **kwargs)


@contextlib.contextmanager
def saving_on_interrupt(checkpoint: Checkpoint) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a checkpoint and the end; a second one ends at once."""

    def ask(number: int, frame: object) -> None:
        checkpoint.stop_asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        say("\nsaving after this update (once more to stop at once) ...", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learn(model: PPO, settings: Settings, folder: Path) -> None:
    """Trains up to ``ppo.timesteps``, evaluating and saving on the way; raises Interrupted after an interrupt."""
    ppo, run, first = settings.ppo, settings.run, rank() == 0
    model.set_logger(configure(str(folder), ["tensorboard"]) if first else Logger(None, []))
    eval_env = evaluation_envs(settings.env, run.seed + 1_000_000, min(run.eval_episodes, 64) if first else 1)
    evaluate = Evaluate(eval_env, folder, run.eval_every, run.eval_episodes, run.seed + 1_000_000, run.stop_at_success)
    checkpoint, bar = Checkpoint(folder, settings), ProgressBar(run.progress_bar and first)
    callbacks: list[BaseCallback] = [Together(lambda: evaluate.reached), checkpoint, bar]
    if first:
        callbacks = [evaluate, *callbacks, MemoryFigures()]
    if ppo.ent_coef_end is not None:
        callbacks.append(EntropySchedule(ppo.ent_coef, ppo.ent_coef_end))
    with saving_on_interrupt(checkpoint), contextlib.closing(bar), in_parallel(model):
        model.learn(ppo.timesteps - model.num_timesteps, TimeShares(callbacks), reset_num_timesteps=False)
        if not checkpoint.stopped:
            checkpoint.save()
    if in_any(checkpoint.stop_asked):
        raise Interrupted(checkpoint.saved_at)
    if first:
        evaluate.evaluate()
        model.logger.dump(model.num_timesteps)
        (folder / "finished").touch()


def train(settings: Settings, resume: Path | None = None) -> Path:
    """One run from its start, or from its last checkpoint, to its end; returns its folder."""
    mine = share(settings)
    check_device("run.device", mine.run.device)  # here only: where an agent is evaluated is another matter
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    env = make_envs(mine.env, mine.run.seed, mine.env.n_envs)
    if resume is None:
        model = make_model(mine, env)
        folder = of_first(partial(create_run, settings))
        say(f"{folder}: {settings.core.name} core on {settings.env.id}, {settings.ppo.timesteps:,} steps")
    else:
        folder = resume
        model = load_checkpoint(folder, settings, env)
        check_agent(folder / "last.zip", model, settings)
        of_first(partial(note_resumed, folder, model.num_timesteps))
        say(f"{folder}: going on from {model.num_timesteps:,} of {settings.ppo.timesteps:,} steps")
    again = f"{launcher()} train_agent.py --resume {folder}"
    try:
        learn(model, settings, folder)
    except Interrupted as stop:
        # the others wait until it is printed: torchrun ends all processes once one of them has ended with an error
        of_first(partial(print, f"{folder}: saved at {stop.args[0]:,} steps; go on with: {again}"))
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not is_lost(error):
            raise
        lost = f"{folder}: another process has ended or cannot be reached"
        raise ProcessLost(f"{lost}; go on from the last checkpoint with: {again}") from error
    return folder


def final_line(settings: Settings, folder: Path) -> str:
    """How well the agent of the best evaluation does in other episodes, as a line of text."""
    agent = load_agent(folder / "best.zip", settings.run.device)
    env = evaluation_envs(settings.env, settings.run.seed + 2_000_000, n_envs=50)
    summary = summarise(play(agent, env, FINAL_EPISODES, deterministic=True))
    parts = [f"{settings.core.name:>14}"]
    if summary.success is not None:
        success = summary.success
        parts.append(f"success {success.value:.3f} [{success.low:.3f}, {success.high:.3f}]")
    parts.append(f"return {summary.returns.value:.3f}  length {summary.length.value:.1f}")
    return "  ".join(parts)


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path | None]:
    """The settings, and the run to resume if any.

    Raises:
        SettingsError: where an argument, the file or a setting cannot be used.
    """
    parser = OneLineParser(prog="train_agent.py", description="Trains one agent and evaluates it.")
    parser.add_argument("--resume", type=str, default=None, metavar="RUN", help="Go on with the run in this folder.")
    add_settings(parser)
    given = sys.argv[1:] if arguments is None else arguments
    namespace = parser.parse_args(given)
    if namespace.resume is None:
        return to_settings(namespace), None
    if others := [word for word in given if word.removeprefix("--resume=") not in ("--resume", namespace.resume)]:
        raise SettingsError(f"--resume takes the run's own settings and no others, got {' '.join(others)}")
    folder = Path(namespace.resume)
    if not (folder / "config.yaml").is_file():
        raise SettingsError(f"--resume {folder}: holds no run; expected a folder with config.yaml and last.zip")
    if (folder / "finished").exists():
        raise SettingsError(
            f"--resume {folder}: this run has finished; python evaluate_agent.py {folder} plays its agent"
        )
    return load_settings(folder / "config.yaml"), folder


def control_of(settings: Settings) -> Settings | None:
    """The memoryless control's run, or None where none is to follow."""
    if not settings.run.control or settings.core.name == "none":
        return None
    name = settings.run.name and f"{settings.run.name}_control"
    core, run = dataclasses.replace(settings.core, name="none"), dataclasses.replace(settings.run, name=name)
    return dataclasses.replace(settings, core=core, run=run)


def main() -> None:
    """The script; of several processes that ``torchrun`` starts, each runs it."""
    try:
        with process_group():
            settings, resume = of_first(parse)
            control = control_of(settings)
            if control is not None:
                of_first(partial(run_folder, control))  # refuse now and not after the training
            lines = [of_first(partial(final_line, settings, train(settings, resume)))]
            if control is not None:
                lines.append(of_first(partial(final_line, control, train(control))))
            say(f"{settings.env.id}, {FINAL_EPISODES} episodes, the most probable action, 95 % intervals:")
            say("\n".join(lines))
    except (ValueError, FloatingPointError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
