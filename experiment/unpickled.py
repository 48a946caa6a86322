"""What a pickle says, with nothing imported and nothing run."""

from __future__ import annotations

import io
import pickle
from typing import Any


class Named:
    """Stands in the place of a class or function that a pickle names, and of what calling it would have given."""

    name: str  # "module.name"

    @classmethod
    def describe(cls, value: Any) -> str:
        """``value``, this class or something that it would have made, in words."""
        given = next((part for part in getattr(value, "args", ()) if isinstance(part, str)), "")
        return f"{cls.name}({given})" if given else cls.name

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """What a list would be filled with is left out."""

    def extend(self, values: Any) -> None:
        """As ``append``."""


class _Reader(pickle.Unpickler):
    """Gives ``Named`` for whatever it would have imported, and so calls nothing else."""

    def find_class(self, module: str, name: str) -> type[Named]:
        return type(name, (Named,), {"name": f"{module}.{name}"})

    def persistent_load(self, key: Any) -> Any:
        return None


def read(data: bytes) -> Any:
    """What a pickle holds, ``Named`` in the place of classes and functions.

    Raises:
        Exception: whatever a broken pickle makes the unpickler raise.
    """
    return _Reader(io.BytesIO(data)).load()
