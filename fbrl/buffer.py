"""Rollout buffers that hand out whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from fbrl.cores.core import State
from fbrl.sequences import Iterate, Sequences
from fbrl.value_scale import ValueScale


class SequenceRolloutBuffer(RolloutBuffer):
    """Stable-Baselines3's rollout buffer, cut into sequences of ``seq_len`` steps.

    A minibatch holds ``batch_size // seq_len`` sequences drawn at random; its ``observations`` are
    ``Sequences`` and everything else is flattened to (B*T,). Sequences run through the ends of
    episodes: there is no padding and no mask. Of the core's states only those before the first step of
    each sequence are kept.

    For parallel passes the memory vector of every step is kept too. A minibatch starts from those that the last
    minibatch with the same sequences left behind.

    Args:
        args, kwargs: as in Stable-Baselines3.
        seq_len: T, in steps; divides the number of steps of a rollout.
        passes: parallel passes in the place of the scan; ``None`` for the scan.

    Attributes:
        drift: how far each whole epoch since the rollout has moved the memory vectors from those of the rollout, as a
            share of their norm.
        value_scale: the units of the values and returns in minibatches; ``None`` for the reward's, in which the
            buffer keeps them.
    """

    value_scale: ValueScale | None = None

    def __init__(self, *args: Any, seq_len: int, passes: int | None = None, **kwargs: Any) -> None:
        self.seq_len, self.passes = seq_len, passes
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        self.after_cut = np.full((self.buffer_size, self.n_envs), np.nan, dtype=np.float32)
        self.states: list[State] = []  # before each sequence's first step, tensors (n_envs, ...)
        self.written: list[Tensor] = []  # memory vectors (n_envs, D), where passes will want them
        self.drift: list[float] = []

    def add(  # type: ignore[override]
        self, *args: Any, state: State, next_state: State, after_cut: np.ndarray[Any, Any] | None = None, **kwargs: Any
    ) -> None:
        """Adds one step of every environment.

        Args:
            args, kwargs: as in Stable-Baselines3.
            state, next_state: the core's before and after the step, tensors (n_envs, ...).
            after_cut: (n_envs,) the value of the last observation where the step's episode was cut short, NaN
                elsewhere; ``None`` where none was.
        """
        if after_cut is not None:
            self.after_cut[self.pos] = after_cut
        if self.pos % self.seq_len == 0:
            self.states.append(state)
        if self.passes is not None:
            # of a `Memory`, or of the actor's and the critic's
            self.written.append(torch.cat([slots[:, -1] for slots in next_state[::2]], dim=-1))
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray[Any, Any]) -> None:
        """As in Stable-Baselines3, with the discounted values after episodes that were cut short in the rewards."""
        self.rewards += self.gamma * np.nan_to_num(self.after_cut)
        self.after_cut[:] = np.nan
        super().compute_returns_and_advantage(last_values, dones)

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        """Minibatches of whole sequences, in random order; ``None`` yields everything at once.

        Follows ``RolloutBuffer.get`` of Stable-Baselines3 2.9.2, except that what is shuffled are sequences.
        """
        assert self.full, "the rollout buffer is not full"
        self._flatten()
        n_sequences = self.n_envs * self.buffer_size // self.seq_len
        per_batch = n_sequences if batch_size is None else batch_size // self.seq_len
        order = np.random.permutation(n_sequences)
        for first in range(0, n_sequences, per_batch):
            sequences = order[first : first + per_batch]
            steps = (sequences[:, None] * self.seq_len + np.arange(self.seq_len)).ravel()
            samples = self._get_samples(steps)
            observations = self._sequences(samples.observations, sequences, steps)
            if self.value_scale is not None:
                to_units = self.value_scale.to_units
                samples = samples._replace(old_values=to_units(samples.old_values), returns=to_units(samples.returns))
            yield samples._replace(observations=observations)  # type: ignore[arg-type]
            if observations.iterate is not None:
                self.memories[torch.as_tensor(sequences, device=self.device)] = observations.iterate.memories
        if self.passes is not None:
            change = self.memories - self.rollout_memories
            self.drift.append((change.norm() / self.rollout_memories.norm()).item())

    def _flatten(self) -> None:
        """Turns the arrays (n_steps, n_envs, ...) into (n_envs * n_steps, ...) once: sequences become contiguous."""
        if self.generator_ready:
            return
        observations: Any = self.observations
        if isinstance(observations, dict):
            self.observations = {key: self.swap_and_flatten(part) for key, part in observations.items()}  # type: ignore[assignment]
        else:
            self.observations = self.swap_and_flatten(observations)
        for name in ("actions", "values", "log_probs", "advantages", "returns", "episode_starts"):
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        # (sequences of an environment, n_envs, ...) -> one row a sequence, in the order of the steps
        self.sequence_states = tuple(torch.stack(part, dim=1).flatten(0, 1) for part in zip(*self.states, strict=True))
        if self.passes is not None:
            written = torch.stack(self.written, dim=1)  # (n_envs, n_steps, D)
            self.rollout_memories = written.reshape(-1, self.seq_len, written.shape[-1])
            self.memories = self.rollout_memories.clone()
        self.generator_ready = True

    def _sequences(self, observations: Any, sequences: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]) -> Sequences:
        """Flat samples (B*T, ...) as the policy takes them: (B, T, ...)."""
        shape = (len(sequences), self.seq_len)

        def unflatten(tensor: Tensor) -> Tensor:
            return tensor.reshape(*shape, *tensor.shape[1:])

        if isinstance(observations, dict):
            observations = {key: unflatten(value) for key, value in observations.items()}
        else:
            observations = unflatten(observations)
        starts = unflatten(self.to_torch(self.episode_starts[steps].ravel()).bool())
        rows = torch.as_tensor(sequences, device=self.device)
        iterate = None if self.passes is None else Iterate(self.memories[rows], self.passes)
        return Sequences(observations, starts, tuple(part[rows] for part in self.sequence_states), iterate)


class SequenceDictRolloutBuffer(SequenceRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """``SequenceRolloutBuffer`` for Dict observations."""
