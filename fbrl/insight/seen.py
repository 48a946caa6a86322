"""What a policy makes of one step: what it reads, what it writes, what it would do, and what the memory changes."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution, kl_divergence
from torch import Tensor

from fbrl.cores.core import Core, State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.memory import Memory
from fbrl.policy import MemoryPolicy

Floats = NDArray[np.float64]
ArrayState = tuple[NDArray[Any], ...] | None
"""A state as ``predict`` hands it out; ``None`` before the first step."""


class Seen(NamedTuple):
    """What a policy makes of one step of B sequences; ``None`` for what it does not have."""

    attention: Floats | None  # (B, L, H, 1 + M), as from ``Core.attention``; NaN where a slot cannot be read
    written: Floats | None  # (B, 1 + L) share of each layer's output in the length of the memory vector's parts
    chances: tuple[Floats, ...]  # P(action) of each choice, (B, n); empty for continuous actions
    mean: Floats | None  # (B, n) of continuous actions
    std: Floats | None
    value: Floats  # (B,)
    effect: Floats | None  # (B,) nats: how far the policy is from what it would be with an empty memory


def attends(core: object) -> bool:
    """Whether the core reads past steps one by one, so that it can be shown which."""
    return isinstance(core, Core) and type(core).attention is not Core.attention


def look(policy: Any, observation: Any, state: ArrayState) -> Seen:
    """Looks at one step, without taking it.

    Args:
        policy: a ``MemoryPolicy``, or one of Stable-Baselines3's own.
        observation: one observation, or a batch of B.
        state: before the step; ``None`` means empty. Episode starts are the caller's to apply.
    """
    policy.set_training_mode(False)
    with torch.no_grad():
        obs, _ = policy.obs_to_tensor(observation)
        if not isinstance(policy, MemoryPolicy):
            return _seen(policy.get_distribution(obs), policy.predict_values(obs))
        batch = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        empty, going_on = policy.initial_state(batch), torch.zeros(batch, dtype=torch.bool, device=policy.device)
        before = empty if state is None else tensors(policy, state)
        # the policy hands out one object again and again, whose contents it renews
        distribution = copy.copy(policy.get_distribution(obs, before, going_on)[0])
        without = copy.copy(policy.get_distribution(obs, empty, going_on)[0])
        seen = _seen(distribution, policy.predict_values(obs, before, going_on))
        core = policy.actor_core  # a critic's own core has its share of inputs and state behind the actor's
        x, before = policy.encode(obs)[:, : core.d_model], before[: len(core.initial_state(1))]
        attention, written = _reading_and_writing(core, x, before)
        return seen._replace(attention=attention, written=written, effect=kl(distribution, without))


def tensors(policy: MemoryPolicy, state: tuple[NDArray[Any], ...]) -> State:
    """A state as the policy's core takes it."""
    return tuple(torch.tensor(part, device=policy.device) for part in state)


def kl(distribution: Distribution, other: Distribution) -> Floats:
    """KL(distribution || other) in nats, (B,)."""
    if hasattr(distribution, "distributions"):  # sb3-contrib's masked ones of several parts
        pairs = zip(distribution.distributions, other.distributions, strict=True)  # type: ignore[attr-defined]
        divergence = torch.stack([torch.distributions.kl_divergence(one, two) for one, two in pairs], dim=1)
    else:
        divergence = kl_divergence(distribution, other)
    return _array(divergence.reshape(len(divergence), -1).sum(dim=1))


def _reading_and_writing(core: Core, x: Tensor, state: State) -> tuple[Floats | None, Floats | None]:
    """``Seen.attention`` and ``Seen.written``."""
    written = None
    if isinstance(core, FeedbackTransformer):
        outputs, attention = core.read(x, Memory(*state))
        lengths = core.mix.softmax(dim=0) * torch.stack([output.norm(dim=1) for output in outputs], dim=1)
        written = _array(lengths / lengths.sum(dim=1, keepdim=True))
    else:
        attended = core.attention(x, state)
        if attended is None:
            return None, None
        attention = attended
    slots = torch.arange(attention.shape[-1] - 1, 0, -1, device=x.device)
    unreadable = slots > state[1].unsqueeze(1)  # its length
    attention[..., 1:] = attention[..., 1:].masked_fill(unreadable[:, None, None], torch.nan)
    return _array(attention), written


def _seen(distribution: Distribution, value: Tensor) -> Seen:
    inside = getattr(distribution, "distributions", None) or distribution.distribution
    choices = inside if isinstance(inside, list) else [inside]
    chances, mean, std = [], None, None
    for choice in choices:
        if hasattr(choice, "probs"):
            chances += [_array(part) for part in _by_choice(choice)]
        else:
            mean, std = _array(choice.mean), _array(choice.stddev)
    return Seen(None, None, tuple(chances), mean, std, _array(value.flatten()), None)


def _by_choice(distribution: Any) -> list[Tensor]:
    """A categorical distribution as it is; each of a row of yes-or-no choices as one of two."""
    if isinstance(distribution, torch.distributions.Bernoulli):
        return [torch.stack([1 - yes, yes], dim=1) for yes in distribution.probs.unbind(1)]
    return [distribution.probs]


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.double().cpu().numpy()
    return array
