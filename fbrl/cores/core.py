"""What every core is: the recurrent network between the encoder and the heads."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""What a core carries between steps: a named tuple of tensors whose first dimension is the sequence."""


def check_sizes(**sizes: int) -> None:
    """Raises ValueError naming the first size that is less than one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_heads(n_heads: int, d_model: int) -> None:
    """Raises ValueError where the heads do not divide the width."""
    if d_model % n_heads:
        raise ValueError(f"n_heads must divide d_model, got n_heads={n_heads} and d_model={d_model}")


class Core(nn.Module, ABC):
    """(x (B, T, D), state, episode_start (B, T)) -> (features (B, T, D), state).

    A state is a value: it is passed in and handed back, never kept on the module, because PPO
    must be able to replay it. Acting is a call with T = 1.
    """

    d_model: int

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state of ``batch_size`` sequences before their first step, on the parameters' device."""

    @abstractmethod
    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """Runs T steps.

        Args:
            x: encoder output, (B, T, D) float.
            state: as returned by ``initial_state`` or by the call before.
            episode_start: (B, T) bool; true where a step is the first of its episode. What was
                carried there from before has no effect on that step or any after it.

        Returns:
            features (B, T, D) and the state after the last step.
        """

    def attention(self, x: Tensor, state: State) -> Tensor | None:
        """What each layer and head reads in one step; ``None`` where the core does not attend to past steps.

        Args:
            x: encoder output, (B, D) float.
            state: before the step; the second tensor of one that attends is the number of readable slots, (B,) int64.

        Returns:
            (B, L, H, 1 + M), rows that sum to one: first what is no slot (the core says what), then the slots, oldest
            first; 0 where a slot cannot be read.
        """
        return None

    def actor(self, state: State) -> Actor:
        """What acts from ``state`` on, one step at a time."""
        return Actor(self, state)


class Actor:
    """Acts with a core, one step after the other; gives what ``Core.forward`` gives with T = 1.

    A core that can keep between steps what it would have to compute anew has an actor of its own.

    Attributes:
        state: the state after the last step, a value that no later step changes.
    """

    def __init__(self, core: Core, state: State) -> None:
        self.core, self.state = core, state

    def acts_with(self, core: Core) -> bool:
        """Whether ``core`` is what this acts with, and not one that was put in its place since."""
        return self.core is core

    @torch.no_grad()
    def step(self, x: Tensor, episode_start: Tensor) -> tuple[Tensor, State]:
        """One step, without gradients.

        Args:
            x: encoder output, (B, D) float.
            episode_start: (B,) bool; true where the step is the first of its episode.

        Returns:
            features (B, D) and the state after the step.
        """
        features, self.state = self.core(x.unsqueeze(1), self.state, episode_start.unsqueeze(1))
        return features.squeeze(1), self.state
