"""Draws the reports of benchmarks, each beside its file. Which room has what to draw says its own ``draw.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiment.parsing import fail
from experiment.settings import SettingsError

Rows = list[dict[str, Any]]
Drawn = Mapping[str, Callable[[Rows], Figure]]  # what draws the reports of each benchmark


def draw(source: Path, drawn: Drawn) -> Path:
    """Draws one report beside itself; raises SettingsError where the file is none."""
    report = json.loads(source.read_text())
    if not isinstance(report, dict) or report.get("benchmark") not in drawn:
        raise SettingsError(f"{source}: no report of a benchmark; expected {', '.join(drawn)}")
    try:
        figure = drawn[report["benchmark"]](report["rows"])
    except KeyError as error:
        raise SettingsError(f"{source}: a report without {error}; expected what this version writes") from None
    target = source.with_suffix(".png")
    figure.savefig(target)
    plt.close(figure)
    return target


def main(drawn: Drawn, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """The script that draws the reports it is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    try:
        for source in parser.parse_args(arguments).json:
            print(draw(source, drawn))
    except (ValueError, OSError) as error:
        fail(error)
