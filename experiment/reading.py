"""YAML that is taken at its word: no key twice, numbers as people write them, and no more than fits a settings file."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from experiment.typed import MOST_NODES, SettingsError, shown

MOST_BYTES = 1_000_000  # of a file


class _Loader(yaml.SafeLoader):
    """Refuses keys that come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{shown(key)} is given twice", problem_mark=key_node.start_mark)
            seen.add(key) if isinstance(key, Hashable) else None
        return super().construct_mapping(node, deep)


# 1e-4 and 1e6 are numbers in YAML 1.2, in JSON and to people, and text to YAML 1.1
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_value(text: str) -> Any:
    """What a text says in YAML; raises SettingsError where it is no YAML."""
    try:
        value = yaml.load(text, _Loader)
        _check_size(value)
        return value
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise SettingsError(f"{line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character that YAML lacks, a date that is none
        raise SettingsError(" ".join(str(error).split())) from None
    except RecursionError:
        raise SettingsError("it is nested too deeply") from None


def read_file(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        SettingsError: where it cannot be read; the message names the file and the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a device has no size, and no end
        if len(data) > MOST_BYTES:
            raise SettingsError(f"{path}: must be at most {MOST_BYTES:,} bytes, got more")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    try:
        said = read_value(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: Problems parsing config: {error}") from None
    if not isinstance(said, dict):
        got = text.strip().splitlines()[0][:80] if text.strip() else "nothing"
        raise SettingsError(f"{path}: expected groups of settings, got {got}")
    return said


def lines_of(path: Path) -> dict[str, int]:
    """Where a YAML file that can be read says what: dotted names of groups' keys and the line of each, from 1."""
    root = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
    lines: dict[str, int] = {}
    for group, values in root.value if isinstance(root, yaml.MappingNode) else []:
        lines[group.value] = group.start_mark.line + 1
        for key, _ in values.value if isinstance(values, yaml.MappingNode) else []:
            lines[f"{group.value}.{key.value}"] = key.start_mark.line + 1
    return lines


def _check_size(value: Any) -> None:
    """Raises SettingsError where anchors expand to more than anyone writes, or to no end."""
    left, waiting = MOST_NODES, [value]
    while waiting:
        part = waiting.pop()
        left -= 1
        if left < 0:
            raise SettingsError(f"it must have at most {MOST_NODES:,} parts, with what its anchors stand for")
        if isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set)):
            waiting += part
