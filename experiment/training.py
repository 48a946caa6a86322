"""Training one agent: from its start or its last checkpoint to its end, and how well it then does."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecEnv

from experiment import files
from experiment.agents import check_agent, make_model
from experiment.callbacks import Checkpoint, EntropySchedule, Evaluate, MemoryFigures, ProgressBar, RolloutFigures
from experiment.checkpoints import load_checkpoint, save_checkpoint
from experiment.distributed import (
    ProcessLost,
    Together,
    in_any,
    in_parallel,
    is_lost,
    launcher,
    of_first,
    rank,
    say,
    share,
)
from experiment.environments import evaluation_envs, make_envs
from experiment.runs import create_run, never_began, note_resumed, run_folder
from experiment.settings import Settings, check_device
from experiment.timing import TimeShares
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.evaluation import load_agent, play, summarise

FINAL_EPISODES = 200


class Interrupted(Exception):
    """The training was asked to stop, and saved first; holds the number of steps."""


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
    if isinstance(core := getattr(model.policy, "core", None), FastFeedbackTransformer):
        core.cuda_graphs = run.cuda_graphs
    model.set_logger(configure(str(folder), ["tensorboard"]) if first else Logger(None, []))
    eval_env = evaluation_envs(settings.env, run.seed + 1_000_000, min(run.eval_episodes, 64) if first else 1)
    evaluate = Evaluate(eval_env, folder, run.eval_every, run.eval_episodes, run.seed + 1_000_000, run.stop_at_success)
    checkpoint, bar = Checkpoint(folder, settings), ProgressBar(run.progress_bar and first)
    callbacks: list[BaseCallback] = [Together(lambda: evaluate.reached), checkpoint, bar]
    if first:
        callbacks = [evaluate, *callbacks, MemoryFigures(), RolloutFigures()]
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
        files.write(folder / "finished", b"")


def train(settings: Settings, resume: Path | None = None) -> Path:
    """One run from its start, or from its last checkpoint, to its end; returns its folder."""
    mine = share(settings)
    check_device("run.device", mine.run.device)  # here only: where an agent is evaluated is another matter
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    make = partial(make_envs, mine.env, mine.run.seed, mine.env.n_envs)
    folder = of_first(partial(run_folder, settings)) if resume is None else resume
    begins = resume is None or of_first(partial(never_began, folder))
    model = make_model(mine, make()) if begins else None  # before the folder: what is refused here leaves nothing
    with files.held(folder) if rank() == 0 else contextlib.nullcontext():
        if model is None:
            model = _go_on(settings, folder, make)
        else:
            _begin(model, settings, folder, resume)
        _learn_or_say(model, settings, folder)
    return folder


def _begin(model: PPO, settings: Settings, folder: Path, resume: Path | None) -> None:
    """Makes the run's folder, with a checkpoint in it before the first step."""
    of_first(partial(create_run, settings, resume))
    save_checkpoint(model, folder, settings)
    say(f"{folder}: {settings.core.name} core on {settings.env.id}, {settings.ppo.timesteps:,} steps")


def _go_on(settings: Settings, folder: Path, make: Callable[[], VecEnv]) -> PPO:
    """The model of the run's checkpoint."""
    model = load_checkpoint(folder, settings, make)
    check_agent(folder / "last.zip", model, settings)
    of_first(partial(note_resumed, folder, model.num_timesteps))
    say(f"{folder}: going on from {model.num_timesteps:,} of {settings.ppo.timesteps:,} steps")
    return model


def _learn_or_say(model: PPO, settings: Settings, folder: Path) -> None:
    """Learns; where that ends early, says what was saved and how to go on."""
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


def control_of(settings: Settings) -> Settings | None:
    """The memoryless control's run, or None where none is to follow."""
    if not settings.run.control or settings.core.name == "none":
        return None
    name = settings.run.name and f"{settings.run.name}_control"
    core, run = dataclasses.replace(settings.core, name="none"), dataclasses.replace(settings.run, name=name)
    return dataclasses.replace(settings, core=core, run=run)
