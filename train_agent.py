"""Trains one agent: settings -> environments -> model -> learn -> evaluate -> save.

python train_agent.py --config configs/tmaze.yaml --ppo.gamma 0.995
python train_agent.py --resume runs/TMaze-v0_feedback_0
python train_agent.py --resume runs/TMaze-v0_feedback_0 --ppo.timesteps 1e6
torchrun --nproc-per-node 4 train_agent.py --config configs/tmaze.yaml
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from experiment.distributed import of_first, process_group, say
from experiment.output import reporting
from experiment.parsing import OneLineParser, add_settings, load_settings, to_settings
from experiment.runs import run_folder, run_path
from experiment.settings import Settings, SettingsError
from experiment.training import control_of, final_line, final_title, train

LONGER = "ppo.timesteps"  # what may be given beside --resume


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path | None]:
    """The settings, and the run to resume if any.

    Raises:
        SettingsError: where an argument, the file or a setting cannot be used.
    """
    parser = OneLineParser(prog="train_agent.py", description="Trains one agent and evaluates it.")
    parser.add_argument("--resume", type=str, default=None, metavar="RUN", help="Go on with the run in this folder.")
    add_settings(parser)
    given = sys.argv[1:] if arguments is None else arguments
    namespace = parser.parse_args(given)
    if namespace.resume is None:
        return to_settings(namespace), None
    if not namespace.resume or not namespace.resume.isprintable():
        raise SettingsError(f"--resume must be the folder of a run, got {namespace.resume!r}")
    if others := [name for name, _ in namespace.given if name != LONGER]:
        only = f"only --{LONGER}, to train longer"
        raise SettingsError(f"--resume takes the run's own settings and no others, got --{' --'.join(others)} ({only})")
    folder = Path(namespace.resume).expanduser()
    if not os.path.isfile(folder / "config.yaml"):
        raise SettingsError(f"--resume {folder}: holds no run; expected a folder with config.yaml and last.zip")
    settings = load_settings(folder / "config.yaml")
    if namespace.given:
        settings.ppo.timesteps = to_settings(namespace).ppo.timesteps
    elif (folder / "finished").exists():
        plays = f"python evaluate_agent.py {folder} plays its agent"
        raise SettingsError(f"--resume {folder}: this run has finished; {plays}, --{LONGER} N trains it longer")
    return settings, folder


def control_to_resume(control: Settings, resume: Path | None) -> Path | None:
    """The control's folder where it goes on, as its run does; raises SettingsError where a new one has no place."""
    folder = run_path(control)
    if resume is not None and (folder / "last.zip").is_file():
        return folder
    run_folder(control)  # refuses now and not after the training
    return None


def main() -> None:
    """The script; of several processes that ``torchrun`` starts, each runs it."""
    with reporting(), process_group():
        settings, resume = of_first(parse)
        control = control_of(settings)
        again = None if control is None else of_first(partial(control_to_resume, control, resume))
        lines = [of_first(partial(final_line, settings, train(settings, resume)))]
        if control is not None:
            lines.append(of_first(partial(final_line, control, train(control, again))))
        say(final_title(settings))
        say("\n".join(lines))


if __name__ == "__main__":
    main()
