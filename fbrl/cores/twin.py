"""Two cores side by side, the actor's and the critic's, as one."""

from __future__ import annotations

import torch
from torch import Tensor

from fbrl.cores.core import Actor, Core, State


class TwinCore(Core):
    """A core for the actor and one for the critic, which share nothing.

    Inputs and features (B, T, 2 D) are the actor's and the critic's, one behind the other; a state is the actor's
    tensors and then the critic's.

    Args:
        pi: the actor's core.
        vf: the critic's, of the same kind and width.
    """

    def __init__(self, pi: Core, vf: Core) -> None:
        super().__init__()
        self.pi, self.vf = pi, vf
        self.d_model = pi.d_model  # of each

    def initial_state(self, batch_size: int) -> State:
        """The initial states of both."""
        return (*self.pi.initial_state(batch_size), *self.vf.initial_state(batch_size))

    def split(self, state: State) -> tuple[State, State]:
        """The actor's and the critic's part of a state."""
        half = len(state) // 2
        return state[:half], state[half:]

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """See ``Core``; x and features (B, T, 2 D)."""
        of_pi, of_vf = self.split(state)
        x_pi, x_vf = x.chunk(2, dim=-1)
        pi, of_pi = self.pi(x_pi, of_pi, episode_start)
        vf, of_vf = self.vf(x_vf, of_vf, episode_start)
        return torch.cat([pi, vf], dim=-1), (*of_pi, *of_vf)

    def actor(self, state: State) -> Actor:
        """What acts from ``state`` on: an actor of each core."""
        return TwinActor(self, state)


class TwinActor(Actor):
    """An actor of each of the two cores."""

    def __init__(self, core: TwinCore, state: State) -> None:
        super().__init__(core, tuple(state))
        of_pi, of_vf = core.split(self.state)
        self.pi, self.vf = core.pi.actor(of_pi), core.vf.actor(of_vf)

    def acts_with(self, core: Core) -> bool:
        """Whether ``core`` is what this acts with, and its two cores too."""
        return (
            isinstance(core, TwinCore)
            and core is self.core
            and self.pi.acts_with(core.pi)
            and self.vf.acts_with(core.vf)
        )

    @torch.no_grad()
    def step(self, x: Tensor, episode_start: Tensor) -> tuple[Tensor, State]:
        """One step, see ``Actor``; x and features (B, 2 D)."""
        x_pi, x_vf = x.chunk(2, dim=-1)
        (pi, of_pi), (vf, of_vf) = self.pi.step(x_pi, episode_start), self.vf.step(x_vf, episode_start)
        self.state = (*of_pi, *of_vf)
        return torch.cat([pi, vf], dim=-1), self.state
