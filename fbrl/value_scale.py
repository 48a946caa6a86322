"""Values in units of their own, so that learning does not depend on the scale of the reward.

PopArt (van Hasselt et al. 2016, arXiv 1602.07714): the value head learns returns with their running mean subtracted,
divided by their running standard deviation; when these two move, the head's weights are changed so that what it says
of a return stays the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fbrl.finite import NotFiniteError

RATE = 0.1  # how far a rollout moves the running statistics, once there have been 1 / RATE of them
LEAST = 1e-2  # of the mean: no smaller deviation is told apart, so that noise is not blown up where returns are alike


class ValueScale(nn.Module):
    """The running mean and standard deviation of returns, and values in units of them.

    Before the first ``update`` the mean is 0 and the deviation 1, as for a policy that was saved without them.
    """

    mean: Tensor  # ()
    std: Tensor  # ()
    variance: Tensor  # ()
    updates: Tensor  # () int64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def known(self) -> bool:
        """Whether there was an ``update``: until then, what a new value head says has no scale."""
        return bool(self.updates > 0)

    def to_raw(self, values: Tensor) -> Tensor:
        """From the head's units to the reward's."""
        return self.mean + self.std * values

    def to_units(self, values: Tensor) -> Tensor:
        """From the reward's units to the head's."""
        return (values - self.mean) / self.std

    @torch.no_grad()
    def update(self, mean: float, variance: float, head: nn.Linear) -> None:
        """Takes in the returns of one rollout; nothing but zeros says nothing.

        From the second on, ``head`` is changed so that ``to_raw(head(x))`` stays what it was.

        Args:
            mean: of the returns.
            variance: of the returns.
            head: the value head, D -> 1.

        Raises:
            NotFiniteError: where the returns are not finite, or their square is not in single precision.
        """
        if not torch.tensor([mean, variance, mean**2], dtype=self.mean.dtype).isfinite().all():
            raise NotFiniteError("the returns of the rollout are not finite; the weights are those before it")
        if mean == variance == 0 and not self.known:
            return
        old_mean, old_std = self.mean.clone(), self.std.clone()
        self.updates += 1
        rate = max(RATE, 1 / int(self.updates))
        change = mean - self.mean
        self.variance.copy_((1 - rate) * (self.variance + rate * change.square()) + rate * variance)
        self.mean += rate * change
        self.std.copy_((self.variance + (LEAST * self.mean).square()).sqrt())
        if self.updates > 1:
            head.weight.mul_(old_std / self.std)
            head.bias.mul_(old_std / self.std).add_((old_mean - self.mean) / self.std)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):  # saved without
            state_dict |= {prefix + name: value for name, value in ValueScale().state_dict().items()}
        super()._load_from_state_dict(state_dict, prefix, *args)
