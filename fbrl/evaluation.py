"""Plays whole episodes with a saved agent and says how well they went, with 95 % intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from fbrl.normalizing import read_statistics, take_raw
from fbrl.policy import MemoryPolicy
from fbrl.ppo import MemoryPPO

CONFIDENCE = 0.95


class AgentError(ValueError):
    """A file that holds no agent; the message is one line that names it."""


def agent_file(path: str | Path) -> Path:
    """The saved agent at ``path``, a file, or in it, a run's folder or one of ``agents/``: the best, else the last.

    Raises:
        AgentError: where there is none.
    """
    path = Path(path)
    if os.path.isfile(path):  # false too where there can be none, as of a name that is too long
        return path
    if not os.path.isdir(path):
        raise AgentError(f"{path}: no such file or folder; expected a run's folder or a saved agent (.zip)")
    for name in ("best.zip", "last.zip"):
        if (path / name).is_file():
            return path / name
    raise AgentError(f"{path}: holds neither best.zip nor last.zip")


def load_agent(path: str | Path, device: str = "auto") -> PPO:
    """The agent in a ``.zip`` file: a ``MemoryPPO``, or Stable-Baselines3's ``PPO`` where its policy has no memory.

    Loading runs code that the file holds, as unpickling does: load only files that you trust.

    Args:
        path: the file, or a folder that holds it, as in ``agent_file``.
        device: as in Stable-Baselines3.

    Raises:
        AgentError: where there is no such file, or no agent in it.
    """
    path = agent_file(path)
    try:
        data, _, _ = load_from_zip_file(path, device="cpu")
        policy = (data or {})["policy_class"]
        if "clip_range" not in (data or {}):
            raise TypeError("it is of another algorithm, not PPO")
        agent = _algorithm(policy).load(path, device=device)
        return take_raw(agent, read_statistics(path))
    except Exception as error:  # unpickling raises whatever the file makes it raise
        raise AgentError(f"{path}: holds no agent that can be loaded ({type(error).__name__}: {error})") from error


def _algorithm(policy: type[Any]) -> type[PPO]:
    """What learns with such a policy."""
    if hasattr(policy, "masked"):
        from fbrl.masks import MaskableMemoryPPO  # of the extra ``masks``

        return MaskableMemoryPPO
    return MemoryPPO if issubclass(policy, MemoryPolicy) else PPO


class ZeroMemory:
    """An agent whose memory is emptied before every step: what is left of it is what it does without memory."""

    def __init__(self, agent: PolicyPredictor) -> None:
        self.agent = agent

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], None]:
        """The agent's actions, as at the first step of an episode; ``state`` and ``episode_start`` have no effect."""
        starts = None if episode_start is None else np.ones_like(episode_start)
        actions, _ = self.agent.predict(observation, None, starts, deterministic)
        return actions, None


class Episodes(NamedTuple):
    """N episodes, ordered by environment and then by time."""

    success: NDArray[np.float64]  # (N,) 1 or 0, NaN where the environment reports no info["is_success"]
    returns: NDArray[np.float64]  # (N,) sum of the rewards, not discounted
    lengths: NDArray[np.int64]  # (N,) steps
    cut: NDArray[np.bool_] | None = None  # (N,) where a limit on the steps of an evaluation cut it; not solved


class Stopped(Exception):
    """The playing was asked to end."""


def play(
    agent: PolicyPredictor,
    env: VecEnv,
    n_episodes: int | None = None,
    *,
    deterministic: bool = False,
    zero_memory: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Episodes:
    """Plays ``n_episodes``, or exactly one in each environment.

    How many are played in each environment is fixed beforehand, so that short episodes are not favoured.

    Args:
        agent: anything with Stable-Baselines3's ``predict``.
        env: the environments; reset at the start.
        n_episodes: episodes in all; ``None`` means one in each environment, so that row i is environment i's.
        deterministic: the most probable action instead of a sampled one.
        zero_memory: empty the memory before every step.
        stopped: asked after every step; true ends the playing.

    Raises:
        ValueError: where ``n_episodes`` is less than 1.
        Stopped: where ``stopped`` said so.
    """
    n_episodes = env.num_envs if n_episodes is None else n_episodes
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")
    if within := getattr(agent, "within", None):  # an agent that asks them for masks
        agent = within(env)
    environments: list[int] = []
    success: list[float] = []
    cut: list[bool] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        if stopped():
            raise Stopped
        # under a Monitor an episode ends where the Monitor says so
        if local["done"] and (not local["is_monitor_wrapped"] or "episode" in local["info"]):
            environments.append(local["i"])
            success.append(float(local["info"].get("is_success", math.nan)))
            cut.append(bool(local["info"].get("cut", False)))

    returns, lengths = evaluate_policy(
        ZeroMemory(agent) if zero_memory else agent,
        env,
        n_eval_episodes=n_episodes,
        deterministic=deterministic,
        callback=note,
        return_episode_rewards=True,
        warn=False,
    )
    order = np.argsort(environments, kind="stable")
    solved, was_cut = np.array(success)[order], np.array(cut)[order]
    if not np.isnan(solved).all():  # a task that reports success at the end of an episode says nothing of what is cut
        solved[was_cut & np.isnan(solved)] = 0.0
    return Episodes(solved, np.array(returns, dtype=np.float64)[order], np.array(lengths)[order], was_cut)


class Estimate(NamedTuple):
    """A value and its 95 % interval; the ends are NaN where one episode gives none, and the value where it is exact."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """How well some episodes went."""

    episodes: int
    success: (
        Estimate | None
    )  # share of the episodes, 0 to 1; None where any of them reported neither success nor failure
    returns: Estimate
    length: Estimate  # steps
    cut: int = 0  # episodes that a limit on their steps cut


def summarise(episodes: Episodes, probability: ArrayLike | None = None) -> Summary:
    """Success with its Wilson interval, return and length with their t-intervals.

    Args:
        episodes: N independent episodes; or, with ``probability``, one from each of all N start states, played
            deterministically.
        probability: of each start state, (N,); the results are then expected values, and exact.

    Raises:
        ValueError: where there is no episode, or ``probability`` is not N numbers that sum to one.
    """
    n_episodes = len(episodes.lengths)
    if n_episodes < 1:
        raise ValueError("there must be at least one episode, got 0")
    reported = not np.isnan(episodes.success).any()
    cut = 0 if episodes.cut is None else int(episodes.cut.sum())
    if probability is None:
        success = wilson(int(episodes.success.sum()), n_episodes) if reported else None
        return Summary(n_episodes, success, _mean(episodes.returns), _mean(episodes.lengths), cut)
    weights = np.asarray(probability, dtype=np.float64)
    if weights.shape != (n_episodes,) or not math.isclose(math.fsum(weights), 1, abs_tol=1e-9):
        raise ValueError(f"probability must be {n_episodes} numbers that sum to one, got {probability}")
    success = _expected(episodes.success, weights) if reported else None
    returns, lengths = _expected(episodes.returns, weights), _expected(episodes.lengths, weights)
    return Summary(n_episodes, success, returns, lengths, cut)


def wilson(successes: int, trials: int) -> Estimate:
    """The share of successes in independent trials with Wilson's score interval (Wilson 1927)."""
    from scipy import stats  # of the extra ``train``: the library alone does without

    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def _mean(values: NDArray[Any]) -> Estimate:
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan)
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def _expected(values: NDArray[Any], weights: NDArray[np.float64]) -> Estimate:
    value = math.fsum(weights * values)
    return Estimate(value, value, value)
