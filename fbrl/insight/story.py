"""What an episode tells about the memory, in sentences: when it matters, and what is read then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbrl.insight.recording import Episode, by_step, landmarks
from fbrl.insight.seen import Floats

DECISION = "decision"  # the mark of ``info`` at a step whose action takes what was remembered
LITTLE = 0.05  # nats
HALF = 0.5


def deciding_step(episode: Episode) -> int:
    """The first step marked as a decision; where none is, the one at which the memory moves the policy most."""
    decisions = landmarks(episode).get(DECISION)
    if decisions:
        return decisions[0]
    effects = [0.0 if step.seen.effect is None else float(step.seen.effect[0]) for step in episode.steps]
    return int(np.argmax(effects))


def mass_on(episode: Episode, t: int, mark: str) -> Floats | None:
    """How much of the attention of step ``t`` stands on the steps that ``mark`` is true at, (L, H)."""
    reads, steps = episode.steps[t].reads, landmarks(episode).get(mark)
    if reads is None or steps is None:
        return None
    earlier = [step for step in steps if step < t]
    mass: Floats = by_step(reads, t)[..., earlier].sum(axis=-1)
    return mass


def story(episode: Episode) -> list[str]:
    """The sentences about one episode; none for an agent without memory."""
    t = deciding_step(episode)
    step = episode.steps[t]
    if step.seen.effect is None:
        return []
    effect = float(step.seen.effect[0])
    decides = DECISION in landmarks(episode)
    at = f"Step {t}, where it decides" if decides else f"Step {t}, where the memory matters most"
    if effect < LITTLE:
        return [f"{at}: with an empty memory the policy would hardly differ ({effect:.2f} nats)."]
    told = [f"{at}: with an empty memory the policy would be {effect:.2f} nats away."]
    if step.reads is not None and t > 0:
        told += _reading(by_step(step.reads, t))
        told += _on_marks(episode, t)
    return told


def _reading(reads: Floats) -> list[str]:
    told = []
    for layer, weights in enumerate(reads):
        head, step = np.unravel_index(weights.argmax(), weights.shape)
        share = float(weights[head, step])
        if share > 0:
            age = reads.shape[-1] - int(step)
            told.append(
                f"Layer {layer + 1} reads step {step} most, {age} step{'s' * (age > 1)} ago "
                f"(head {head + 1}: {share:.0%} of its attention)."
            )
    return told


def _on_marks(episode: Episode, t: int) -> list[str]:
    told = []
    for mark in landmarks(episode):
        mass = None if mark == DECISION else mass_on(episode, t, mark)
        if mass is not None and mass.any():
            best = ", ".join(
                f"layer {layer + 1} {heads.mean():.0%} (its best head {heads.max():.0%})"
                for layer, heads in enumerate(mass)
            )
            told.append(f"How much of its attention is on steps with “{words(mark)}”: {best}.")
    return told


def summary(episodes: Sequence[Episode]) -> list[str]:
    """The sentences about all episodes that were played."""
    successes = [episode.success for episode in episodes if episode.success is not None]
    told = [f"{len(episodes)} episodes were played" + (f", {sum(successes)} with success." if successes else ".")]
    for mark in sorted({mark for episode in episodes for mark in landmarks(episode)} - {DECISION}):
        found = [mass_on(episode, deciding_step(episode), mark) for episode in episodes]
        masses = [mass for mass in found if mass is not None]
        if masses:  # where the mark was never true, nothing can be read that bears it
            heads = sum(bool((mass >= HALF).any()) for mass in masses)
            layers = sum(bool((mass.mean(axis=1) >= HALF).any()) for mass in masses)
            told.append(
                f"Where it decides, some head has half or more of its attention on steps with “{words(mark)}” "
                f"in {heads} of {len(episodes)} episodes; some layer, on average over its heads, in {layers}."
            )
    return told


def words(mark: str) -> str:
    """The name of a mark as words."""
    return mark.replace("_", " ")
