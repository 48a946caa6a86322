"""Which form computes the scan. Installed packages, the device and the type decide, never the mode or T."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Form = Literal["auto", "compiled", "fast", "plain"]


@cache
def cannot_compile() -> str | None:
    """Why nothing can be compiled here, or ``None``. Imports numba: a tenth of a second."""
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not installed, or not for this Python or NumPy
        return f"numba, of pip install fbrl[compiled] ({error})"
    return None


def is_compiled(form: Form, x: Tensor, slots: Tensor, weight: Tensor) -> bool:
    """Whether the compiled form computes a scan.

    Args:
        form: what was asked for.
        x: x^0, (B, T, D).
        slots: the initial slots.
        weight: one of the core's.

    Raises:
        ValueError: where ``form`` is none, or is compiled and that cannot be.
    """
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if form in ("fast", "plain"):
        return False
    lacks = _lacks(x, slots, weight) or cannot_compile()
    if lacks and form == "compiled":
        raise ValueError(f"the compiled form needs {lacks}")
    return lacks is None


def _lacks(x: Tensor, slots: Tensor, weight: Tensor) -> str | None:
    """What these tensors lack for the compiled form, or ``None``."""
    tensors = x, slots, weight
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return f"tensors on the CPU, got {x.device} and {weight.device}"
    if x.dtype not in (torch.float32, torch.float64) or {tensor.dtype for tensor in tensors} != {x.dtype}:
        return f"numbers of one type, float32 or float64, got {x.dtype}, {slots.dtype} and {weight.dtype}"
    if not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors) or x.numel() == 0:
        return "tensors that hold numbers"
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "to be called, and not to be traced"
    return None
