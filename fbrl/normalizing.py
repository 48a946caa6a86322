"""Observations in units of what has been seen, by Stable-Baselines3's ``VecNormalize``, with statistics that are kept.

An agent that is trained in a ``VecNormalize`` needs its statistics wherever it plays. Here they are a member of the
agent's file, as JSON, and the agent that is loaded from it takes observations as the task shows them.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

MEMBER = "normalize.json"  # of an agent's file
MOMENTS = ("mean", "var", "count")


def normalize(env: VecEnv, observations: bool, rewards: bool, gamma: float) -> VecEnv:
    """The environments with observations, rewards or both divided by their running deviation.

    Raises:
        ValueError: where observations are symbols or pictures, which have no mean.
    """
    if not observations and not rewards:
        return env
    keys = None
    if observations:
        keys = _keys(env.observation_space)
    return VecNormalize(env, norm_obs=observations, norm_reward=rewards, gamma=gamma, norm_obs_keys=keys)


def _keys(space: spaces.Space[Any]) -> list[str] | None:
    """Which parts of a Dict are in real numbers; None where the observation is no Dict."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    real = [key for key, part in parts.items() if _is_real(part)]
    if not real:
        raise ValueError(f"env.normalize_observations needs observations in real numbers, got {space}")
    return real if isinstance(space, spaces.Dict) else None


def _is_real(part: spaces.Space[Any]) -> bool:
    return isinstance(part, spaces.Box) and part.dtype.kind == "f" and not is_image_space(part)


def frozen(env: VecEnv, of: VecNormalize) -> VecNormalize:
    """Environments whose observations are normalized by the statistics of others, which they do not change."""
    keys = getattr(of, "norm_obs_keys", None) if of.norm_obs else None
    made = VecNormalize(env, training=False, norm_obs=of.norm_obs, norm_reward=False, norm_obs_keys=keys)
    if of.norm_obs:
        made.obs_rms = of.obs_rms
    return made


def statistics(env: VecNormalize) -> bytes:
    """What is to be kept of environments, as JSON."""
    observations = {}
    if env.norm_obs:
        rms = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
        observations = {key: _moments(part) for key, part in rms.items()}
    said = {
        "observations": observations,
        "rewards": _moments(env.ret_rms),
        "clip": env.clip_obs,
        "epsilon": env.epsilon,
    }
    return json.dumps(said).encode()


def _moments(rms: RunningMeanStd) -> dict[str, Any]:
    return {name: np.asarray(getattr(rms, name)).tolist() for name in MOMENTS}


def restore(env: VecNormalize, said: bytes) -> None:
    """Gives environments the statistics that were kept."""
    kept = json.loads(said)
    rms = env.obs_rms if isinstance(getattr(env, "obs_rms", None), dict) else {"": getattr(env, "obs_rms", None)}
    for part, moments in [*((rms[key], m) for key, m in kept["observations"].items()), (env.ret_rms, kept["rewards"])]:
        for name in MOMENTS:
            setattr(part, name, np.asarray(moments[name], dtype=np.float64) if name != "count" else moments[name])


def read_statistics(file: str | Path | io.BytesIO) -> bytes | None:
    """What an agent's file says; None where its observations are not normalized."""
    with zipfile.ZipFile(file) as archive:
        return archive.read(MEMBER) if MEMBER in archive.namelist() else None


def take_raw(agent: PPO, said: bytes | None) -> PPO:
    """Lets a loaded agent take observations as its task shows them; by statistics that stay as they are."""
    kept = json.loads(said) if said is not None else {"observations": {}}
    if not kept["observations"]:
        return agent
    moments = {key: tuple(np.asarray(m[name]) for name in ("mean", "var")) for key, m in kept["observations"].items()}
    to_tensor = agent.policy.obs_to_tensor

    def scaled(key: str, value: Any) -> Any:
        mean, variance = moments[key]
        units = (np.asarray(value) - mean) / np.sqrt(variance + kept["epsilon"])
        return np.clip(units, -kept["clip"], kept["clip"]).astype(np.float32)  # as ``VecNormalize.normalize_obs``

    def obs_to_tensor(observation: Any) -> Any:
        if isinstance(observation, dict):
            return to_tensor({key: scaled(key, part) if key in moments else part for key, part in observation.items()})
        return to_tensor(scaled("", observation))

    agent.policy.obs_to_tensor = obs_to_tensor  # type: ignore[method-assign]
    return agent
