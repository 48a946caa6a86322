"""What one odd observation does: how far the policy is, from then on, from what it would be without it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from fbrl.insight.recording import Episode
from fbrl.insight.seen import Floats, kl
from fbrl.policy import MemoryPolicy

AT_MOST = 8  # places of an episode where the odd observation is put, evenly spread


def contaminate(policy: MemoryPolicy, episodes: Sequence[Episode], space: spaces.Space[Any], seed: int) -> Floats:
    """KL(policy || policy after an odd observation) by the steps since it, in nats.

    The episodes' own observations are shown again, once as they were and once with one of them replaced by a sample of
    the observation space; everything after it is the same.

    Args:
        policy: of the agent that played the episodes.
        episodes: whose first steps were kept.
        space: of the environment's observations.
        seed: of the samples.

    Returns:
        (K, 3): mean, 90th percentile and number of cases, k = 1 .. K steps after; K = 0 where no episode has two steps.
    """
    space.seed(seed)
    found: list[list[float]] = []
    for episode in episodes:
        for place, divergences in _one(policy, episode, space):
            for after, divergence in enumerate(divergences[place + 1 :]):
                if after == len(found):
                    found.append([])
                found[after].append(divergence)
    return np.array([[np.mean(after), np.quantile(after, 0.9), len(after)] for after in found]).reshape(-1, 3)


def _one(policy: MemoryPolicy, episode: Episode, space: spaces.Space[Any]) -> list[tuple[int, list[float]]]:
    """For some places in an episode, the divergences at all of its steps."""
    length = len(episode.steps)
    places = np.unique(np.linspace(0, length - 1, min(AT_MOST, length), dtype=int))[:-1]
    batch = 1 + len(places)  # the first row is as it was
    state = policy.initial_state(batch)
    by_step = []
    policy.set_training_mode(False)
    for t, step in enumerate(episode.steps):
        rows = [step.observation] * batch
        for row, place in enumerate(places, start=1):
            if place == t:
                rows[row] = _parts(space.sample())
        observation: Any = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        if not isinstance(space, spaces.Dict):
            observation = observation["observation"]
        start = torch.full((batch,), t == 0, device=policy.device)
        with torch.no_grad():
            obs, _ = policy.obs_to_tensor(observation)
            distribution, after = policy.get_distribution(obs, state, start)
            by_step.append(_from_first(distribution, batch))
        state = after
    return [(int(place), [float(step[row]) for step in by_step]) for row, place in enumerate(places, start=1)]


def _from_first(distribution: Any, batch: int) -> Floats:
    """KL of the first row's distribution from each row's, (B,)."""
    clean, inside = copy.copy(distribution), distribution.distribution
    if isinstance(inside, list):
        clean.distribution = [_first(part, batch) for part in inside]
    else:
        clean.distribution = _first(inside, batch)
    return kl(clean, distribution)


def _first(distribution: torch.distributions.Distribution, batch: int) -> torch.distributions.Distribution:
    if isinstance(distribution, torch.distributions.Normal):
        return torch.distributions.Normal(
            distribution.loc[:1].expand(batch, -1), distribution.scale[:1].expand(batch, -1)
        )
    logits = distribution.logits[:1].expand(batch, -1)  # type: ignore[attr-defined]
    return type(distribution)(logits=logits)  # type: ignore[call-arg]


def _parts(observation: Any) -> dict[str, NDArray[Any]]:
    named = observation if isinstance(observation, dict) else {"observation": observation}
    return {key: np.array(part) for key, part in named.items()}
