"""What every core is: the recurrent network between the encoder and the heads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

State = tuple[Tensor, ...]
"""What a core carries between steps: a named tuple of tensors whose first dimension is the sequence."""


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
