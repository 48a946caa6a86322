"""Plays a saved agent and says how often it succeeds: python evaluate_agent.py agents/NAME."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from experiment import files
from experiment.agents import check_agent, find_agent
from experiment.diagnosing import check_diagnosis, diagnose
from experiment.insight import VIDEO_EPISODES, check_attention, check_recordable, write_page, write_stills, write_video
from experiment.output import reporting
from experiment.parsing import Arguments, OneLineParser
from experiment.playing import How, as_json, as_table, check_pictures, evaluate
from experiment.rules import MOST, MOST_OF_ALL, check_device
from experiment.saved import load
from experiment.settings import EnvSettings, SettingsError

FILMS = (".gif", ".mp4")
FILES = ("json", "video", "html", "stills", "diagnose")  # what is written


def make_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("agent", help="folder with config.yaml and best.zip or last.zip; or a .zip beside config.yaml")
    parser.add_typed("--episodes", int | None, help=f"episodes to play (default: {How.episodes})")
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="play every start state of the task once, taking the most probable actions, and weigh it by its "
        "probability: the result is exact (for tasks with at most 1000 start states)",
    )
    parser.add_argument("--deterministic", action="store_true", help="take the most probable actions, do not sample")
    parser.add_argument("--control", help="zero-memory: empty the memory before every step")
    parser.add_typed("--seed", int, How.seed, help="seed of the environments and sampled actions")
    parser.add_argument("--env.id", help="another task than the agent was trained on, with the same observations")
    parser.add_typed("--env.kwargs", dict[str, Any] | None, help='its keyword arguments, such as {"corridor": 40}')
    about = f"cut an episode after so many steps, which is then not solved (default: {How.max_steps:,})"
    parser.add_typed("--max_steps", int, How.max_steps, help=about)
    about = f"environments that play together, at most (default: {How.n_envs}); with --exhaustive, env.n_envs do"
    parser.add_typed("--envs", int, How.n_envs, help=about)
    parser.add_argument("--json", help="new file for the result")
    parser.add_argument(
        "--video",
        help=f"new .gif or .mp4 file for {VIDEO_EPISODES} episodes and what the memory is read for; .mp4 needs "
        "pip install fbrl[video]",
    )
    parser.add_argument("--html", help="new .html file: episodes to walk through, successes and failures")
    parser.add_argument(
        "--diagnose",
        help="new folder for text, JSON and charts: what the memory is good for, and what one might do; needs "
        "pip install fbrl[diagnose]",
    )
    parser.add_argument("--probe", help="with --diagnose: entries of info to read from the memory, such as cue,goal")
    parser.add_argument("--stills", help="new folder for a picture of each of some episodes: which step reads which")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the agent's file, which runs the code in it: for agents with classes of their own",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def check_arguments(args: Arguments) -> None:
    """Raises SettingsError, naming the argument, what was given and what is allowed."""
    if args.exhaustive and args.episodes is not None:
        raise SettingsError("--episodes cannot go with --exhaustive, which plays every start state once")
    for name, least, most in (
        ("episodes", 1, 10_000_000),
        ("max_steps", 1, MOST_OF_ALL),
        ("seed", 0, MOST["run.seed"]),
        ("envs", 1, MOST["run.eval_envs"]),
    ):
        value = args[name]
        if value is not None and value < least:
            raise SettingsError(f"--{name} must be at least {least}, got {value}")
        if value is not None and value > most:
            raise SettingsError(f"--{name} must be at most {most:,}, got {value}")
    if args.control not in (None, "zero-memory"):
        raise SettingsError(f"--control must be zero-memory, got {args.control}")
    for name, endings in (("video", FILMS), ("html", (".html",))):
        if args[name] is not None and Path(args[name]).suffix not in endings:
            raise SettingsError(f"--{name} must end in {' or '.join(endings)}, got {args[name]}")
    if args.video is not None and Path(args.video).suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise SettingsError(f"--video {args.video}: an .mp4 needs pip install fbrl[video]; a .gif needs nothing more")
    if args.probe is not None and args.diagnose is None:
        raise SettingsError(f"--probe {args.probe} goes with --diagnose only")
    for name in FILES:
        if args[name] is not None:
            check_new_file(name, args)
    check_device("--device", args.device)


def task_to_play(env: EnvSettings, args: Arguments) -> tuple[EnvSettings, str]:
    """The agent's own task, or another, whose keyword arguments are its own; and what is to be said of that."""
    given, said = args["env.kwargs"], ""
    if args["env.id"] not in (None, env.id) and given is None and env.kwargs:
        said = f"env.kwargs {env.kwargs} of {env.id} are not handed to {args['env.id']}; --env.kwargs gives it its own"
        given = {}
    return replace(env, id=args["env.id"] or env.id, kwargs=env.kwargs if given is None else given), said


def check_new_file(name: str, args: Arguments) -> None:
    """Raises SettingsError where the argument names no file that can be made, or the same as another."""
    file = args[name]
    if not file or not file.isprintable():
        raise SettingsError(f"--{name} must be the name of a file, got {file!r}")
    for other in FILES:
        if (
            other != name
            and (args[other] or "\0").isprintable()
            and Path(args[other]).resolve() == Path(file).resolve()
        ):
            raise SettingsError(f"--{name} {file}: must be another file than that of --{other}")
    if not os.path.isdir(Path(file).parent):
        raise SettingsError(f"--{name} {file}: there is no folder {Path(file).parent}")
    files.check_new(Path(file), f"--{name} {file}")


def check_what_is_drawn(args: Arguments, agent: PPO, env: EnvSettings) -> None:
    """Refuses now, and not after the evaluation, what cannot be drawn."""
    for name in ("video", "html", "stills"):
        if args[name]:
            check_recordable(env, f"--{name}")
    if args.video:
        check_pictures(env)
    if args.stills:
        check_attention(agent, "--stills")
    if args.diagnose:
        check_diagnosis(env, args.diagnose)


def how_to_play(args: Arguments) -> How:
    """What the arguments ask for."""
    episodes = How.episodes if args.episodes is None else args.episodes
    zero_memory = args.control == "zero-memory"
    return How(episodes, args.exhaustive, args.deterministic, zero_memory, args.seed, args.max_steps, args.envs)


def main(arguments: list[str] | None = None) -> None:
    """Evaluates, prints, and writes what is asked for."""
    args = make_parser().parse_args(arguments)
    check_arguments(args)
    how = how_to_play(args)
    checkpoint, settings = find_agent(args.agent)
    agent = load(checkpoint, settings, args.device, trust=args.trust)
    settings.env, said = task_to_play(settings.env, args)
    check_what_is_drawn(args, agent, settings.env)
    summary = evaluate(agent, settings.env, how, partial(check_agent, checkpoint, agent, settings))
    task = " ".join([settings.env.id, *(f"{name}={value}" for name, value in settings.env.kwargs.items())])
    if said:
        print(said)
    print(as_table(summary, f"{checkpoint} on {task}", how))
    if args.json:
        result = as_json(summary, checkpoint, agent, settings.env, how)
        files.write_new(Path(args.json), json.dumps(result, indent=2) + "\n")
    if args.video:
        with files.new_file(Path(args.video)) as file:
            write_video(agent, settings.env, how, file)
    if args.html:
        with files.new_file(Path(args.html)) as file:
            write_page(agent, settings.env, how, file, checkpoint, task)
    if args.stills:
        with files.new_folder(Path(args.stills)) as folder:
            write_stills(agent, settings.env, how, folder)
    if args.diagnose:
        about = as_json(summary, checkpoint, agent, settings.env, how)
        labels = args.probe.split(",") if args.probe else []
        with files.new_folder(Path(args.diagnose)) as folder:
            text = diagnose(agent, settings.env, how, summary, folder, labels, about)
        print()
        print(text)


if __name__ == "__main__":
    with reporting():
        main()
