"""Values as they are given, held against the types of settings."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}
MOST_NODES, MOST_TEXT = 10_000, 4_096  # of a value: parts, and characters


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line that names it."""


def convert(name: str, value: Any, hint: Any) -> Any:
    """The value as what the type says: 3 as 3.0 for a number, 1e6 as 1000000 for a whole number.

    Raises:
        SettingsError: where the value is not of the type; numbers must be finite.
    """
    for option in _options(hint):
        found = _as(name, value, option)
        if found is not NotImplemented:
            return found
    raise SettingsError(f"{name} must be {allowed(hint)}, got {shown(value)}")


def allowed(hint: Any) -> str:
    """What a type allows, in words."""
    return " or ".join(_kind(option) for option in _options(hint))


def is_optional(hint: Any) -> bool:
    """Whether null is allowed."""
    return type(None) in _options(hint)


def is_text(hint: Any) -> bool:
    """Whether text is allowed."""
    return str in _options(hint)


def number_kind(hint: Any) -> type[float] | type[int] | None:
    """``float`` or ``int`` where the type is a number, or null; None where it is something else."""
    return next((kind for kind in (float, int) if kind in _options(hint)), None)


def shown(value: Any) -> str:
    """A value as a YAML file says it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = " ".join(str(value).split()) if isinstance(value, str) else f"{value}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(option: Any) -> str:
    if get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, get_args(option)))}"
    if get_origin(option) is list and get_args(option) == (int,):
        return "a list of whole numbers"
    return KINDS[get_origin(option) or option]


def _as(name: str, value: Any, option: Any) -> Any:
    """The value as this type, or NotImplemented."""
    kind = get_origin(option) or option
    if kind is Literal:
        return value if isinstance(value, str) and value in get_args(option) else NotImplemented
    if kind in (int, float):
        return _number(value, kind)
    if not isinstance(value, kind):
        return NotImplemented
    if kind is str and (len(value) > MOST_TEXT or not value.isprintable()):
        raise SettingsError(f"{name} must be text without control characters, got {shown(value)!r}")
    if kind is list:
        return [convert(name, item, get_args(option)[0]) for item in value] if get_args(option)[0] is not Any else value
    if kind is dict and not all(isinstance(key, str) for key in value):
        raise SettingsError(f"{name} must be a mapping with names as keys, got {shown(value)}")
    return value


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300 or math.isnan(value):
        return NotImplemented
    if kind is float:
        return float(value)
    return int(value) if value == int(value) else NotImplemented
