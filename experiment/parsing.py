"""Settings as they are given: YAML files, dotted arguments, and errors of one line."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from experiment.settings import GROUPS, Settings, SettingsError, check

KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "dict": "a mapping", "NoneType": "null"}


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, whose errors are a ``SettingsError`` of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says which setting is wrong, what is allowed and what was given."""
        message = one_line(message)
        for pattern, reword in (
            (r"unrecognized arguments: (?:--)?([^\s=]+)", self._unknown),
            (r"Group '(.+)' does not accept option '(.+)'", self._unknown),
            (r"Option '(.+)' is not accepted", self._unknown),
            (r'Parser key "(.+?)": .*Expected a.*(?:Got|Given) value: (.*)$', _wrong_type),
            (r'Parser key "(.+?)": (.*)', lambda found: f"{found[1]}: {found[2]}"),
            (r"Unexpected config: ?(.*)", lambda found: f"expected groups of settings, got {found[1] or 'nothing'}"),
        ):
            if found := re.match(pattern, message):
                raise SettingsError(reword(found))
        raise SettingsError(message)

    def _unknown(self, found: re.Match[str]) -> str:
        given = ".".join(found.groups())
        known = [action.dest for action in self._actions if action.dest != "help"]
        closest = difflib.get_close_matches(given, known)
        return f"unknown setting {given}; " + (f"the closest: {', '.join(closest)}" if closest else "see --help")


def _wrong_type(found: re.Match[str]) -> str:
    expected = re.findall(r"Expected an? (?:<class '(\w+)'>|\S*Literal\[(.+?)\])", found[0])
    allowed = [KINDS.get(kind, kind) or f"one of {values}" for kind, values in expected]
    return f"{found[1]} must be {' or '.join(allowed)}, got {found[2]}"


def one_line(message: object) -> str:
    """A message with its line breaks and runs of blanks folded."""
    return " ".join(str(message).split())


def add_settings(parser: OneLineParser) -> None:
    """Adds ``--config`` and every setting as ``--group.name`` to a parser."""
    parser.add_argument("--config", action="config", help="YAML file with settings; what follows it overrides it.")
    for name, group in GROUPS.items():
        parser.add_class_arguments(group, name)


def to_settings(namespace: Namespace) -> Settings:
    """The settings that a parser read, checked against each other.

    Raises:
        SettingsError: where a number is out of range or two sizes do not fit.
    """
    for name in GROUPS:
        if not isinstance(namespace[name], Namespace):
            raise SettingsError(f"{name} must be a group of settings, got {namespace[name]}")
    settings = Settings(**{name: group(**dict(namespace[name].items())) for name, group in GROUPS.items()})
    check(settings)
    return settings


def load_settings(path: str | Path) -> Settings:
    """The settings in a YAML file.

    Raises:
        SettingsError: where the file is missing, or holds something that is not a setting; the message names the file.
    """
    if not Path(path).is_file():
        raise SettingsError(f"{path}: no such file; expected a YAML file with settings")
    parser = OneLineParser(exit_on_error=True)
    add_settings(parser)
    try:
        return to_settings(parser.parse_args([f"--config={path}"]))
    except (SettingsError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None


def settings_from(groups: dict[str, Any]) -> Settings:
    """The settings that a mapping of groups says, as a YAML file would.

    Raises:
        SettingsError: where it holds something that is not a setting.
    """
    parser = OneLineParser(exit_on_error=True)
    add_settings(parser)
    return to_settings(parser.parse_object(groups))


def fail(error: object) -> NoReturn:
    """Ends a script on bad input: one line on stderr, exit code 2; notes on an error belong to it."""
    line = "; ".join(one_line(part) for part in (error, *getattr(error, "__notes__", [])))
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)
