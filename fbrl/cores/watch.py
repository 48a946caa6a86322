"""Whether weights are still those that something was made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Watch:
    """The weights of a module as they are now; ``unchanged`` says later whether they still are.

    Nothing that an optimiser, a loader or a user does to weights is taken on trust: a parameter or a submodule put in
    the place of another, another tensor put into a parameter, and any value written, to ``data`` too, of which
    torch's own count of versions knows nothing.

    Args:
        module: whose weights.
        copied: those of its weights whose values were read. Of the others views were taken, which see what is
            written to them.
    """

    def __init__(self, module: nn.Module, copied: Sequence[Tensor]) -> None:
        self.places = [
            (owner, name, thing)
            for part in module.modules()
            for owner in (part._parameters, part._modules)
            for name, thing in owner.items()
        ]
        self.weights = list(module.parameters())
        self.held = [weight.detach() for weight in self.weights]  # while these live, their addresses are not given away
        self.addresses = [weight.data_ptr() for weight in self.held]
        self.copied = [weight.detach() for weight in copied if not weight.is_meta]  # of a meta tensor there is no value
        self.values = [weight.clone() for weight in self.copied]

    def unchanged(self) -> bool:
        """Whether all weights are what they were."""
        for owner, name, thing in self.places:
            if owner.get(name) is not thing:
                return False
        if [weight.data_ptr() for weight in self.weights] != self.addresses:
            return False
        return all(map(torch.equal, self.copied, self.values))
