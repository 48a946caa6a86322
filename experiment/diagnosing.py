"""The diagnosis of a saved agent: plays it with its memory as it is and tampered with, measures, writes a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from experiment.environments import closed_after, make_env
from experiment.insight import episodes
from experiment.playing import How, evaluate
from experiment.runs import versions
from experiment.settings import EnvSettings, SettingsError
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.evaluation import Summary
from fbrl.insight import charts
from fbrl.insight.contamination import contaminate
from fbrl.insight.diagnosis import (
    Finding,
    ages,
    comparable,
    contaminating,
    need,
    performance,
    probing,
    reading,
    writing,
)
from fbrl.insight.probe import CannotProbeError, Probed, probe
from fbrl.insight.recording import Episode, can_show_attention
from fbrl.insight.tampering import Tampered, cut_to, shuffled
from fbrl.policy import MemoryPolicy

RECORDED, RECORDED_STEPS = 64, 200  # episodes that are looked at step by step, and steps of each
NOT_IN_A_NAME = re.compile(r"[^\w.-]")
CONTAMINATED = 12  # of them, into which an odd observation is put
NEEDS = ("matplotlib", "sklearn")


def check_diagnosis(env: EnvSettings, folder: str) -> None:
    """Raises SettingsError where what a diagnosis takes is not installed, or the environment cannot be recorded."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(f"--diagnose {folder}: needs pip install fbrl[diagnose] ({', '.join(missing)} is missing)")
    if env.frame_stack is not None:
        raise SettingsError(f"--diagnose {folder}: env.frame_stack must be null, got {env.frame_stack}")
    if env.action_masks:
        raise SettingsError(f"--diagnose {folder}: env.action_masks must be false, and this agent takes masks")


def diagnose(
    agent: PPO, env: EnvSettings, how: How, whole: Summary, folder: Path, labels: Sequence[str], about: dict[str, Any]
) -> str:
    """Measures, writes diagnosis.txt, diagnosis.json and charts to a folder, and hands the text back.

    Args:
        agent: as it is.
        env: the task.
        how: how it is played.
        whole: how well it then does.
        folder: an empty one.
        labels: entries of ``info`` for the probe; none means the cue, or what the episode shows first.
        about: what stands at the head of diagnosis.json.
    """
    summaries = comparable({"whole": whole, **_tampered(agent, env, how)})
    played = episodes(agent, env, how, pictures=False, max_steps=RECORDED_STEPS, keep_memory=True)
    recorded = list(islice(played, RECORDED))
    by_age = ages(recorded)
    probed = [_probe(recorded, label) for label in labels or (None,)]
    after = _contaminate(agent, env, recorded, how.seed)
    core = getattr(agent.policy, "actor_core", None)
    remembers = isinstance(agent.policy, MemoryPolicy)
    first = "no step" if isinstance(core, FeedbackTransformer) else "the step itself"
    findings = [
        need(summaries, recorded),
        *performance(summaries),
        *_not_tampered(agent),
        *([*reading(by_age, first), writing(recorded)] if remembers else []),
        *map(probing, probed),
        contaminating(after, getattr(core, "window", None)),
    ]
    charts.draw_performance(summaries, folder / "performance.png")
    if by_age is not None:
        charts.draw_ages(by_age, folder / "ages.png")
    for one in probed:
        if isinstance(one, Probed):
            charts.draw_probe(one, folder / f"probe_{NOT_IN_A_NAME.sub('_', one.label)}.png")
    if after is not None and len(after):
        charts.draw_contamination(after, folder / "contamination.png")
    return _write(findings, folder, about)


def _write(findings: list[Finding], folder: Path, about: dict[str, Any]) -> str:
    text = "\n".join(finding.as_text() for finding in findings)
    (folder / "diagnosis.txt").write_text(text + "\n")
    told = about | {"versions": versions(), "findings": [finding.as_dict() for finding in findings]}
    (folder / "diagnosis.json").write_text(json.dumps(told, indent=2) + "\n")
    return text


def _tampered(agent: PPO, env: EnvSettings, how: How) -> dict[str, Summary]:
    """How well the agent does with its memory emptied and, where it keeps steps one by one, shuffled and cut short."""
    if not isinstance(agent.policy, MemoryPolicy) or how.zero_memory:
        return {}
    found = {"emptied": evaluate(agent, env, replace(how, zero_memory=True))}
    if can_show_attention(agent):
        order = Tampered(agent, shuffled(np.random.default_rng(how.seed)))
        found["shuffled"] = evaluate(order, env, how)
        window = int(agent.policy.actor_core.window) // 2  # type: ignore[arg-type]
        while window:
            found[f"window {window}"] = evaluate(Tampered(agent, cut_to(window)), env, how)
            window //= 2
    return found


def _not_tampered(agent: PPO) -> list[Finding]:
    if not isinstance(agent.policy, MemoryPolicy) or can_show_attention(agent):
        return []
    says = "Its memory could not be shuffled or cut short: this core keeps no steps one by one that it would attend to."
    return [Finding("shuffled", says)]


def _probe(recorded: list[Episode], label: str | None) -> Probed | str:
    try:
        return probe(recorded, label)
    except CannotProbeError as error:
        return str(error)


def _contaminate(agent: PPO, env: EnvSettings, recorded: list[Episode], seed: int) -> Any:
    if not isinstance(agent.policy, MemoryPolicy):
        return None
    with closed_after(make_env(env)) as made:
        return contaminate(agent.policy, recorded[:CONTAMINATED], made.observation_space, seed)
