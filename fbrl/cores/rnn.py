"""GRU and LSTM: torch's own, with resets inside the sequence.

Without episode starts after the first step, T steps of B sequences are one call of ``torch.nn.GRU`` or
``torch.nn.LSTM``. Otherwise the sequences are cut where episodes start, and each piece into parts whose lengths are
powers of two, the longest first: a piece of 11 steps into 8, 2 and 1. The parts of one length, at most one a piece,
are one call without padding, so that there are at most log2(T) + 1 calls wherever episodes start.

A call for every stretch of time in which no episode starts would be a call for nearly every step where there are
many sequences, and torch's packed sequences miss its fastest LSTM on a CPU.

A layer norm follows, as in every other core: a new LSTM's own outputs are so small that the heads would hardly hear it.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fbrl.cores.core import Core, State, check_sizes


class GRUState(NamedTuple):
    """What each layer of a GRU carries from step to step."""

    h: Tensor  # (B, L, D)


class LSTMState(NamedTuple):
    """What each layer of an LSTM carries from step to step."""

    h: Tensor  # (B, L, D)
    c: Tensor  # (B, L, D)


class Recurrent(Core):
    """What ``GRU`` and ``LSTM`` share.

    Args:
        d_model: D, the width of every layer.
        n_layers: L.

    Raises:
        ValueError: where a size is less than one.
    """

    module: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    state_type: ClassVar[type[GRUState] | type[LSTMState]]

    def __init__(self, d_model: int = 128, n_layers: int = 2) -> None:
        super().__init__()
        check_sizes(d_model=d_model, n_layers=n_layers)
        self.d_model = d_model
        self.rnn = self.module(d_model, d_model, n_layers, batch_first=True)
        for parameter in self.rnn.parameters():  # as ppo_atari_lstm.py of CleanRL 1.0.0 does
            if parameter.dim() > 1:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        self.ln_out = nn.LayerNorm(d_model)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, on the parameters' device."""
        shape, weight = (batch_size, self.rnn.num_layers, self.d_model), next(self.parameters())
        return self.state_type(*(weight.new_zeros(shape) for _ in self.state_type._fields))

    def forward(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """See ``Core``. No gradient flows into the state that the sequence starts with.

        Where to cut is decided on the CPU. Unless T = 1, ``episode_start`` is copied there, which waits for
        the device once a call; it may as well be there already.
        """
        first = episode_start[:, 0].to(x.device).view(-1, 1, 1)
        state = self.state_type(*(part.detach().masked_fill(first, 0) for part in state))
        start = episode_start.cpu() if x.shape[1] > 1 else None
        if start is None or not start[:, 1:].any():
            features, state = self._call(x, state)
        else:
            features, state = self._call_in_pieces(x, state, start)
        return self.ln_out(features), state

    def _call(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """torch's module, with states whose first dimension is the sequence."""
        by_layer = tuple(part.transpose(0, 1).contiguous() for part in state)  # (L, B, D)
        features, after = self.rnn(x, by_layer if len(by_layer) > 1 else by_layer[0])
        after = after if isinstance(after, tuple) else (after,)
        return features, self.state_type(*(part.transpose(0, 1) for part in after))

    def _call_in_pieces(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """``_call`` with resets after the first step, where ``start`` (B, T) on the CPU is true; N pieces."""
        flat, steps = x.flatten(0, 1), x.shape[1]
        begin = start.index_fill(1, torch.tensor(0), True).flatten().nonzero().squeeze(1)  # in ``flat``
        length = begin.diff(append=torch.tensor([len(flat)]))
        first = (begin % steps == 0).nonzero().squeeze(1)  # of each sequence
        last = torch.cat([first[1:], torch.tensor([len(begin)])]) - 1
        zeros = x.new_zeros(len(begin), *state[0].shape[1:])
        state = tuple(zeros.index_copy(0, first.to(x.device), part) for part in state)
        features, places = [], []
        for power in reversed(range(steps.bit_length())):
            piece = (length >> power & 1).nonzero().squeeze(1)  # those with a part of 2^power steps
            if not len(piece):
                continue
            done = (length[piece] >> power + 1) << power + 1  # steps in the longer parts of the piece
            place = (begin[piece] + done).unsqueeze(1) + torch.arange(1 << power)
            piece, place = piece.to(x.device), place.to(x.device)
            y, after = self._call(flat[place], tuple(part[piece] for part in state))
            state = tuple(part.index_copy(0, piece, new) for part, new in zip(state, after, strict=True))
            features.append(y.flatten(0, 1))
            places.append(place.flatten())
        y = torch.empty_like(flat).index_copy(0, torch.cat(places), torch.cat(features))
        return y.view_as(x), self.state_type(*(part[last.to(x.device)] for part in state))


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014, arXiv 1406.1078); arguments as in ``Recurrent``."""

    module, state_type = nn.GRU, GRUState


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997); arguments as in ``Recurrent``."""

    module, state_type = nn.LSTM, LSTMState
