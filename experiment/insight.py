"""What a saved agent does with its memory, written to files that people look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

from envs.cue import with_cue
from envs.start_states import FixedStart, StartStatesError, start_states
from experiment.environments import all_kwargs, closed_after, make_env
from experiment.playing import How, check_pictures
from experiment.settings import EnvSettings, SettingsError
from fbrl.insight.page import about, save_page
from fbrl.insight.recording import Episode, action_names, can_show_attention, choose, record
from fbrl.insight.still import save_still
from fbrl.insight.story import summary
from fbrl.insight.video import save_video
from fbrl.policy import MemoryPolicy
from fbrl.vec_env import NamedEnv, StepLimit

VIDEO_EPISODES, STILLS = 4, 4
PAGE_EACH = 3  # successes and failures on a page
PLAYED_STEPS, EMPTIED_PLAYED = 600, 200  # after so many no more episodes are played to find them
EMPTIED = "As it never failed, the failures to choose from are its own with the memory emptied before every step."
PAGE_STEPS, EMPTIED_STEPS = 500, 60  # of an episode, the first so many


def episodes(
    agent: PPO, env: EnvSettings, how: How, pictures: bool, max_steps: int = 300, keep_memory: bool = False
) -> Iterator[Episode]:
    """Episodes without end, or with ``how.exhaustive`` one from every start state, recorded.

    Raises:
        SettingsError: where the task has too many start states.
    """
    set_random_seed(how.seed)
    for made in _environments(env, how, "rgb_array" if pictures else None):
        yield record(
            agent,
            made,
            deterministic=how.most_probable,
            zero_memory=how.zero_memory,
            max_steps=max_steps,
            keep_memory=keep_memory,
        )


def _environments(env: EnvSettings, how: How, render_mode: str | None) -> Iterator[gym.Env[Any, Any]]:
    if not how.exhaustive:
        with made_to_watch(env, how.seed, how.max_steps, render_mode is not None) as made:
            while True:
                yield made
    try:
        for state in start_states(env.id, **all_kwargs(env)):
            start = FixedStart(make_env(env, render_mode=render_mode), state.draws)
            with closed_after(NamedEnv(with_cue(StepLimit(start, how.max_steps)))) as made:
                yield made
    except StartStatesError as error:
        raise SettingsError(f"--exhaustive: {error}") from None


def write_video(agent: PPO, env: EnvSettings, how: How, file: Path) -> None:
    """A film of the first episodes."""
    save_video(list(islice(episodes(agent, env, how, pictures=True), VIDEO_EPISODES)), file)


def write_stills(agent: PPO, env: EnvSettings, how: How, folder: Path) -> None:
    """A picture of each of the first episodes, time against time, in a folder."""
    for number, episode in enumerate(islice(episodes(agent, env, how, pictures=False), STILLS), start=1):
        title = f"episode {number}: {episode.outcome}, return {episode.returns:.2f}, {episode.length} steps"
        save_still(episode, folder / f"episode_{number}.png", title)


def write_page(agent: PPO, env: EnvSettings, how: How, file: Path, checkpoint: Path, task: str) -> None:
    """A page with episodes that succeeded and episodes that failed."""
    draws = draws_pictures(env)
    played = episodes(agent, env, how, draws, PAGE_STEPS)
    shown, taken = choose(played, PAGE_EACH, None if how.exhaustive else PLAYED_STEPS)
    told = summary(taken)
    if isinstance(agent.policy, MemoryPolicy) and all(episode.success for episode in taken):
        # sampled: the most probable actions without memory may walk in circles to the end
        without = replace(how, exhaustive=False, deterministic=False, zero_memory=True)
        emptied, _ = choose(episodes(agent, env, without, draws, EMPTIED_STEPS), PAGE_EACH, EMPTIED_PLAYED)
        shown += [episode for episode in emptied if not episode.success]
        told.append(EMPTIED)
    title = f"{checkpoint.parent.name}/{checkpoint.name}" + (", memory emptied before every step" * how.zero_memory)
    with closed_after(make_env(env)) as made:
        names = action_names(made, agent.action_space)
    save_page(shown, file, about(agent, title, task), names, told)


def made_to_watch(env: EnvSettings, seed: int, max_steps: int, pictures: bool) -> AbstractContextManager[NamedEnv]:
    """One environment to look at: closed after a ``with``."""
    made = make_env(env, seed=seed, render_mode="rgb_array" if pictures else None)
    return closed_after(NamedEnv(with_cue(StepLimit(made, max_steps))))


def check_recordable(env: EnvSettings, argument: str) -> None:
    """Raises SettingsError where one observation of the environment is not what the agent sees."""
    if env.frame_stack is not None:
        raise SettingsError(f"{argument}: env.frame_stack must be null, got {env.frame_stack}")


def check_attention(agent: PPO, argument: str) -> None:
    """Raises SettingsError where the agent reads no past steps that could be drawn."""
    if not can_show_attention(agent):
        raise SettingsError(f"{argument}: the agent's core has no attention: which steps it reads cannot be drawn")


def draws_pictures(env: EnvSettings) -> bool:
    """Whether the task draws pictures."""
    try:
        check_pictures(env)
    except SettingsError:
        return False
    return True
