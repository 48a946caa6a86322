"""What numba compiled, kept on disk from process to process.

numba's own cache does not see that a function changed that another one calls. A file here is named by a digest of all
that its content depends on: the sources of the kernels, the versions, the types of the arguments and the processor.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import types
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult

FOLDER = "FBRL_CACHE"  # the environment variable that says where; by default ~/.cache/fbrl
# the modules that the kernels are made of
KERNELS = ("vectors", "products", "arrays", "attention", "forward", "backward")
SOURCES = [Path(__file__).with_name(f"compiled_{name}.py") for name in KERNELS]
_told: set[str] = set()


def folder() -> Path | None:
    """Where compiled kernels lie; ``None`` where the user has no home."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fbrl"
    except RuntimeError:
        return None


def cached(function: Any) -> Any:
    """The compiled function, whose machine code is kept on disk."""
    function._cache = DiskCache(function.py_func.__name__)
    return function


class DiskCache(_Cache):  # type: ignore[misc]
    """As numba calls it. A folder that cannot be written to, or a file that cannot be read, costs time and no more.

    Files are put in their place whole, so that processes that compile at the same time do not disturb each other.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def cache_path(self) -> str:
        """For numba's reports."""
        return str(folder())

    def enable(self) -> None:
        """It always is."""

    def disable(self) -> None:
        """It never is."""

    def flush(self) -> None:
        """Nothing waits to be written."""

    def path(self, sig: Any, codegen: Any) -> Path | None:
        """The file of a signature on this processor."""
        versions = sys.version, numba.__version__, llvmlite.__version__
        digest = hashlib.sha256(repr((versions, sig, codegen.magic_tuple())).encode())
        for source in SOURCES:
            digest.update(source.read_bytes())
        where = folder()
        return where and where / f"{self.name}-{digest.hexdigest()[:32]}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or ``None`` where it is to be compiled, which is said once for each type."""
        target_context.refresh()
        path = self.path(sig, target_context.codegen())
        try:
            if path is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(path.read_bytes()))
        except Exception:  # missing, cut off, of another kind: it is compiled anew
            pass
        tell(sig)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled function, where that can be."""
        path = self.path(sig, data.codegen)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(pickle.dumps(data._reduce()))
            os.replace(file.name, path)
        except OSError:
            pass


def tell(sig: Any) -> None:
    """Says that the scan is compiled, once for each type of numbers."""
    number = next(
        str(part.dtype) for part in sig if isinstance(part, types.Array) and isinstance(part.dtype, types.Float)
    )
    if number not in _told:
        _told.add(number)
        print(f"fbrl: compiling the scan for {number} on this processor, once: half a minute or so", file=sys.stderr)
