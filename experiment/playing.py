"""Playing whole episodes with a saved agent: as many as asked for, or one from every start state; what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

from envs.start_states import FixedStart, StartState, StartStatesError, start_states
from experiment.environments import all_kwargs, make_batch, make_env
from experiment.runs import versions
from experiment.settings import EnvSettings, SettingsError
from fbrl.evaluation import Estimate, Summary, play, summarise
from fbrl.vec_env import FiniteVecEnv, stack_frames


@dataclass(frozen=True)
class How:
    """How episodes are played.

    Attributes:
        episodes: how many.
        exhaustive: instead, every start state of the task once, taking the most probable actions.
        deterministic: take the most probable actions, do not sample.
        zero_memory: empty the memory before every step.
        seed: of the environments and of the sampled actions; apart from 0, 1, 2, ..., which agents are trained with.
    """

    episodes: int = 200
    exhaustive: bool = False
    deterministic: bool = False
    zero_memory: bool = False
    seed: int = 1000

    @property
    def most_probable(self) -> bool:
        """Whether the most probable actions are taken."""
        return self.deterministic or self.exhaustive


def check_pictures(env: EnvSettings) -> None:
    """Raises SettingsError where the task draws no pictures for a video."""
    try:
        modes = make_env(env).metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise SettingsError(f"its render modes are {modes}, without rgb_array")
        made = make_env(env, render_mode="rgb_array")
        made.reset()
        if made.render_mode != "rgb_array" or made.render() is None:
            raise SettingsError(f"made for rgb_array, its render mode is {made.render_mode}")
        made.close()
    except Exception as error:  # whatever a task says where it cannot draw
        raise SettingsError(f"--video: {env.id} draws no pictures: {error}") from error


def evaluate(agent: PPO, env: EnvSettings, how: How) -> Summary:
    """Plays whole episodes, and says how they went; raises SettingsError where the task has too many start states."""
    if how.exhaustive:
        return exhaustive(agent, env, how.zero_memory)
    n_envs = min(env.n_envs, how.episodes)
    seeds = range(how.seed, how.seed + n_envs)
    batch = make_batch(env, how.seed, n_envs)
    unstacked = batch or FiniteVecEnv([partial(make_env, env, seed=seed) for seed in seeds])
    vec_env = stack_frames(unstacked, env.frame_stack)
    set_random_seed(how.seed)
    played = play(agent, vec_env, how.episodes, deterministic=how.deterministic, zero_memory=how.zero_memory)
    return summarise(played)


def exhaustive(agent: PPO, env: EnvSettings, zero_memory: bool = False) -> Summary:
    """Plays every start state once with the most probable actions; raises SettingsError where there are too many."""
    try:
        states = start_states(env.id, **all_kwargs(env))
        vec_env = stack_frames(FiniteVecEnv([partial(_start_at, env, state) for state in states]), env.frame_stack)
        episodes = play(agent, vec_env, deterministic=True, zero_memory=zero_memory)
    except StartStatesError as error:
        raise SettingsError(f"--exhaustive: {error}") from None
    return summarise(episodes, [state.probability for state in states])


def _start_at(env: EnvSettings, state: StartState) -> gym.Env[Any, Any]:
    return FixedStart(make_env(env), state.draws)


def as_table(summary: Summary, title: str, how: How) -> str:
    """The result for people."""
    if how.exhaustive:
        words = f"all {summary.episodes} start states, weighted by their probability; most probable actions; exact"
    else:
        actions = "most probable actions" if how.deterministic else "sampled actions"
        words = f"{summary.episodes} episode{'s' * (summary.episodes > 1)}, {actions}, seed {how.seed}"
    if how.zero_memory:
        words += "; memory emptied before every step"
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
