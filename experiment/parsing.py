"""Settings as they are given: YAML files, dotted arguments, and errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from experiment.reading import lines_of, read_file, read_value
from experiment.rules import PATHS, check
from experiment.settings import GROUPS, Settings, SettingsError
from experiment.typed import allowed, convert, is_optional, is_text, shown

HINTS = {f"{group}.{name}": hint for group, kind in GROUPS.items() for name, hint in get_type_hints(kind).items()}
NAMES = re.compile(r"[^\s,;:]+")  # words of a message, which may be names of settings or groups


class Arguments(argparse.Namespace):
    """What a command line says; names with a dot are read as ``args["env.id"]``."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are a ``SettingsError`` of one line, and whose values may have types of ours."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.hints: dict[str, Any] = {}

    def add_typed(self, name: str, hint: Any, default: Any = None, **kwargs: Any) -> None:
        """Adds ``--name``, whose value is given in YAML and held against a type."""
        self.hints[name.removeprefix("--")] = hint
        self.add_argument(name, default=default, **kwargs)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """The arguments; raises SettingsError where one is unknown or of another type."""
        words = None if args is None else list(args)
        found, others = self.parse_known_args(words, Arguments() if namespace is None else namespace)
        if others:
            known = [action.dest for action in self._actions if action.dest != "help"]
            raise SettingsError(unknown(others[0].removeprefix("--").partition("=")[0], known))
        for name, hint in self.hints.items():
            if isinstance(found[name], str):
                setattr(found, name, given(f"--{name}", found[name], hint))
        return found

    def error(self, message: str) -> NoReturn:
        """Raises SettingsError."""
        raise SettingsError(one_line(message))


def unknown(name: str, known: Sequence[str]) -> str:
    """Says that there is no such setting, and which are like it."""
    closest = difflib.get_close_matches(name, known)
    return f"unknown setting {shown(name)}; " + (f"the closest: {', '.join(closest)}" if closest else "see --help")


def given(name: str, text: str, hint: Any) -> Any:
    """The value that an argument's text says; text is taken as it is where the type is text."""
    if is_text(hint):
        return convert(name, None if text == "null" and is_optional(hint) else text, hint)
    try:
        value = read_value(text)
    except SettingsError:
        value = text
    return convert(name, value, hint)


def one_line(message: object) -> str:
    """A message with its line breaks and runs of blanks folded."""
    return " ".join(str(message).split())


class _Given(argparse.Action):
    """Notes what was given, in its order: what comes later overrides what came before."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not isinstance(values, str):  # argparse takes a value of -- for the end of the options
            parser.error(f"argument --{self.dest}: expected one argument")
        namespace.given = [*namespace.given, (self.dest, values)]


def add_settings(parser: OneLineParser) -> None:
    """Adds ``--config`` and every setting as ``--group.name`` to a parser."""
    parser.set_defaults(given=[])
    about = "YAML file with settings; what follows it overrides it."
    parser.add_argument("--config", action=_Given, metavar="FILE", help=about)
    for group, kind in GROUPS.items():
        section = parser.add_argument_group(f"{group}: {(kind.__doc__ or '').splitlines()[0]}")
        explained = _explained(kind)
        for field in dataclasses.fields(kind):
            default = getattr(kind(), field.name)
            kinds = allowed(HINTS[f"{group}.{field.name}"])
            shown_default = shown(default) if default is None else str(default)
            text = f"{explained[field.name]} (type: {kinds}, default: {shown_default})".replace("%", "%%")
            section.add_argument(f"--{group}.{field.name}", action=_Given, metavar=field.name.upper(), help=text)


def _explained(kind: type) -> dict[str, str]:
    """What the docstring's ``Args`` say of each setting."""
    _, _, text = (kind.__doc__ or "").partition("Args:\n")
    entries = re.split(r"^ {8}(\w+): ", text, flags=re.MULTILINE)[1:]
    return {name: one_line(words) for name, words in zip(entries[::2], entries[1::2], strict=True)}


def to_settings(arguments: Any) -> Settings:
    """The settings that a parser read, checked against each other.

    Raises:
        SettingsError: where a file cannot be read, something is no setting, of another type or out of range, or two
            sizes do not fit.
    """
    said: dict[str, Any] = {}  # dotted name -> value, of the type; the last one counts
    files: dict[str, Path] = {}  # the file that said it
    for name, text in arguments.given:
        if name == "config":
            path = Path(text).expanduser()
            of_file = _of_file(path)
            said |= of_file
            files |= dict.fromkeys(of_file, path)
        else:
            said[name] = given(name, text, HINTS[name])
            files.pop(name, None)
    try:
        return _make(said)
    except SettingsError as error:
        first = next((name for name in NAMES.findall(str(error)) if name in said), None)
        raise (_placed(files[first], error) if first in files else error) from None


def _of_file(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise SettingsError(f"{path}: File does not exist")
    groups = read_file(path)
    try:
        return _flat(groups)
    except SettingsError as error:
        raise _placed(path, error) from None


def _placed(path: Path, error: SettingsError) -> SettingsError:
    """The error with the file's name, and the line of the setting that it names first, where the file has that."""
    lines = lines_of(path)
    line = next((f"line {lines[name]}: " for name in NAMES.findall(str(error)) if name in lines), "")
    return SettingsError(f"{path}: {line}{error}")


def _flat(groups: dict[Any, Any]) -> dict[str, Any]:
    """Groups of settings as dotted names and values of the type."""
    said = {}
    for group, values in groups.items():
        if not isinstance(values, dict):
            if group in GROUPS:
                raise SettingsError(f"{group} must be a group of settings, got {shown(values)}")
            raise SettingsError(unknown(f"{group}", list(HINTS)))
        for key, value in values.items():
            name = f"{group}.{key}"
            if name not in HINTS:
                raise SettingsError(unknown(name, list(HINTS)))
            said[name] = convert(name, value, HINTS[name])
    return said


def _make(said: dict[str, Any]) -> Settings:
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in said.items():
        group, _, key = name.partition(".")
        groups[group][key] = _expanded(name, value) if name in PATHS and value is not None else value
    settings = Settings(**{name: kind(**groups[name]) for name, kind in GROUPS.items()})
    check(settings)
    return settings


def _expanded(name: str, path: str) -> str:
    """A path with the home folder and environment variables that it names."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    if re.search(r"\$\{?\w|^~", expanded):
        raise SettingsError(f"{name} must name a home folder and variables that there are, got {path}")
    return expanded


def load_settings(path: str | Path) -> Settings:
    """The settings in a YAML file.

    Raises:
        SettingsError: where the file is missing, or holds something that is not a setting; the message names the file.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise SettingsError(f"{path}: no such file; expected a YAML file with settings")
    said = _of_file(path)
    try:
        return _make(said)
    except SettingsError as error:
        raise _placed(path, error) from None


def settings_from(groups: dict[str, Any]) -> Settings:
    """The settings that a mapping of groups says, as a YAML file would.

    Raises:
        SettingsError: where it holds something that is not a setting.
    """
    return _make(_flat(groups))


def fail(error: object) -> NoReturn:
    """Ends a script on bad input: one line on stderr, exit code 2; notes on an error belong to it."""
    line = "; ".join(one_line(part) for part in (error, *getattr(error, "__notes__", [])))
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)
