"""Training one agent: from its start or its last checkpoint to its end, and how well it then does."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from experiment import files
from experiment.agents import check_agent, make_model
from experiment.board import Board
from experiment.callbacks import Checkpoint, EntropySchedule, Finished, MemoryFigures, ProgressBar, RolloutFigures
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
    size,
)
from experiment.environments import closed_after, evaluation_envs, training_envs
from experiment.evaluating import Evaluate
from experiment.events import logger_to, pending, trim
from experiment.guests import Guests, find, invite
from experiment.insight import check_recordable
from experiment.interrupts import Interrupted, asked_to_stop
from experiment.parsing import load_settings
from experiment.randomness import apart
from experiment.rules import check_device
from experiment.runs import create_run, never_began, note_resumed, run_folder
from experiment.saved import start_from
from experiment.settings import Settings, SettingsError
from experiment.timing import TimeShares
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.evaluation import load_agent, play, summarise
from fbrl.finite import NotFiniteError
from fbrl.normalizing import frozen

FINAL_EPISODES = 200
Watch = Callable[[dict[str, Any]], bool]  # is told of each evaluation; true ends the training
EVALUATION_SEED, FINAL_SEED = 1_000_000, 2_000_000  # beyond run.seed: evaluations on the way, and the last one


def learn(model: PPO, settings: Settings, folder: Path, watch: Watch | None = None) -> None:
    """Trains up to ``ppo.timesteps``, evaluating and saving on the way.

    Whatever is raised meanwhile, the agent as of the last finished update is saved first, and a note on the error says
    how to go on.

    Raises:
        Interrupted: after an interrupt, or where ``watch`` ended it.
    """
    first, env, run = rank() == 0, settings.env, settings.run
    for core in model.policy.modules():
        if isinstance(core, FastFeedbackTransformer):
            core.form, core.cuda_graphs = settings.core.form, run.cuda_graphs
    if first:
        trim(folder, model.num_timesteps)
    guests = invite(settings, folder) if first else Guests()
    model.set_logger(logger_to(folder if first else None, pending(getattr(model, "_logger", None))))
    checkpoint, finished = Checkpoint(folder, settings, model.num_timesteps), Finished()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(guests))
            evaluate = None
            if first:
                n_envs = min(run.eval_envs, run.eval_episodes)
                eval_env = evaluation_envs(env, run.seed + EVALUATION_SEED, n_envs, run.eval_max_steps)
                stack.enter_context(closed_after(eval_env))
                if (normalized := model.get_vec_normalize_env()) is not None:
                    eval_env = frozen(eval_env, normalized)
                evaluate = _evaluate(settings, folder, eval_env, checkpoint, watch)
            _learn(model, settings, checkpoint, finished, evaluate, guests)
    except Interrupted:
        raise
    except Exception as error:
        if size() > 1:  # torchrun ends all processes as soon as it sees that one has ended; this one ends by itself
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if first:
            error.add_note(_rescued(finished, checkpoint))
        raise
    finally:
        model.logger.close()
    if first:
        files.write(folder / "finished", b"")


def _evaluate(settings: Settings, folder: Path, env: VecEnv, checkpoint: Checkpoint, watch: Watch | None) -> Evaluate:
    run = settings.run

    def told(line: dict[str, Any]) -> None:
        checkpoint.stop_asked |= watch is not None and watch(line)

    return Evaluate(
        env,
        folder,
        run.eval_every,
        run.eval_episodes,
        run.seed + EVALUATION_SEED,
        run.stop_at_success,
        run.eval_deterministic,
        lambda: checkpoint.stop_asked,
        told,
    )


def _learn(
    model: PPO,
    settings: Settings,
    checkpoint: Checkpoint,
    finished: Finished,
    evaluate: Evaluate | None,
    guests: Guests,
) -> None:
    """``learn`` with what it needs; ``evaluate`` is None in all processes but the first."""
    ppo, run, first = settings.ppo, settings.run, evaluate is not None
    bar = ProgressBar(run.progress_bar and first)
    figures = MemoryFigures()
    board = None if evaluate is None else Board(settings, evaluate, figures)
    together = Together(lambda: guests.ended or (evaluate is not None and evaluate.reached))
    callbacks: list[BaseCallback] = [together, checkpoint, bar]
    if evaluate is not None and board is not None:
        callbacks = [finished, evaluate, *callbacks, figures, RolloutFigures(), board, guests]
    if ppo.ent_coef_end is not None:
        callbacks.append(EntropySchedule(ppo.ent_coef, ppo.ent_coef_end))
    with asked_to_stop(checkpoint.ask_to_stop), contextlib.closing(bar), in_parallel(model):
        if evaluate is not None and run.stop_at_success is not None and model.num_timesteps == 0:
            evaluate.look_for_success(model)
        model.learn(ppo.timesteps - model.num_timesteps, TimeShares(callbacks), reset_num_timesteps=False)
        if not checkpoint.stopped:
            checkpoint.save()
        interrupted = in_any(checkpoint.stop_asked)
        if evaluate is not None and not interrupted:
            evaluate.evaluate()
            model.logger.dump(model.num_timesteps)
            if board is not None:
                board.draw()
        if in_any(checkpoint.stop_asked):  # during that evaluation too
            raise Interrupted(checkpoint.saved_at)


def _rescued(finished: Finished, checkpoint: Checkpoint) -> str:
    """Saves what can be saved after an error; says what that is and how to go on."""
    folder, steps, why = checkpoint.folder, checkpoint.saved_at, ""
    try:
        if finished.steps is not None and finished.steps > steps:
            steps = finished.save(folder, checkpoint.settings)
    except (OSError, NotFiniteError) as error:
        why = f" ({error})"
    return f"{folder}: saved as of {steps:,} steps{why}; go on with: {again(folder)}"


def again(folder: Path) -> str:
    """What a user types to go on with a run."""
    return f"{launcher()} train_agent.py --resume {shlex.quote(str(folder))}"


def train(settings: Settings, resume: Path | None = None, watch: Watch | None = None) -> Path:
    """One run from its start, or from its last checkpoint, to its end; returns its folder.

    ``watch`` is called with the line of every evaluation. Where it returns true, the training saves and ends there.

    Raises:
        Interrupted: with ``watch`` only, where it or an interrupt ended the training early.
        SystemExit: without ``watch``, after an interrupt, with code 130.
    """
    mine = share(settings)
    check_device("run.device", mine.run.device)  # here only: where an agent is evaluated is another matter
    for path in mine.run.callbacks:
        find(path)
    if mine.run.eval_pictures:
        check_recordable(mine.env, "run.eval_pictures: true")
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    make = partial(training_envs, mine)
    folder = of_first(partial(run_folder, settings)) if resume is None else resume
    begins = resume is None or of_first(partial(never_began, folder))
    with contextlib.ExitStack() as stack:
        model = None
        if begins:  # before the folder is made: what is refused here leaves nothing
            model = make_model(mine, stack.enter_context(closed_after(make())))
            start_from(model, settings)
        if rank() == 0:
            stack.enter_context(files.held(folder))
        if model is None:
            model = _go_on(settings, folder, make)
            assert model.env is not None
            stack.enter_context(closed_after(model.env))
        else:
            _begin(model, settings, folder, resume)
        _learn_or_say(model, settings, folder, watch)
    return folder


def _begin(model: PPO, settings: Settings, folder: Path, resume: Path | None) -> None:
    """Makes the run's folder, with a checkpoint in it before the first step."""
    of_first(partial(create_run, settings, resume))
    save_checkpoint(model, folder, settings)
    say(f"{folder}: {settings.core.name} core on {settings.env.id}, {settings.ppo.timesteps:,} steps")


def _go_on(settings: Settings, folder: Path, make: Callable[[], VecEnv]) -> PPO:
    """The model of the run's checkpoint; also where it is to be trained longer than it was before.

    Schedules are then those of the new length, from the first step on: what had fallen to its end rises to where it
    would be at this step, and falls again.
    """
    model = load_checkpoint(folder, settings, make)
    check_agent(folder / "last.zip", model, settings, model.env)
    before, now, done = of_first(lambda: load_settings(folder / "config.yaml")), settings.ppo, model.num_timesteps
    if now.timesteps <= done and now.timesteps != before.ppo.timesteps:
        raise SettingsError(f"ppo.timesteps must be more than {done:,}, which {folder} has made, got {now.timesteps:,}")
    if now.timesteps == before.ppo.timesteps and of_first((folder / "finished").exists):
        raise SettingsError(f"{folder}: this run has finished meanwhile")
    of_first(partial(_note_on_going_on, settings, folder, done))
    say(f"{folder}: going on from {done:,} of {now.timesteps:,} steps")
    if now.timesteps != before.ppo.timesteps:
        rate = model.lr_schedule(1 - done / now.timesteps)
        say(f"{folder}: schedules are those of {now.timesteps:,} steps now; the learning rate goes on at {rate:.2g}")
    return model


def _note_on_going_on(settings: Settings, folder: Path, timesteps: int) -> None:
    settings.save(folder / "config.yaml")
    (folder / "finished").unlink(missing_ok=True)
    note_resumed(folder, timesteps)


def _learn_or_say(model: PPO, settings: Settings, folder: Path, watch: Watch | None) -> None:
    """Learns; where an interrupt or the loss of a process ends that early, says how to go on."""
    try:
        learn(model, settings, folder, watch)
    except Interrupted as stop:
        if watch is not None:  # which knows why, and says it
            raise
        # the others wait until it is printed: torchrun ends all processes once one of them has ended with an error
        line = f"{folder}: saved at {stop.args[0]:,} steps; go on with: {again(folder)}"
        of_first(partial(print, line, flush=True))
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not is_lost(error):
            raise
        lost = f"{folder}: another process has ended or cannot be reached"
        raise ProcessLost(f"{lost}; go on from the last checkpoint with: {again(folder)}") from error


def final_line(settings: Settings, folder: Path) -> str:
    """How well the agent of the best evaluation does in other episodes, as a line of text."""
    run = settings.run
    agent = load_agent(folder / "best.zip", run.device)
    n_envs = min(run.eval_envs, run.eval_episodes)  # no more than there were on the way
    made = evaluation_envs(settings.env, run.seed + FINAL_SEED, n_envs, run.eval_max_steps)
    with closed_after(made) as env, apart(run.seed + FINAL_SEED):
        summary = summarise(play(agent, env, FINAL_EPISODES, deterministic=run.eval_deterministic))
    parts = [f"{settings.core.name:>14}"]
    if (success := summary.success) is not None:
        parts.append(f"success {success.value:.3f} [{success.low:.3f}, {success.high:.3f}]")
    parts.append(f"return {summary.returns.value:.3f}  length {summary.length.value:.1f}")
    if summary.cut:
        parts.append(f"{summary.cut} cut after {run.eval_max_steps:,} steps")
    return "  ".join(parts)


def final_title(settings: Settings) -> str:
    """What stands above the final lines."""
    actions = "the most probable action" if settings.run.eval_deterministic else "sampled actions"
    return f"{settings.env.id}, {FINAL_EPISODES} episodes, {actions}, 95 % intervals:"


def control_of(settings: Settings) -> Settings | None:
    """The memoryless control's run, or None where none is to follow."""
    if not settings.run.control or settings.core.name == "none":
        return None
    name = settings.run.name and f"{settings.run.name}_control"
    core = dataclasses.replace(settings.core, name="none")
    run = dataclasses.replace(settings.run, name=name, start_from=None)
    return dataclasses.replace(settings, core=core, run=run)
