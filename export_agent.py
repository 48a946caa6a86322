"""Writes a saved agent's step to a file that runs without fbrl: python export_agent.py agents/NAME agent.onnx."""

from __future__ import annotations

import os
from pathlib import Path

from experiment import files
from experiment.agents import check_agent, find_agent
from experiment.output import reporting
from experiment.parsing import Arguments, OneLineParser
from experiment.saved import load
from experiment.settings import SettingsError
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.export import OneStep, save_onnx, save_program
from fbrl.policy import MemoryPolicy

KINDS = {".onnx": save_onnx, ".pt2": save_program}


def make_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("agent", help="folder with config.yaml and best.zip or last.zip; or a .zip beside config.yaml")
    parser.add_argument("file", help="new file: .onnx for onnxruntime and others, .pt2 for torch.export.load")
    parser.add_argument(
        "--keys-values",
        action="store_true",
        help="hand keys and values from step to step in the place of memory vectors: faster where the window is large, "
        "and twice as large (core.name feedback)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the agent's file, which runs the code in it: for agents with classes of their own",
    )
    return parser


def check_file(file: Path) -> None:
    """Raises SettingsError where the file is of no known kind, or cannot be written."""
    if file.suffix not in KINDS:
        raise SettingsError(f"FILE must end in {' or '.join(KINDS)}, got {file}")
    if not str(file).isprintable():
        raise SettingsError(f"FILE must be the name of a file, got {str(file)!r}")
    if not os.path.isdir(file.parent):
        raise SettingsError(f"{file}: there is no folder {file.parent}")
    files.check_new(file, str(file))


def export(args: Arguments) -> None:
    """Loads the agent and writes its step."""
    file = Path(args.file)
    check_file(file)
    checkpoint, settings = find_agent(args.agent)
    agent = load(checkpoint, settings, "cpu", trust=args.trust)
    check_agent(checkpoint, agent, settings)
    if not isinstance(agent.policy, MemoryPolicy):
        raise SettingsError(
            f"{checkpoint}: core.name none is Stable-Baselines3's own PPO, whose documentation exports it"
        )
    if settings.env.normalize_observations:
        raise SettingsError(
            f"{checkpoint}: env.normalize_observations is true, and an exported step holds no statistics"
        )
    if args.keys_values and not isinstance(agent.policy.actor_core, FeedbackTransformer):
        raise SettingsError(f"{checkpoint}: --keys-values needs core.name feedback, got {settings.core.name}")
    try:
        OneStep(agent.policy, args.keys_values)
    except ValueError as error:
        raise SettingsError(f"{checkpoint}: {error}") from error
    try:
        with files.new_file(file) as made:
            KINDS[file.suffix](agent.policy, made, args.keys_values)
    except ModuleNotFoundError as error:
        raise SettingsError(f"{file}: {error}; pip install fbrl[onnx]") from error
    print(f"{file}: one step of {checkpoint}, the {settings.core.name} core; {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    with reporting():
        export(make_parser().parse_args())
