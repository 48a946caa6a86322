"""The cores by the names that settings give them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fbrl.cores.core import Core
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.linear_attention import LinearAttention
from fbrl.cores.memoryless import Memoryless
from fbrl.cores.mingru import MinGRU
from fbrl.cores.rnn import GRU, LSTM
from fbrl.cores.transformer_xl import TransformerXL

# the class, and what it is given besides sizes
CORES: dict[str, tuple[type[Core], dict[str, Any]]] = {
    "feedback": (FastFeedbackTransformer, {}),
    "feedback_plain": (FeedbackTransformer, {}),
    "gru": (GRU, {}),
    "lstm": (LSTM, {}),
    "mingru": (MinGRU, {}),
    "linear_attention": (LinearAttention, {}),
    "transformer_xl": (TransformerXL, {"gate": False}),
    "gtrxl": (TransformerXL, {"gate": True}),
    "memoryless": (Memoryless, {}),
}


def core_kwargs(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What the core of that name is made with: those of ``sizes`` that it takes, and what tells it from its like."""
    core_class, options = CORES[name]
    takes = inspect.signature(core_class).parameters
    return {key: value for key, value in sizes.items() if key in takes} | options
