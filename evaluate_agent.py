"""Plays a saved agent and says how often it succeeds: python evaluate_agent.py agents/NAME."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from jsonargparse import Namespace
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

import envs
from envs.batch import TaskEnv
from envs.batch_vec_env import BatchVecEnv
from envs.start_states import FixedStart, StartState, StartStatesError, start_states
from fbrl.cores.names import CORES
from fbrl.evaluation import Estimate, Summary, load_agent, play, summarise
from fbrl.policy import MemoryPolicy
from fbrl.runs import versions
from fbrl.settings import EnvSettings, OneLineParser, Settings, SettingsError, check_device, fail, load_settings
from fbrl.vec_env import FiniteVecEnv, stack_frames
from fbrl.video import record, save_gif

EPISODES = 200
VIDEO_EPISODES = 4
SEED = 1000  # apart from the seeds 0, 1, 2, ... that agents are usually trained with
INSTEAD = {  # what envs.make takes itself, and the settings that say it
    "previous_action": "env.previous_action",
    "previous_reward": "env.previous_reward",
    "seed": "run.seed to train, --seed to evaluate",
    "render_mode": "--video of evaluate_agent.py",
}


def make_parser() -> OneLineParser:
    """The command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("agent", help="folder with config.yaml and best.zip or last.zip; or a .zip beside config.yaml")
    parser.add_argument("--episodes", type=int, help=f"episodes to play (default: {EPISODES})")
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="play every start state of the task once, taking the most probable actions, and weigh it by its "
        "probability: the result is exact (for tasks with at most 1000 start states)",
    )
    parser.add_argument("--deterministic", action="store_true", help="take the most probable actions, do not sample")
    parser.add_argument("--control", help="zero-memory: empty the memory before every step")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the environments and of the sampled actions")
    parser.add_argument("--env.id", help="another task than the agent was trained on, with the same observations")
    parser.add_argument("--env.kwargs", type=dict | None, help='its keyword arguments, such as {"corridor": 40}')
    parser.add_argument("--json", help="new file for the result")
    parser.add_argument(
        "--video", help=f"new .gif file for {VIDEO_EPISODES} episodes and the attention over the memory"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def check_arguments(args: Namespace) -> None:
    """Raises SettingsError, naming the argument, what was given and what is allowed."""
    if args.exhaustive and args.episodes is not None:
        raise SettingsError("--episodes cannot go with --exhaustive, which plays every start state once")
    if args.episodes is not None and args.episodes < 1:
        raise SettingsError(f"--episodes must be at least 1, got {args.episodes}")
    if args.seed < 0:
        raise SettingsError(f"--seed must be at least 0, got {args.seed}")
    if args.control not in (None, "zero-memory"):
        raise SettingsError(f"--control must be zero-memory, got {args.control}")
    if args.video is not None and Path(args.video).suffix != ".gif":
        raise SettingsError(f"--video must end in .gif, got {args.video}")
    for name in ("json", "video"):
        file = args[name]
        if file is not None and not Path(file).parent.is_dir():
            raise SettingsError(f"--{name} {file}: there is no folder {Path(file).parent}")
        if file is not None and Path(file).exists():
            raise SettingsError(f"--{name} {file}: exists already and would be overwritten; give a new file")
    check_device("--device", args.device)


def find_agent(given: str) -> tuple[Path, Settings]:
    """The checkpoint, and the settings it was trained with; raises SettingsError where either is missing."""
    path = Path(given)
    if path.is_dir():
        checkpoint = next((path / name for name in ("best.zip", "last.zip") if (path / name).is_file()), None)
        if checkpoint is None:
            raise SettingsError(f"{path}: holds neither best.zip nor last.zip")
    elif path.is_file():
        checkpoint = path
    else:
        raise SettingsError(f"{path}: no such file or folder; expected a run's folder or a saved agent (.zip)")
    return checkpoint, load_settings(checkpoint.parent / "config.yaml")


def make_env(env: EnvSettings, **kwargs: Any) -> gym.Env[Any, Any]:
    """One environment; raises SettingsError where the task cannot be made."""
    task_kwargs = all_kwargs(env)
    try:
        return envs.make(env.id, **kwargs, **task_kwargs)
    except Exception as error:  # whatever a task says to keyword arguments that it does not know or like
        raise SettingsError(f"env.id {env.id} with env.kwargs {env.kwargs} cannot be made: {error}") from error


def make_batch(env: EnvSettings, seed: int, n_envs: int) -> BatchVecEnv | None:
    """``n_envs`` environments that are stepped at once, or None where the task is not written so.

    Raises:
        SettingsError: where the task cannot be made.
    """
    made = make_env(env)
    # anything around the task, such as the previous action or a time limit, is known to single environments only
    return BatchVecEnv(made.batch(n_envs), seed) if isinstance(made, TaskEnv) else None


def check_pictures(env: EnvSettings) -> None:
    """Raises SettingsError where the task draws no pictures for a video, or one observation is not what is seen."""
    if env.frame_stack is not None:
        raise SettingsError(f"--video: env.frame_stack must be null, got {env.frame_stack}")
    try:
        modes = make_env(env).metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise SettingsError(f"its render modes are {modes}, without rgb_array")
        made = make_env(env, render_mode="rgb_array")
        made.reset()
        if made.render_mode != "rgb_array" or made.render() is None:
            raise SettingsError(f"made for rgb_array, its render mode is {made.render_mode}")
        made.close()
    except Exception as error:  # whatever a task says where it cannot draw
        raise SettingsError(f"--video: {env.id} draws no pictures: {error}") from error


def all_kwargs(env: EnvSettings) -> dict[str, Any]:
    """What ``envs.make`` takes besides the id; raises SettingsError where env.kwargs holds what has its own setting."""
    for key, setting in INSTEAD.items():
        if key in env.kwargs:
            raise SettingsError(f"env.kwargs must not hold {key}; use {setting}")
    return {"previous_action": env.previous_action, "previous_reward": env.previous_reward, **env.kwargs}


def check_agent(path: Path, agent: PPO, settings: Settings) -> None:
    """Raises SettingsError where the agent is not the one that config.yaml describes, or cannot play the task."""
    config = path.with_name("config.yaml")
    remembers = isinstance(agent.policy, MemoryPolicy)
    if remembers != (settings.core.name != "none"):
        found = "a memory" if remembers else "no memory"
        raise SettingsError(f"{path}: the agent has {found}, but core.name is {settings.core.name} in {config}")
    if isinstance(agent.policy, MemoryPolicy):
        core_class, options = CORES[settings.core.name]
        made_with = {name: value for name, value in agent.policy.core_kwargs.items() if name in options}
        if not issubclass(agent.policy.core_class, core_class) or made_with != options:
            found = f"{agent.policy.core_class.__name__} {made_with or ''}".strip()
            raise SettingsError(
                f"{path}: the agent's core is {found}, but core.name is {settings.core.name} in {config}"
            )
        described = asdict(settings.core)
        for name, size in agent.policy.core_kwargs.items():
            if name in described and described[name] != size:
                raise SettingsError(f"{path}: core.{name} is {size}, but {described[name]} in {config}")
    stacked = stack_frames(FiniteVecEnv([partial(make_env, settings.env)]), settings.env.frame_stack)
    env = agent._wrap_env(stacked)  # turns pictures as Stable-Baselines3 does before training
    for name, saved, given in (
        ("observations", agent.observation_space, env.observation_space),
        ("actions", agent.action_space, env.action_space),
    ):
        if saved != given:
            what = f"the agent's {name} are {describe(saved)}"
            raise SettingsError(f"{path}: {what}, but those of {settings.env.id} are {describe(given)}")
    env.close()


def describe(space: spaces.Space[Any] | None) -> str:
    """A space in a few words: kind, and shape or size."""
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in space.items()) + "}"
    return f"Box{space.shape} up to {space.high.max():g}" if isinstance(space, spaces.Box) else str(space)


def evaluate(agent: PPO, env: EnvSettings, args: Namespace) -> Summary:
    """Plays the episodes that the command line asks for."""
    zero_memory = args.control == "zero-memory"
    if args.exhaustive:
        return exhaustive(agent, env, zero_memory)
    n_episodes = args.episodes or EPISODES
    n_envs = min(env.n_envs, n_episodes)
    seeds = range(args.seed, args.seed + n_envs)
    batch = make_batch(env, args.seed, n_envs)
    unstacked = batch or FiniteVecEnv([partial(make_env, env, seed=seed) for seed in seeds])
    vec_env = stack_frames(unstacked, env.frame_stack)
    set_random_seed(args.seed)
    return summarise(play(agent, vec_env, n_episodes, deterministic=args.deterministic, zero_memory=zero_memory))


def exhaustive(agent: PPO, env: EnvSettings, zero_memory: bool = False) -> Summary:
    """Plays every start state once with the most probable actions; raises SettingsError where there are too many."""
    try:
        states = start_states(env.id, **all_kwargs(env))
        vec_env = stack_frames(FiniteVecEnv([partial(_start_at, env, state) for state in states]), env.frame_stack)
        episodes = play(agent, vec_env, deterministic=True, zero_memory=zero_memory)
    except StartStatesError as error:
        raise SettingsError(f"--exhaustive: {error}") from None
    return summarise(episodes, [state.probability for state in states])


def _start_at(env: EnvSettings, state: StartState) -> gym.Env[Any, Any]:
    return FixedStart(make_env(env), state.draws)


def as_table(summary: Summary, title: str, args: Namespace) -> str:
    """The result for people."""
    if args.exhaustive:
        how = f"all {summary.episodes} start states, weighted by their probability; most probable actions; exact"
    else:
        actions = "most probable actions" if args.deterministic else "sampled actions"
        how = f"{summary.episodes} episode{'s' * (summary.episodes > 1)}, {actions}, seed {args.seed}"
    if args.control:
        how += "; memory emptied before every step"
    rows = [title, how, "", f"{'':8}{'mean':>10}   95 % interval"]
    for name, estimate, unit in (
        ("success", summary.success, "%"),
        ("return", summary.returns, ""),
        ("length", summary.length, " steps"),
    ):
        rows.append(f"{name:8}{_row(estimate, unit, args.exhaustive)}")
    return "\n".join(rows)


def _row(estimate: Estimate | None, unit: str, exact: bool) -> str:
    if estimate is None:
        return f"{'-':>10}   the task does not report it"
    digits = {"%": ".1%", "": ".3f", " steps": ".1f"}[unit]
    value, low, high = (format(number, digits) for number in estimate)
    interval = "exact" if exact else "none from one episode" if math.isnan(estimate.low) else f"{low} to {high}"
    return f"{value:>10}   {interval}"


def as_json(summary: Summary, checkpoint: Path, agent: PPO, env: EnvSettings, args: Namespace) -> dict[str, Any]:
    """The result for programs: shares 0 to 1, lengths in steps, ``null`` for what is not known."""
    result: dict[str, Any] = {
        "agent": str(checkpoint),
        "trained_steps": agent.num_timesteps,
        "task": env.id,
        "env_kwargs": env.kwargs,
        "episodes": summary.episodes,
        "seed": args.seed,
        "deterministic": args.deterministic or args.exhaustive,
        "exhaustive": args.exhaustive,
        "control": args.control,
    }
    for name, key, estimate in (
        ("success", "interval", summary.success),
        ("return", "return_interval", summary.returns),
        ("length", "length_interval", summary.length),
    ):
        result[name] = None if estimate is None else estimate.value
        known = estimate is not None and not math.isnan(estimate.low)
        result[key] = [estimate.low, estimate.high] if estimate is not None and known else None
    return result | {"versions": versions()}


def main(arguments: list[str] | None = None) -> None:
    """Evaluates, prints, and writes what is asked for."""
    args = make_parser().parse_args(arguments)
    check_arguments(args)
    checkpoint, settings = find_agent(args.agent)
    agent = load_agent(checkpoint, args.device)
    settings.env = replace(
        settings.env,
        id=args.env.id or settings.env.id,
        kwargs=settings.env.kwargs if args.env.kwargs is None else args.env.kwargs,
    )
    check_agent(checkpoint, agent, settings)
    if args.video:
        check_pictures(settings.env)  # refuse now and not after the evaluation
    summary = evaluate(agent, settings.env, args)
    task = " ".join([settings.env.id, *(f"{name}={value}" for name, value in settings.env.kwargs.items())])
    print(as_table(summary, f"{checkpoint} on {task}", args))
    if args.json:
        with Path(args.json).open("x") as file:
            json.dump(as_json(summary, checkpoint, agent, settings.env, args), file, indent=2)
            file.write("\n")
    if args.video:
        video_env = make_env(settings.env, seed=args.seed, render_mode="rgb_array")
        set_random_seed(args.seed)
        most_probable, zero_memory = args.deterministic or args.exhaustive, args.control == "zero-memory"
        steps = record(agent, video_env, VIDEO_EPISODES, deterministic=most_probable, zero_memory=zero_memory)
        save_gif(steps, args.video)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FloatingPointError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
