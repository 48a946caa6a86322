"""What a study searches: settings by their dotted names, each with a range or a list of values.

    ppo.learning_rate: {low: 1.0e-4, high: 2.0e-3, log: true}
    core.n_layers: [1, 2, 4]

A range may have ``step`` in the place of ``log``. Kept as YAML says it, values of the settings' types.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.parsing import HINTS, settings_from, unknown
from experiment.reading import read_file
from experiment.rules import check_each
from experiment.settings import GROUPS, Settings, SettingsError
from experiment.typed import convert, number_kind, shown
from fbrl.cores.names import CORES, core_kwargs

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = dict[str, dict[str, Any] | list[Any]]
Values = dict[str, Any]  # of settings, by dotted names

SAME = ("env.id", "env.kwargs", "ppo.timesteps")  # and all of run: else trials could not be compared
FORM = "a list of values, or {low: ..., high: ...} with log: true or step: ... or neither"
DRAWS = 200  # configurations that a space is tried by


def read_space(path: Path) -> Space:
    """The space in a YAML file.

    Raises:
        SettingsError: where it cannot be read, or holds what is no setting, not to be searched, or no range or list.
    """
    if not os.path.isfile(path):
        raise SettingsError(f"--space {path}: no such file; expected a YAML file with settings and what they may be")
    said = read_file(path)
    if not said:
        raise SettingsError(f"{path}: expected at least one setting, such as ppo.learning_rate: [1.0e-4, 1.0e-3]")
    try:
        return {name: _part(name, value) for name, value in said.items()}
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _part(name: Any, said: Any) -> dict[str, Any] | list[Any]:
    if name in GROUPS:
        example = next(one for one in HINTS if one.startswith(f"{name}."))
        raise SettingsError(f"unknown setting {name}; a space has settings by their whole names, such as {example}")
    if name not in HINTS:
        raise SettingsError(unknown(f"{name}", list(HINTS)))
    if name in SAME or name.startswith("run."):
        raise SettingsError(f"{name} must be the same in all trials, which could not be compared otherwise")
    if isinstance(said, list):
        values = [convert(name, value, HINTS[name]) for value in said]
        if len({_name(value) for value in values}) < max(2, len(values)):
            raise SettingsError(f"{name} must have two values or more, none of them twice, got {shown(said)}")
        return values
    if isinstance(said, dict):
        return _range(name, said)
    raise SettingsError(f"{name} must be {FORM}, got {shown(said)}")


def _range(name: str, said: dict[Any, Any]) -> dict[str, Any]:
    kind = number_kind(HINTS[name])
    if kind is None:
        raise SettingsError(f"{name} must be a list of values, since it is no number, got {shown(said)}")
    if not {"low", "high"} <= said.keys() <= {"low", "high", "log", "step"}:
        raise SettingsError(f"{name} must be {FORM}, got {shown(said)}")
    found = {key: convert(f"{name}, {key},", value, bool if key == "log" else kind) for key, value in said.items()}
    low, high = found["low"], found["high"]
    if low >= high:
        raise SettingsError(f"{name}, low, must be less than high = {high}, got {low}")
    if not found.get("log", True):
        del found["log"]
    if "log" in found and low <= 0:
        raise SettingsError(f"{name}, low, must be more than 0 where log is true, got {low}")
    if "step" in found and ("log" in found or not 0 < found["step"] <= high - low):
        raise SettingsError(f"{name}, step, must be without log, and more than 0 up to high - low, got {found['step']}")
    return found


def default_space(settings: Settings, novelty: bool) -> Space:
    """Around a configuration, which is in it: the settings that matter, all of whose combinations can be trained.

    Args:
        settings: the configuration.
        novelty: whether its task can pay the bonus for new observations.
    """
    env, core, ppo = settings.env, settings.core, settings.ppo
    space: Space = {
        "ppo.learning_rate": {"low": min(1e-4, ppo.learning_rate), "high": max(2e-3, ppo.learning_rate), "log": True},
        "ppo.ent_coef": {"low": min(1e-3, ppo.ent_coef), "high": max(0.1, ppo.ent_coef), "log": True}
        if ppo.ent_coef
        else [0.0, 0.001, 0.003, 0.01, 0.03, 0.1],
    }
    sequences = [ppo.seq_len]
    if core.name != "none":
        sequences = [
            size for size in _around(ppo.seq_len) if not ppo.n_steps % size and not ppo.batch_size % size and size > 1
        ] or sequences
        space["ppo.seq_len"] = sequences
    fits = [size for size in _around(ppo.n_steps) if all(size % length == 0 for length in sequences)]
    space["ppo.n_steps"] = fits
    rollout = max(ppo.batch_size, min(fits) * env.n_envs)
    space["ppo.batch_size"] = [
        size
        for size in _around(ppo.batch_size)
        if 1 < size <= rollout and all(size % length == 0 for length in sequences)
    ]
    space["ppo.gamma"] = sorted({ppo.gamma, 0.95, 0.98, 0.99, 0.995, 0.999})
    space["ppo.gae_lambda"] = sorted({ppo.gae_lambda, 0.9, 0.95, 0.98})
    if core.name in CORES and settings.run.start_from is None:  # else its sizes are those of the agent to start from
        takes = core_kwargs(core.name, asdict(core))
        sizes = {
            "d_model": [size for size in _around(core.d_model) if "n_heads" not in takes or size % core.n_heads == 0],
            "n_layers": sorted({core.n_layers, 1, 2, 3}),
            "window": _around(core.window),
        }
        space |= {f"core.{name}": values for name, values in sizes.items() if name in takes}
    if novelty:
        space["env.novelty"] = sorted({env.novelty, 0.0, 0.01, 0.03, 0.1})
    return {name: part for name, part in space.items() if len(part) > 1}


def _around(size: int) -> list[int]:
    """Half, once and twice as much."""
    return [*([size // 2] if size > 1 and size % 2 == 0 else []), size, 2 * size]


def check_space(space: Space, settings: Settings) -> str:
    """Raises SettingsError where a value can never be used; says how much of the space cannot, if much of it.

    Args:
        space: what is searched.
        settings: the configuration, which says all other settings.
    """
    for name, part in space.items():
        for value in part if isinstance(part, list) else (part["low"], part["high"]):
            groups = asdict(settings)
            group, _, key = name.partition(".")
            groups[group][key] = value
            check_each(Settings(**{group: kind(**groups[group]) for group, kind in GROUPS.items()}))
    rng, refused, last = random.Random(0), 0, None
    for _ in range(DRAWS):
        try:
            with_values(settings, _drawn(space, rng))
        except SettingsError as error:
            refused, last = refused + 1, error
    if refused == DRAWS:
        raise SettingsError(f"none of {DRAWS} configurations drawn from the space can be trained; the last: {last}")
    share = f"{refused / DRAWS:.0%} of the configurations in the space cannot be trained, such as: {last}"
    return share if refused > DRAWS / 4 else ""


def _drawn(space: Space, rng: random.Random) -> Values:
    found: Values = {}
    for name, part in space.items():
        if isinstance(part, list):
            found[name] = rng.choice(part)
        elif isinstance(part["low"], int):
            found[name] = rng.randrange(part["low"], part["high"] + 1, part.get("step", 1))
        else:
            found[name] = rng.uniform(part["low"], part["high"])
    return found


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The configuration with other values; raises SettingsError where they cannot be used together."""
    groups = asdict(settings)
    for name, value in values.items():
        group, _, key = name.partition(".")
        groups[group][key] = value
    return settings_from(groups)


def own_values(space: Space, settings: Settings) -> Values | None:
    """What the configuration says of the settings that are searched; None where some of it is not in the space."""
    groups, found = asdict(settings), {}
    for name, part in space.items():
        group, _, key = name.partition(".")
        value = found[name] = groups[group][key]
        if isinstance(part, list):
            inside = value in part
        elif inside := value is not None and part["low"] <= value <= part["high"]:
            steps = (value - part["low"]) / part.get("step", 1)
            inside = "step" not in part or abs(steps - round(steps)) < 1e-9
        if not inside:
            return None
    return found


def _name(value: Any) -> Any:
    """A choice as Optuna keeps it."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def to_optuna(values: Values) -> Values:
    """Values as Optuna's parameters."""
    return {name: _name(value) for name, value in values.items()}


def from_optuna(space: Space, parameters: Mapping[str, Any]) -> Values:
    """Optuna's parameters as values."""
    found: Values = {}
    for name, part in space.items():
        given = parameters[name]
        found[name] = next(value for value in part if _name(value) == given) if isinstance(part, list) else given
    return found


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, part in space.items():
        if isinstance(part, list):
            found[name] = CategoricalDistribution([_name(value) for value in part])
        else:
            kind = IntDistribution if isinstance(part["low"], int) else FloatDistribution
            found[name] = kind(**part)
    return found
