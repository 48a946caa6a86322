"""Playing whole episodes with a saved agent: as many as asked for, or one from every start state; what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from envs.start_states import FixedStart, StartState, StartStatesError, start_states
from experiment.environments import all_kwargs, closed_after, in_python, make_env, place_of
from experiment.runs import versions
from experiment.settings import EnvSettings, RunSettings, SettingsError
from fbrl.evaluation import Episodes, Estimate, Summary, play, summarise
from fbrl.vec_env import FiniteVecEnv, StepLimit, TaskError, stack_frames


@dataclass(frozen=True)
class How:
    """How episodes are played.

    Attributes:
        episodes: how many.
        exhaustive: instead, every start state of the task once, taking the most probable actions.
        deterministic: take the most probable actions, do not sample.
        zero_memory: empty the memory before every step.
        seed: of the environments and of the sampled actions; apart from 0, 1, 2, ..., which agents are trained with.
        max_steps: steps after which an episode is cut, which then counts as not solved.
        n_envs: environments that play together, at most; each plays as many of the episodes.
    """

    episodes: int = 200
    exhaustive: bool = False
    deterministic: bool = False
    zero_memory: bool = False
    seed: int = 1000
    max_steps: int = RunSettings.eval_max_steps
    n_envs: int = RunSettings.eval_envs

    @property
    def most_probable(self) -> bool:
        """Whether the most probable actions are taken."""
        return self.deterministic or self.exhaustive


def check_pictures(env: EnvSettings) -> None:
    """Raises SettingsError where the task draws no pictures for a video."""
    try:
        with closed_after(make_env(env)) as made:
            modes = made.metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise SettingsError(f"its render modes are {modes}, without rgb_array")
        with closed_after(make_env(env, render_mode="rgb_array")) as made:
            made.reset()
            if made.render_mode != "rgb_array" or made.render() is None:
                raise SettingsError(f"made for rgb_array, its render mode is {made.render_mode}")
    except Exception as error:  # whatever a task says where it cannot draw
        raise SettingsError(f"--video: {env.id} draws no pictures: {error}{place_of(error)}") from error


def evaluate(
    agent: PolicyPredictor, env: EnvSettings, how: How, check: Callable[[VecEnv], None] = lambda made: None
) -> Summary:
    """Plays whole episodes, and says how they went.

    Args:
        agent: who plays.
        env: the task.
        how: how many episodes, and how.
        check: called with the environments before the first episode.

    Raises:
        SettingsError: where the task has too many start states; and what ``check`` raises.
    """
    if how.exhaustive:
        return exhaustive(agent, env, how.zero_memory, how.max_steps, check)
    n_envs = min(how.n_envs, how.episodes)
    made = stack_frames(in_python(env, how.seed, n_envs, how.max_steps), env.frame_stack)
    with closed_after(made):
        check(made)
        set_random_seed(how.seed)
        played = play(agent, made, how.episodes, deterministic=how.deterministic, zero_memory=how.zero_memory)
    return summarise(played)


def exhaustive(
    agent: PolicyPredictor,
    env: EnvSettings,
    zero_memory: bool = False,
    max_steps: int = How.max_steps,
    check: Callable[[VecEnv], None] = lambda made: None,
) -> Summary:
    """Plays every start state once with the most probable actions; raises SettingsError where there are too many.

    Of start states, as many at a time as the settings have environments.
    """
    played = []
    try:
        states = start_states(env.id, **all_kwargs(env))
        for first in range(0, len(states), env.n_envs):
            some: list[Callable[[], gym.Env[Any, Any]]] = [
                partial(_start_at, env, state, max_steps) for state in states[first : first + env.n_envs]
            ]
            with closed_after(stack_frames(FiniteVecEnv(some), env.frame_stack)) as made:
                check(made)
                played.append(play(agent, made, deterministic=True, zero_memory=zero_memory))
    except StartStatesError as error:
        raise SettingsError(f"--exhaustive: {error}") from None
    except TaskError as error:
        if not isinstance(error.__cause__, StartStatesError):
            raise
        raise SettingsError(f"--exhaustive: {error.__cause__}") from None  # raised in a step
    episodes = Episodes(*(np.concatenate(parts) for parts in zip(*played, strict=True)))
    return summarise(episodes, [state.probability for state in states])


def _start_at(env: EnvSettings, state: StartState, max_steps: int) -> gym.Env[Any, Any]:
    return StepLimit(FixedStart(make_env(env), state.draws), max_steps)


def as_table(summary: Summary, title: str, how: How) -> str:
    """The result for people."""
    if how.exhaustive:
        words = f"all {summary.episodes} start states, weighted by their probability; most probable actions; exact"
    else:
        actions = "most probable actions" if how.deterministic else "sampled actions"
        words = f"{summary.episodes} episode{'s' * (summary.episodes > 1)}, {actions}, seed {how.seed}"
    if how.zero_memory:
        words += "; memory emptied before every step"
    if summary.cut:
        words += f"; {summary.cut} cut after {how.max_steps:,} steps, which counts as not solved"
    rows = [title, words, "", f"{'':8}{'mean':>10}   95 % interval"]
    for name, estimate, unit in (
        ("success", summary.success, "%"),
        ("return", summary.returns, ""),
        ("length", summary.length, " steps"),
    ):
        rows.append(f"{name:8}{_row(estimate, unit, how.exhaustive)}")
    return "\n".join(rows)


def _row(estimate: Estimate | None, unit: str, exact: bool) -> str:
    if estimate is None:
        return f"{'-':>10}   the task does not report it"
    digits = {"%": ".1%", "": ".3f", " steps": ".1f"}[unit]
    value, low, high = (format(number, digits) for number in estimate)
    interval = "exact" if exact else "none from one episode" if math.isnan(estimate.low) else f"{low} to {high}"
    return f"{value:>10}   {interval}"


def as_json(summary: Summary, checkpoint: Path, agent: PPO, env: EnvSettings, how: How) -> dict[str, Any]:
    """The result for programs: shares 0 to 1, lengths in steps, ``null`` for what is not known."""
    result: dict[str, Any] = {
        "agent": str(checkpoint),
        "trained_steps": agent.num_timesteps,
        "task": env.id,
        "env_kwargs": env.kwargs,
        "episodes": summary.episodes,
        "seed": how.seed,
        "deterministic": how.most_probable,
        "exhaustive": how.exhaustive,
        "control": "zero-memory" if how.zero_memory else None,
        "cut": summary.cut,
    }
    for name, key, estimate in (
        ("success", "interval", summary.success),
        ("return", "return_interval", summary.returns),
        ("length", "length_interval", summary.length),
    ):
        result[name] = None if estimate is None else estimate.value
        known = estimate is not None and not math.isnan(estimate.low)
        result[key] = [estimate.low, estimate.high] if estimate is not None and known else None
    return result | {"versions": versions()}
