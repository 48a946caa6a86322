"""The environments of an experiment: one, several to train in, several to evaluate in."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

import envs
from envs.batch import TaskEnv
from envs.batch_vec_env import BatchVecEnv
from envs.pool import EnvPoolVecEnv
from experiment.settings import EnvSettings, SettingsError
from fbrl.novelty import EpisodicNovelty
from fbrl.spaces import check_spaces
from fbrl.vec_env import FiniteVecEnv, stack_frames

INSTEAD = {  # what envs.make takes itself, and the settings that say it
    "previous_action": "env.previous_action",
    "previous_reward": "env.previous_reward",
    "seed": "run.seed to train, --seed to evaluate",
    "render_mode": "--video of evaluate_agent.py",
    "wrappers": "env.wrappers",
}


def all_kwargs(env: EnvSettings) -> dict[str, Any]:
    """What ``envs.make`` takes besides the id; raises SettingsError where env.kwargs holds what has its own setting."""
    for key, setting in INSTEAD.items():
        if key in env.kwargs:
            raise SettingsError(f"env.kwargs must not hold {key}; use {setting}")
    own: dict[str, Any] = {"previous_action": env.previous_action, "previous_reward": env.previous_reward}
    return own | ({"wrappers": env.wrappers} if env.wrappers else {}) | env.kwargs


def make_env(env: EnvSettings, **kwargs: Any) -> gym.Env[Any, Any]:
    """One environment; raises SettingsError where the task cannot be made."""
    task_kwargs = all_kwargs(env)
    try:
        return envs.make(env.id, **kwargs, **task_kwargs)
    except Exception as error:  # whatever a task says to keyword arguments that it does not know or like
        around = f" and env.wrappers {env.wrappers}" if env.wrappers else ""
        task = f"env.id {env.id} with env.kwargs {env.kwargs}{around}"
        raise SettingsError(f"{task} cannot be made: {error}") from error


def make_batch(env: EnvSettings, seed: int, n_envs: int) -> BatchVecEnv | None:
    """``n_envs`` environments that are stepped at once, or None where the task is not written so.

    Raises:
        SettingsError: where the task cannot be made.
    """
    made = make_env(env)
    # anything around the task, such as the previous action or a time limit, is known to single environments only
    return BatchVecEnv(made.batch(n_envs), seed) if isinstance(made, TaskEnv) else None


def make_envs(env: EnvSettings, seed: int, n_envs: int) -> VecEnv:
    """``n_envs`` environments of the task, seeded with seed, seed + 1, ..., that log whole episodes; with the bonus.

    Raises:
        SettingsError: where the task cannot be made.
        ValueError: where its observations cannot be stacked as env.frame_stack asks.
    """
    made = _unstacked_envs(env, seed, n_envs)
    if env.novelty:
        own = {"previous_action", "previous_reward"}  # what the agent did is no news
        made = EpisodicNovelty(made, env.novelty, env.novelty_steps, ignored=own)
    return stack_frames(made, env.frame_stack)


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
    """As ``make_envs``, without the bonus, and always by minigrid: of the same levels whatever the training takes."""
    return make_envs(dataclasses.replace(env, engine="minigrid", novelty=0.0), seed, n_envs)
