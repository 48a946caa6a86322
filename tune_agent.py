"""Searches for the best settings of an agent: a study of Optuna's, each of whose trials is a run.

python tune_agent.py --config configs/tmaze.yaml --trials 40
python tune_agent.py --config configs/tmaze.yaml --trials 60 --workers 2       # goes on with it, up to 60 trials
python tune_agent.py --config configs/tmaze.yaml --trials 40 --space space.yaml
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from experiment.output import reporting
from experiment.parsing import Arguments, OneLineParser, add_settings, to_settings
from experiment.settings import Settings, SettingsError
from experiment.tuning import How, tune

MOST = {"trials": 1_000_000, "workers": 1_000, "startup": 1_000_000}


def make_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(prog="tune_agent.py", description="Searches for the best settings of an agent.")
    parser.add_typed(
        "--trials", int | None, help="trials in all, whatever becomes of them; a study goes on up to these"
    )
    about = "YAML file with what is searched: settings, each with a list of values or {low: ..., high: ..., log: true}"
    parser.add_argument("--space", metavar="FILE", help=f"{about} (default: what matters, around the configuration)")
    parser.add_typed("--workers", int | None, help="trials at a time, a process and a thread each (default: the cores)")
    about = "trials that are drawn at random, and that have to finish before any is pruned"
    parser.add_typed("--startup", int, How.startup, help=f"{about} (default: {How.startup})")
    about = "share of ppo.timesteps before which no trial is pruned, 0 to 1"
    parser.add_typed("--warmup", float, How.warmup, help=f"{about} (default: {How.warmup})")
    add_settings(parser)
    return parser


def how_to_tune(args: Arguments) -> How:
    """What the arguments ask for; raises SettingsError, naming the argument, what was given and what is allowed."""
    if args.trials is None:
        raise SettingsError("--trials must be given: how many trials the study has in all")
    for name, most in MOST.items():
        value = args[name]
        if value is not None and not 1 <= value <= most:
            raise SettingsError(f"--{name} must be at least 1 and at most {most:,}, got {value}")
    if not 0 <= args.warmup <= 1:
        raise SettingsError(f"--warmup must be between 0 and 1, got {args.warmup}")
    if args.space is not None and (not args.space or not args.space.isprintable()):
        raise SettingsError(f"--space must be the name of a file, got {args.space!r}")
    space = None if args.space is None else Path(args.space).expanduser()
    return How(args.trials, space, args.workers, args.startup, args.warmup)


def parse(arguments: list[str]) -> tuple[Settings, How]:
    """The configuration, and how it is tuned."""
    args = make_parser().parse_args(arguments)
    return to_settings(args), how_to_tune(args)


def main() -> None:
    """The script."""
    settings, how = parse(sys.argv[1:])
    tune(settings, how, f"python tune_agent.py {shlex.join(sys.argv[1:])}")


if __name__ == "__main__":
    with reporting():
        main()
