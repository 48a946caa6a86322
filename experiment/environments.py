"""The environments of an experiment: one, several to train in, several to evaluate in."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

import envs
from envs.batch import TaskEnv
from envs.batch_vec_env import BatchVecEnv
from envs.pool import EnvPoolVecEnv
from envs.seeding import SeededFirstReset
from experiment.distributed import say, size
from experiment.settings import EnvSettings, Settings, SettingsError
from fbrl.normalizing import normalize
from fbrl.novelty import EpisodicNovelty
from fbrl.spaces import check_spaces
from fbrl.vec_env import FiniteVecEnv, LastEpisodes, StepLimit, TaskError, stack_frames

ROOT = Path(__file__).parents[1]
STDLIB = Path(contextlib.__file__).parent
# what tasks answer to arguments that they do not know or like, or where something that they need is missing
ARGUMENT_ERRORS = (TypeError, ValueError, AssertionError, LookupError, ImportError, OSError, gym.error.Error)
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
    """One environment.

    Raises:
        SettingsError: where the task cannot be made.
        TaskError: where it fails in a way that arguments hardly explain; with the task's own error.
    """
    task_kwargs = all_kwargs(env)
    around = f" and env.wrappers {env.wrappers}" if env.wrappers else ""
    task = f"env.id {env.id} with env.kwargs {env.kwargs}{around}"
    try:
        return envs.make(env.id, **kwargs, **task_kwargs)
    except ARGUMENT_ERRORS as error:  # whatever a task says to keyword arguments that it does not know or like
        raise SettingsError(f"{task} cannot be made: {error}{place_of(error)}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{task} cannot be made: {type(error).__name__}: {error}") from error


def place_of(error: BaseException | None) -> str:
    """Where an error left a user's own code, as text; nothing where it was not raised from there."""
    while error is not None:
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            if _is_of_user(file := Path(frame.f_code.co_filename)):
                return f" ({file}, line {line})"
        error = error.__context__  # Gymnasium raises a TypeError anew
    return ""


def _is_of_user(file: Path) -> bool:
    ours = any(ROOT / name in file.parents for name in ("envs", "experiment", "fbrl"))
    return not ours and "site-packages" not in file.parts and STDLIB not in file.parents and file.is_file()


def make_batch(env: EnvSettings, seed: int, n_envs: int, limit: int | None = None) -> BatchVecEnv | None:
    """``n_envs`` environments that are stepped at once, or None where the task is not written so.

    Raises:
        SettingsError: where the task cannot be made.
    """
    with closed_after(make_env(env, seed=seed)) as first:
        return _batch(first, seed, n_envs, limit)


def _batch(first: gym.Env[Any, Any], seed: int, n_envs: int, limit: int | None) -> BatchVecEnv | None:
    # anything around the task, such as the previous action or a time limit, is known to single environments only
    task = first.env if isinstance(first, SeededFirstReset) else first
    return BatchVecEnv(task.batch(n_envs), seed, limit) if isinstance(task, TaskEnv) else None


def make_envs(env: EnvSettings, seed: int, n_envs: int, limit: int | None = None) -> VecEnv:
    """``n_envs`` environments of the task, seeded with seed, seed + 1, ..., that log whole episodes; with the bonus.

    No more than these are made.

    Args:
        env: the task.
        seed: of the first.
        n_envs: how many.
        limit: steps after which an episode is cut; None for none but the task's own.

    Raises:
        SettingsError: where the task cannot be made, its spaces are not supported, or its observations cannot be
            stacked, or counted for the bonus, as the settings ask.
    """
    made = _pool(env, seed, n_envs) if env.engine == "envpool" else in_python(env, seed, n_envs, limit, LastEpisodes)
    try:
        if env.novelty:
            own = {"previous_action", "previous_reward"}  # what the agent did is no news
            made = EpisodicNovelty(made, env.novelty, env.novelty_steps, ignored=own)
        return stack_frames(made, env.frame_stack)
    except ValueError as error:
        close(made)
        raise SettingsError(str(error)) from error


def training_envs(settings: Settings) -> VecEnv:
    """The environments that a run is trained in; with observations and rewards normalized as the settings say.

    Raises:
        SettingsError: as ``make_envs``; and where observations are not in real numbers, or there are other processes.
    """
    env = settings.env
    made = make_envs(env, settings.run.seed, env.n_envs)
    try:
        if size() > 1 and (env.normalize_observations or env.normalize_rewards):
            raise ValueError("env.normalize_observations and env.normalize_rewards take a single process")
        return normalize(made, env.normalize_observations, env.normalize_rewards, settings.ppo.gamma)
    except ValueError as error:
        close(made)
        raise SettingsError(str(error)) from error


def in_python(
    env: EnvSettings, seed: int, n_envs: int, limit: int | None = None, wrap: Callable[[Any], Any] = lambda one: one
) -> VecEnv:
    """The environments alone, each in ``wrap``; raises as ``make_envs``."""
    made = [make_env(env, seed=seed)]
    try:
        check_spaces(made[0])
        batch = _batch(made[0], seed, n_envs, limit)
        if batch is not None:
            close(made[0])
            return batch
        # one process: on a few cores, environments in processes of their own are slower than the time they take
        made += [make_env(env, seed=seed + index) for index in range(1, n_envs)]
        if limit is not None:
            made = [StepLimit(one, limit) for one in made]
        return FiniteVecEnv([partial(wrap, one) for one in made])
    except BaseException as error:
        for one in made:
            close(one)
        if type(error) is ValueError:  # of check_spaces
            raise SettingsError(str(error)) from error
        raise


def _pool(env: EnvSettings, seed: int, n_envs: int) -> VecEnv:
    task_kwargs = all_kwargs(env)
    try:
        return EnvPoolVecEnv(env.id, n_envs, seed, **task_kwargs)
    except Exception as error:  # as in make_env
        task = f"env.id {env.id} with env.kwargs {env.kwargs}"
        raise SettingsError(f"{task} cannot be made by env.engine envpool: {error}") from error


class Closable(Protocol):
    """An environment, or several."""

    def close(self) -> None:
        """Closes it."""


E = TypeVar("E", bound=Closable)


@contextlib.contextmanager
def closed_after(env: E) -> Iterator[E]:
    """Closes the environments in the end, as ``close`` does."""
    try:
        yield env
    finally:
        close(env)


def close(env: Closable) -> None:
    """Closes environments; what that raises is said, and does not hide an error before it, nor lose a result."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"warning: closing the environments: {message}", file=sys.stderr)


def evaluation_envs(env: EnvSettings, seed: int, n_envs: int, limit: int | None = None) -> VecEnv:
    """As ``make_envs``, without the bonus, and always by minigrid: of the same levels whatever the training takes."""
    return make_envs(dataclasses.replace(env, engine="minigrid", novelty=0.0), seed, n_envs, limit)
