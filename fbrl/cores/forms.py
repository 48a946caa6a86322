"""Which form computes the scan. Installed packages, the device and the type decide, never the mode or T."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Form = Literal["auto", "compiled", "triton", "fast", "plain"]
CAPABILITY = (8, 0)  # of a GPU that the Triton kernels are compiled for, at least


@cache
def cannot_compile() -> str | None:
    """Why nothing can be compiled here, or ``None``. Imports numba: a tenth of a second."""
    try:
        import numba  # noqa: F401  (whether it can be)
    except ImportError as error:  # not installed, or not for this Python or NumPy
        return f"numba, of pip install fbrl[compiled] ({error})"
    return None


@cache
def cannot_run_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on the device, or ``None``. Compiles and runs one of a line: a second."""
    if find_spec("triton") is None:
        return "triton, of pip install fbrl[triton]"
    from fbrl.cores import feedback_triton

    if feedback_triton.INTERPRETED:
        return None
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"an NVIDIA GPU of compute capability {'.'.join(map(str, CAPABILITY))} or more, got {device}"
    try:
        feedback_triton.try_out(device)
    except Exception as error:  # Triton needs a C compiler and Python's headers, and fails in many ways without
        return f"Triton to work, which says: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def form_of(form: Form, x: Tensor, slots: Tensor, weight: Tensor) -> Literal["compiled", "triton", "fast"]:
    """What computes a scan.

    Args:
        form: what was asked for.
        x: x^0, (B, T, D).
        slots: the initial slots.
        weight: the core's vectors by distance, (M, D/H).

    Raises:
        ValueError: where ``form`` is none, or is compiled or triton and that cannot be.
    """
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if form in ("fast", "plain"):
        return "fast"
    if form == "triton" or (form == "auto" and x.is_cuda):
        lacks = _lacks_type(x, slots, weight) or _too_large(x, weight) or cannot_run_triton(x.device)
        if lacks and form == "triton":
            raise ValueError(f"the triton form needs {lacks}")
        return "fast" if lacks else "triton"
    lacks = _lacks_cpu(x, slots, weight) or _lacks_type(x, slots, weight) or cannot_compile()
    if lacks and form == "compiled":
        raise ValueError(f"the compiled form needs {lacks}")
    return "fast" if lacks else "compiled"


def _lacks_cpu(*tensors: Tensor) -> str | None:
    """What these tensors lack for being on the CPU, or ``None``."""
    elsewhere = [str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"]
    return f"tensors on the CPU, got {elsewhere[0]}" if elsewhere else None


def _lacks_type(*tensors: Tensor) -> str | None:
    """What these tensors lack for being taken by code that is not torch's, or ``None``."""
    x = tensors[0]
    if x.dtype not in (torch.float32, torch.float64) or {tensor.dtype for tensor in tensors} != {x.dtype}:
        return f"numbers of one type, float32 or float64, got {', '.join(str(tensor.dtype) for tensor in tensors)}"
    if not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors) or x.numel() == 0:
        return "tensors that hold numbers"
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "to be called, and not to be traced"
    return None


def _too_large(x: Tensor, weight: Tensor) -> str | None:
    """Whether a program of the Triton kernels had no room for a sequence."""
    d, (slots, e) = x.shape[-1], weight.shape[-2:]
    if d > 1024 or slots * e > 16384:
        return f"D of at most 1024, and M D/H of at most 16384, got {d} and {slots * e}"
    return None
