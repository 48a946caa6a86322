"""Environments in the middle of their episodes, packed and unpacked, where the pickle is known to hold all of them.

A pickle holds an environment whole if all that it consists of is Python's own data and objects whose attributes are
all that they are. It does not where a class pickles itself in a way of its own (``gymnasium.utils.EzPickle`` keeps
only the constructor's arguments), where a simulator written in another language stands behind it, or where state is
kept in a module or on a class. Such environments go on with new episodes.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import inspect
import io
import pickle
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

# packages of which it is known how their objects pickle, and that keep no state of an episode elsewhere
KNOWN = sys.stdlib_module_names | {
    *("numpy", "gymnasium", "minigrid", "stable_baselines3", "cloudpickle"),
    *("fbrl", "envs", "experiment"),
}
# packages that are written in another language too, and are no simulators
TOOLS = {
    *("torch", "scipy", "pandas", "PIL", "cv2", "imageio", "pygame", "matplotlib", "numba", "sklearn", "skimage"),
    *("yaml", "lxml", "google", "grpc", "tqdm", "rich", "pytest", "_pytest"),
}
PICKLING = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
MOVED = {"envs.symbolic": "fbrl.symbolic"}  # modules whose classes stand in the environments of older checkpoints


class _NotWhole(Exception):
    """Something of which the pickle holds a part; says what."""


@dataclass
class Packed:
    """Environments as bytes, or why there are none.

    Attributes:
        data: the environments; None where a pickle does not hold them whole.
        why: what is not held, in a few words.
        outside: what the environments depend on besides: of each module of their classes, digests of its source and of
            the data that it and its classes hold.
    """

    data: bytes | None = None
    why: str | None = None
    outside: dict[str, tuple[str, str]] = field(default_factory=dict)


def pack(env: VecEnv | None) -> Packed:
    """The environments with everything in them, if that can be."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(env)
    except _NotWhole as error:
        return Packed(why=str(error))
    except Exception as error:  # whatever an environment's attributes raise
        return Packed(why=f"they cannot be pickled ({type(error).__name__}: {error})")
    return Packed(buffer.getvalue(), None, {name: _outside(name) for name in sorted(pickler.modules)})


def unpack(packed: Packed) -> tuple[VecEnv | None, str | None]:
    """The environments, or None and why they cannot go on from where they were."""
    if packed.data is None:
        return None, packed.why
    try:
        env: VecEnv = _Unpickler(io.BytesIO(packed.data)).load()
    except Exception as error:  # a class that is gone, a simulator that is not here
        return None, f"they cannot be made from what was saved ({type(error).__name__}: {error})"
    why = pack(env).why or _changed(packed.outside)  # an older checkpoint holds what was not looked at
    if why is not None:
        env.close()
        return None, why
    return env, None


def _changed(outside: dict[str, tuple[str, str]]) -> str | None:
    for name, (source, data) in outside.items():
        now = _outside(name)
        if now[0] != source:
            return f"the code of {name} has changed since"
        if now[1] != data:
            return f"{name} keeps data outside the environments, which is not what it was"
    return None


class _Unpickler(pickle.Unpickler):
    """Finds classes where they are now."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(MOVED.get(module, module), name)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Looks at everything that it pickles; raises _NotWhole where that is not all of it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()  # of all classes
        self._seen: set[type] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if isinstance(
            obj, VecEnvWrapper
        ):  # which cannot be unpickled as they are: they ask an attribute they lack then
            self._look_at(kind)
            return _rebuild, (kind, {key: value for key, value in vars(obj).items() if key != "class_attributes"})
        if isinstance(obj, io.IOBase) and not isinstance(obj, (io.BytesIO, io.StringIO)):
            raise _NotWhole("they hold an open file")
        if kind not in self._seen and not hasattr(obj, "__qualname__"):  # which classes and functions have
            self._seen.add(kind)
            self._look_at(kind)
            _check_pickling(kind)
        return super().reducer_override(obj)

    def _look_at(self, kind: type) -> None:
        for base in kind.__mro__:
            if _package(base.__module__) not in sys.stdlib_module_names | {"numpy"}:
                self.modules.add(base.__module__)
            if _package(base.__module__) not in KNOWN:
                _check_modules(base)


def _rebuild(kind: type, attributes: dict[str, Any]) -> Any:
    obj: Any = object.__new__(kind)
    obj.__dict__.update(attributes, class_attributes=dict(inspect.getmembers(kind)))  # as ``VecEnvWrapper`` does
    return obj


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _check_pickling(kind: type) -> None:
    """Raises _NotWhole for a class that says itself what is pickled of it; those of known packages are known."""
    if issubclass(kind, EzPickle):
        raise _NotWhole(f"{kind.__name__} pickles only what it was made with")
    for name in PICKLING:
        definer = next((base for base in kind.__mro__ if name in vars(base)), object)
        written_in = (
            getattr(vars(definer).get(name), "__module__", None) or definer.__module__
        )  # a dataclass's: dataclasses
        if _package(definer.__module__) not in KNOWN and _package(written_in) not in KNOWN:
            raise _NotWhole(f"{definer.__name__} pickles itself in a way of its own")


def _check_modules(kind: type) -> None:
    """Raises _NotWhole where the module of a class uses a package that is not written in Python, as simulators are."""
    for value in list(vars(sys.modules.get(kind.__module__, ModuleType(""))).values()):
        origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        package = _package(origin) if isinstance(origin, str) else ""
        if package and package not in KNOWN | TOOLS and _is_compiled(package):
            raise _NotWhole(f"{kind.__name__} uses {package}, which may keep state that no pickle holds")


def _is_compiled(package: str) -> bool:
    """Whether any module of the package is machine code."""
    loaded = [module for name, module in list(sys.modules.items()) if _package(name) == package]
    loaders = [getattr(getattr(module, "__spec__", None), "loader", None) for module in loaded]
    return any(isinstance(loader, importlib.machinery.ExtensionFileLoader) for loader in loaders)


def _outside(name: str) -> tuple[str, str]:
    """Digests of a module's source and, but for known packages, of the data in it and in its classes."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file is not None and Path(file).is_file() else b""
    data: Any = None
    if module is not None and _package(name) not in KNOWN:
        names = [(key, value) for key, value in vars(module).items() if not key.startswith("__")]
        classes = [value for _, value in names if isinstance(value, type) and value.__module__ == name]
        data = [_plain(dict(names), name, set())]
        data += [_plain({k: v for k, v in vars(kind).items() if k[:2] != "__"}, name, set()) for kind in classes]
    return hashlib.sha256(source).hexdigest(), hashlib.sha256(repr(data).encode()).hexdigest()


def _plain(value: Any, module: str, seen: set[int]) -> Any:
    """Data as text and tuples that are the same in another process; what is not data by its type only."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if id(value) in seen:
        return "again"
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes() if value.dtype != object else ""
    if isinstance(value, dict):
        return tuple((_plain(key, module, seen), _plain(item, module, seen)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(str(_plain(item, module, seen)) for item in value))
    if isinstance(value, (list, tuple, deque)):
        return tuple(_plain(item, module, seen) for item in value)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return _plain(value.bit_generator.state, module, seen)
    if isinstance(value, np.random.RandomState):
        return _plain(value.get_state(legacy=False), module, seen)
    if type(value).__module__ == module and hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value).__qualname__, _plain(vars(value), module, seen)
    return type(value).__qualname__
