"""Action masks with a memory: actions that are not allowed now have no probability.

Masks are asked for and given as sb3-contrib's ``MaskablePPO`` does (Huang and Ontanon 2020, arXiv 2006.14171): the
environment, or an ``ActionMasker`` around it, has ``action_masks()``; ``predict`` takes ``action_masks``. The
distributions are sb3-contrib's, which ``pip install fbrl[masks]`` brings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from fbrl.arguments import MaskError
from fbrl.buffer import SequenceDictRolloutBuffer, SequenceRolloutBuffer
from fbrl.cores.core import Actor, State
from fbrl.finite import Observation
from fbrl.policy import MemoryCnnPolicy, MemoryMultiInputPolicy, MemoryPolicy, goes_through_forward
from fbrl.ppo import MemoryPPO
from fbrl.sequences import Iterate, Sequences
from fbrl.vec_env import FiniteVecEnv

Arrays = tuple[np.ndarray[Any, Any], ...]


def choices(action_space: spaces.Space[Any]) -> list[int]:
    """How many choices each part of an action has: a mask is as long as their sum.

    Raises:
        ValueError: where the actions are of a space that cannot be masked.
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        return [int(n) for n in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary) and isinstance(action_space.n, int):
        return [2] * action_space.n
    raise ValueError(f"actions of Discrete, MultiDiscrete and MultiBinary can be masked, got {action_space}")


class MaskedSequences(NamedTuple):
    """Sequences, and what was allowed at each of their steps."""

    sequences: Sequences
    action_masks: Tensor  # (B*T, choices) bool

    @property
    def iterate(self) -> Iterate | None:
        """As of ``Sequences``."""
        return self.sequences.iterate


class _Maskable(MemoryPolicy):
    """What a ``MemoryPolicy`` does besides where actions may be masked."""

    _masks: Tensor | None = None

    def _build(self, lr_schedule: Schedule) -> None:
        dims = choices(self.action_space)
        if isinstance(self.action_space, spaces.MultiBinary):  # a head of two numbers a bit, as sb3-contrib's
            self.action_dist = MultiCategoricalDistribution(dims)
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    @contextlib.contextmanager
    def masked(self, action_masks: Any) -> Iterator[None]:
        """Inside, distributions allow what ``action_masks`` (B, choices) says; ``None`` allows everything."""
        self._masks = None if action_masks is None else torch.as_tensor(action_masks, device=self.device).bool()
        try:
            yield
        finally:
            self._masks = None

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        distribution = self.action_dist.proba_distribution(self.action_net(latent_pi))
        assert isinstance(distribution, MaskableDistribution)
        distribution.apply_masking(self._masks)
        return distribution

    def act(
        self, obs: PyTorchObs, actor: Actor, episode_start: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """See ``MemoryPolicy.act``; ``action_masks`` (B, choices) says what is allowed."""
        with self.masked(action_masks):
            return super().act(obs, actor, episode_start)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Sequences | MaskedSequences, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See ``MemoryPolicy.evaluate_actions``."""
        sequences, masks = obs if isinstance(obs, MaskedSequences) else (obs, None)
        with self.masked(masks):
            return super().evaluate_actions(sequences, actions)

    def predict(
        self,
        observation: Observation,
        state: Arrays | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray[Any, Any] | None = None,
    ) -> tuple[np.ndarray[Any, Any], Arrays]:
        """See ``MemoryPolicy.predict``; ``action_masks`` (B, choices) says what is allowed, ``None`` everything."""
        with self.masked(None if action_masks is None else check_masks(action_masks, self.action_space)):
            return super().predict(observation, state, episode_start, deterministic)


class MaskableMemoryPolicy(_Maskable):
    """``MemoryPolicy`` whose actions may be masked."""


class MaskableMemoryCnnPolicy(_Maskable, MemoryCnnPolicy):
    """``MemoryCnnPolicy`` whose actions may be masked."""


class MaskableMemoryMultiInputPolicy(_Maskable, MemoryMultiInputPolicy):
    """``MemoryMultiInputPolicy`` whose actions may be masked."""


class MaskableRolloutBuffer(SequenceRolloutBuffer):
    """``SequenceRolloutBuffer`` that keeps what was allowed at each step."""

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        self.action_masks = np.ones((self.buffer_size, self.n_envs, sum(choices(self.action_space))), dtype=bool)

    def add(self, *args: Any, action_masks: np.ndarray[Any, Any], **kwargs: Any) -> None:  # type: ignore[override]
        """Adds one step of every environment; ``action_masks`` (n_envs, choices)."""
        self.action_masks[self.pos] = action_masks
        super().add(*args, **kwargs)

    def _flatten(self) -> None:
        if not self.generator_ready:
            self.action_masks = self.swap_and_flatten(self.action_masks)
        super()._flatten()

    def _sequences(  # type: ignore[override]
        self, observations: Any, sequences: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]
    ) -> MaskedSequences:
        whole = super()._sequences(observations, sequences, steps)
        return MaskedSequences(whole, torch.as_tensor(self.action_masks[steps], device=self.device))


class MaskableDictRolloutBuffer(MaskableRolloutBuffer, SequenceDictRolloutBuffer):  # type: ignore[misc]
    """``MaskableRolloutBuffer`` for Dict observations."""


class MaskableMemoryPPO(MemoryPPO):
    """``MemoryPPO`` in environments with ``action_masks()``: Discrete, MultiDiscrete and MultiBinary actions.

    Takes what ``MemoryPPO`` takes. sb3-contrib's ``MaskableEvalCallback`` evaluates it.

    Raises:
        ValueError: where an environment has no ``action_masks``.
        MaskError: where one allows nothing, which is named with its environment and step, or is of another shape.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableMemoryPolicy,
        "CnnPolicy": MaskableMemoryCnnPolicy,
        "MultiInputPolicy": MaskableMemoryMultiInputPolicy,
    }
    policy: _Maskable

    def _setup_model(self) -> None:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        self.rollout_buffer_class = MaskableDictRolloutBuffer if is_dict else MaskableRolloutBuffer
        super()._setup_model()

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """See ``MemoryPPO``; raises ValueError where ``policy.forward`` is compiled, hooked or overridden."""
        if goes_through_forward(self.policy):
            raise ValueError(
                "the policy's forward is compiled, hooked or overridden, and is not given action masks: leave it "
                "as it is"
            )
        return super().collect_rollouts(*args, **kwargs)

    def of_step(self, env: GymEnv) -> dict[str, Any]:
        """The masks of the step to come."""
        masks = masks_of(env, self.action_space, f" at step {self.num_timesteps // self.n_envs}")
        return {"action_masks": masks}

    def predict(
        self,
        observation: Observation,
        state: Arrays | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray[Any, Any] | None = None,
    ) -> tuple[np.ndarray[Any, Any], Arrays]:
        """See ``MemoryPolicy.predict``; ``action_masks`` (B, choices) says what is allowed, ``None`` everything."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def within(self, env: GymEnv) -> WithMasks:
        """What plays in ``env``."""
        return WithMasks(self, env)


class WithMasks:
    """An agent that asks the environments that it plays in what is allowed."""

    def __init__(self, agent: MaskableMemoryPPO, env: GymEnv) -> None:
        self.agent, self.env = agent, env

    @contextlib.contextmanager
    def masked(self) -> Iterator[None]:
        """Inside, the policy's distributions allow what the environments allow now."""
        with self.agent.policy.masked(masks_of(self.env, self.agent.action_space)):
            yield

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], Arrays]:
        """The agent's, with the masks of now."""
        masks = masks_of(self.env, self.agent.action_space)
        return self.agent.predict(observation, state, episode_start, deterministic, masks)


def masks_of(env: GymEnv, action_space: spaces.Space[Any], step: str = "") -> np.ndarray[Any, Any]:
    """What the environments allow now, (n_envs, choices) bool.

    Raises:
        ValueError: where they have no ``action_masks``.
        MaskError: where these are of another shape, or allow nothing: which environment's, and in which step, as far
            as the environments know it, or ``step`` says.
    """
    if not is_masking_supported(env):
        raise ValueError("an environment has no action_masks(): wrap it in sb3-contrib's ActionMasker, or do not mask")
    base = env.unwrapped
    rows = env.env_method("action_masks") if isinstance(env, VecEnv) else [get_action_masks(env)]
    one = "environment {}" if isinstance(env, VecEnv) else "the environment"
    of = base.name if isinstance(base, FiniteVecEnv) else f"{one}{step}".format
    entries = sum(choices(action_space))
    for index, row in enumerate(rows):
        shape = row.shape if isinstance(row, np.ndarray) else np.asarray(row, dtype=object).shape
        if shape[-1:] != (entries,) or np.prod(shape) != entries:
            allowed = f"must have {entries} entries for {action_space}, got the shape {shape}"
            raise MaskError(f"action_masks of {of(index)} {allowed}")
    return check_masks(np.stack(rows), action_space, of)


def check_masks(
    action_masks: Any, action_space: spaces.Space[Any], of: Callable[[int], str] = "row {}".format
) -> np.ndarray[Any, Any]:
    """The masks (B, choices) as bool.

    Raises:
        MaskError: where they are of another shape, or a part of an action has no choice that is allowed; ``of`` says
            whose a row is.
    """
    dims, masks = choices(action_space), np.asarray(action_masks)
    if masks.ndim == 0 or masks.shape[-1] != sum(dims):
        raise MaskError(f"action_masks must have {sum(dims)} entries for {action_space}, got the shape {masks.shape}")
    masks = masks.reshape(-1, sum(dims)).astype(bool)
    for part, allowed in enumerate(np.split(masks, np.cumsum(dims)[:-1], axis=1)):
        if not (any_allowed := allowed.any(axis=1)).all():
            where = f" in part {part} of the action" if len(dims) > 1 else ""
            raise MaskError(f"action_masks of {of(int(np.argmin(any_allowed)))} allow nothing{where}")
    return masks
