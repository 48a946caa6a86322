"""What a study found: the best settings as a configuration, a table of the best trials, and Optuna's plots."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiment import files
from experiment.runs import run_path
from experiment.settings import SettingsError
from experiment.space import with_values
from experiment.study import Study

ROWS = 5  # of the table
ENOUGH = 4  # finished trials that the importances are taken from, at least


def write_findings(study: Study) -> str:
    """Writes best.yaml and the plots into the study's folder; what was found, as lines of text.

    Raises:
        SettingsError: where no trial has finished; nothing is written then.
    """
    trials = study.optuna.get_trials(deepcopy=False)
    counts = Counter(trial.state.name for trial in trials)
    if not counts["COMPLETE"]:
        whys = [trial.user_attrs["why"] for trial in trials if "why" in trial.user_attrs]
        last = f"; the last to fail: {whys[-1]}" if whys else ""
        raise SettingsError(f"{study.folder}: no trial has finished so far{last}")
    best = study.optuna.best_trial.number
    config = write_best(study, best)
    plots = draw(study, study.folder)
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "begun"}
    said = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state])
    return "\n".join(
        [
            f"{study.folder}: {said}; the best:",
            table(study),
            f"{', '.join(path.name for path in plots)}: Optuna's plots, in {study.folder}",
            f"{run_path(study.settings_of(best))}: the run of trial {best}",
            f"{config}: its settings; train them by: python train_agent.py --config {config}",
        ]
    )


def write_best(study: Study, number: int) -> Path:
    """Writes a trial's settings as a configuration, which trains where and how the study's own would."""
    settings = with_values(study.settings, study.values(number))
    noted = study.frozen(number).user_attrs
    good = f"{noted['measure']} {noted['best']:.3f}, a mean of {noted['mean']:.3f} over the training"
    head = f"# Trial {number} of {study.folder}: {good}.\n"
    file = study.folder / "best.yaml"
    files.write(file, head + yaml.safe_dump(asdict(settings), sort_keys=False))
    return file


def table(study: Study) -> str:
    """The best trials, best first, with the settings that were searched."""
    finished = [trial for trial in study.optuna.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    finished.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    noted = finished[0].user_attrs
    rows = [["trial", noted["measure"], "mean", "value", *(name.partition(".")[2] for name in study.space)]]
    for trial in finished[:ROWS]:
        numbers = [f"{trial.user_attrs['best']:.3f}", f"{trial.user_attrs['mean']:.3f}", f"{trial.value:.4f}"]
        rows.append([str(trial.number), *numbers, *map(_short, study.values(trial.number).values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(study: Study, folder: Path) -> list[Path]:
    """Draws what Optuna makes of the study, ``NAME.png`` each; importances only where enough trials differ."""
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as plots

    finished = [trial.value for trial in study.optuna.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    drawn: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "intermediate_values": plots.plot_intermediate_values,
        "slice": plots.plot_slice,
    }
    if len(finished) >= ENOUGH and len(set(finished)) > 1:
        drawn["importances"] = plots.plot_param_importances
    return [_save(plot, study, folder / f"{name}.png") for name, plot in drawn.items()]


def _save(plot: Callable[..., Any], study: Study, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with warnings.catch_warnings(), plt.rc_context():  # a style of Optuna's own
        warnings.simplefilter("ignore")  # Optuna's plots by matplotlib are experimental, it says
        figure = np.ravel(plot(study.optuna))[0].figure
        if path.stem == "slice":
            figure.set_size_inches(3 * len(study.space), 4)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    files.write(path, data.getvalue())
    return path
