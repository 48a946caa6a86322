"""Checkpoints: one file that is an agent, and holds beside it what going on exactly where it was takes.

``last.zip`` is what ``model.save`` writes, with one member more, ``resume.pkl``. Until version 0.1.0 that was a file
of its own, whose agent may have been another one's if the process died between the two.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_wrapper

from experiment import files
from experiment.distributed import gather, of_first, rank, say, share, size
from experiment.episodes import Packed, pack, unpack
from experiment.events import logger_to, pending
from experiment.masking import algorithm
from experiment.randomness import random_states, set_random_states
from experiment.settings import Settings, SettingsError
from fbrl.finite import NotFiniteError
from fbrl.normalizing import MEMBER, read_statistics, restore, statistics
from fbrl.novelty import EpisodicNovelty

NOT_SAVED = ["_last_obs", "_last_episode_starts", "tensorboard_log"]  # what an agent on disk does without
CARRIED = ("_last_obs", "_last_episode_starts")  # where the environments stand
RESUME = "resume.pkl"


def agent_bytes(model: PPO, **more: bytes) -> bytes:
    """The agent as a ``.zip`` file, with ``more`` members: name -> content; loading an agent passes them over."""
    buffer = io.BytesIO()
    model.save(buffer, exclude=NOT_SAVED)
    normalized = model.get_vec_normalize_env()
    if normalized is not None:
        more[MEMBER] = statistics(normalized)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in more.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def save_checkpoint(model: PPO, folder: Path, settings: Settings) -> None:
    """Replaces the run's checkpoint; at every moment the folder holds a whole one.

    To be called between two updates, and in all processes: a rollout that is under way is not kept. The first process
    writes what all of them hold.

    Raises:
        NotFiniteError: where a weight is not finite; the checkpoint before stays.
        FileError: where it cannot be written; the checkpoint before stays.
    """
    _check_weights(model)
    states = gather(_state(model, settings, pack(model.env)))
    if rank() == 0:
        _write(model, folder, states)


def save_alone(model: PPO, folder: Path, settings: Settings, why: str) -> None:
    """As ``save_checkpoint``, by this process alone and without the episodes under way; ``why`` they do not go on."""
    _check_weights(model)
    _write(model, folder, [_state(model, settings, Packed(why=why))])


def _check_weights(model: PPO) -> None:
    if not all(weight.isfinite().all() for weight in model.policy.parameters()):
        raise NotFiniteError(f"the weights are not finite after {model.num_timesteps} steps; nothing was saved")


def _state(model: PPO, settings: Settings, env: Packed) -> dict[str, Any]:
    """What a process holds beside the agent."""
    memory = getattr(model, "_last_state", None)
    return {
        "settings": asdict(settings),
        "num_timesteps": model.num_timesteps,
        "env": env,
        **{name: getattr(model, name) for name in CARRIED},
        "memory": None if memory is None else tuple(part.cpu().clone() for part in memory),
        "logged": pending(getattr(model, "_logger", None)),
        **random_states(),
    }


def _write(model: PPO, folder: Path, states: list[dict[str, Any]]) -> None:
    resume = cloudpickle.dumps(states[0] | {"others": states[1:]})
    files.write(folder / "last.zip", agent_bytes(model, **{RESUME: resume}))
    with contextlib.suppress(OSError):
        (folder / RESUME).unlink()  # of an earlier version, and of an earlier step


def _check_unchanged(folder: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises SettingsError where config.yaml is not what made the checkpoint; ``run`` and the length may differ."""
    defaults = asdict(Settings())
    for group in ("env", "core", "ppo"):
        for key, value in given[group].items():
            made_with = saved[group].get(key, defaults[group][key])  # an older checkpoint lacks newer settings
            if made_with != value and (group, key) != ("ppo", "timesteps"):
                where = f"{group}.{key} in {folder / 'config.yaml'}"
                raise SettingsError(f"{where} must be {made_with}, which the checkpoint was made with, got {value}")


def _read_checkpoint(folder: Path, settings: Settings) -> tuple[bytes, list[dict[str, Any]]]:
    """The saved agent, and what each of the processes held beside it; raises as ``load_checkpoint``."""
    file = folder / "last.zip"
    if not file.is_file():
        raise SettingsError(f"{folder} holds no checkpoint to resume: last.zip is missing")
    with _readable(folder):
        agent = file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(agent)) as archive:
            if RESUME in archive.namelist():
                state = pickle.loads(archive.read(RESUME))
            elif (folder / RESUME).is_file():
                state = pickle.loads((folder / RESUME).read_bytes())
            else:
                raise SettingsError(f"{folder} holds no checkpoint to resume: {file} is an agent without {RESUME}")
    _check_unchanged(folder, state["settings"], asdict(settings))
    return agent, [state, *state.get("others", [])]  # a checkpoint of an earlier version has no others


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except SettingsError:
        raise
    except Exception as error:  # unpickling raises whatever a broken file makes it raise
        raise SettingsError(f"{folder}: the checkpoint cannot be read ({type(error).__name__}: {error})") from error


def load_checkpoint(folder: Path, settings: Settings, make: Callable[[], VecEnv]) -> PPO:
    """The model of a run's last checkpoint, with its optimiser, counters, schedules, environments and random states.

    Learning goes on as if it had never stopped, bit for bit, where the environments are whole in the checkpoint and
    the processes are as many as before. Otherwise it goes on with new episodes in environments that ``make`` makes,
    and a line says why.

    Raises:
        SettingsError: where there is no checkpoint, or one that other settings made.
    """
    agent, states = of_first(partial(_read_checkpoint, folder, settings))
    as_before, mine = len(states) == size(), share(settings)
    state = states[rank()] if as_before else states[0]
    env, why = _unpack(state) if as_before else (None, None)
    fresh = make() if env is None else None
    with _readable(folder):
        model = algorithm(settings).load(
            io.BytesIO(agent), env=env or fresh, device=mine.run.device, custom_objects={"seed": mine.run.seed}
        )
    model.batch_size = mine.ppo.batch_size  # the file holds the first process's share, as it does of the seed
    if env is not None and state["num_timesteps"] != model.num_timesteps:
        env, why = None, "the process that saved it died between two files"  # those of an earlier version
    if env is not None:
        for name in CARRIED:
            setattr(model, name, state[name])
        if state["memory"] is not None:
            model._last_state = tuple(part.to(model.device) for part in state["memory"])  # type: ignore[attr-defined]
    else:
        others = f"saved by {len(states)} processes, not {size()}; goes on with new episodes and random numbers"
        say(f"{folder}: {f'goes on with new episodes: {why}' if as_before else others}")
        assert model.env is not None
        model.env.seed(mine.run.seed + model.num_timesteps)  # new ones, and not those of the run's start again
        if (normalized := model.get_vec_normalize_env()) is not None:
            restore(normalized, read_statistics(io.BytesIO(agent)) or statistics(normalized))
        if (novelty := unwrap_vec_wrapper(model.env, EpisodicNovelty)) is not None:
            novelty.steps_done = model.num_timesteps // size()
    model.set_logger(logger_to(None, state.get("logged", {})))
    if as_before:
        set_random_states(state)
    return model


def _unpack(state: dict[str, Any]) -> tuple[VecEnv | None, str | None]:
    env = state["env"]
    if env is None or isinstance(env, bytes):  # of an earlier version
        env = Packed(env, None if env is not None else "they cannot be pickled")
    return unpack(env)
