"""Can what has to be remembered be read from the memory by a linear classifier, and for how long?

The memory at a step is told by the mean of its readable slots and its newest slot, or by the state of a recurrent core.
A logistic regression reads the label from it, cross-validated by episodes: it is never asked about an episode that it
was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fbrl.insight.recording import Episode, Step
from fbrl.insight.seen import Floats

IN_VIEW = "_in_view"  # the mark "cue_in_view" says when the mark "cue" is shown
FIRST = "first observation"
MOST_CLASSES, FEWEST_EPISODES, FOLDS = 16, 6, 5


class Probed(NamedTuple):
    """How well a label is read; N steps at which it could be known."""

    label: str
    classes: int
    chance: float  # the share of the most frequent class
    right: NDArray[np.bool_]  # (N,)
    age: NDArray[np.int64]  # (N,) steps since it was shown
    decides: NDArray[np.bool_]  # (N,) the steps marked as decisions


class CannotProbeError(ValueError):
    """There is nothing to read; the message says why."""


def probe(episodes: Sequence[Episode], label: str | None = None) -> Probed:
    """Reads a label from the memory before each step.

    Args:
        episodes: recorded with ``keep_memory``.
        label: an entry of ``info``; ``None`` takes "cue" where there is one, else the first observation.

    Raises:
        CannotProbeError: where the agent has no memory, or the label none or too many values, or the episodes are few.
    """
    if label is None:
        label = "cue" if any("cue" in step.marks for episode in episodes for step in episode.steps) else FIRST
    rows, values, groups, ages, decides = [], [], [], [], []
    for number, episode in enumerate(episodes):
        for step, value, age in _known(episode, label):
            rows.append(memory_vector(step))
            values.append(value)
            groups.append(number)
            ages.append(age)
            decides.append(step.marks.get("decision") == 1.0)
    _check(label, values, groups)
    right = _read(np.stack(rows), np.array(values), np.array(groups))
    counts = np.unique(values, return_counts=True)[1]
    return Probed(label, len(counts), counts.max() / len(values), right, np.array(ages), np.array(decides))


def memory_vector(step: Step) -> Floats:
    """The memory before a step as one vector."""
    if step.memory is None or not any(part.size for part in step.memory):
        raise CannotProbeError("the agent has no memory")
    parts = [part[0].astype(np.float64) for part in step.memory]
    if step.reads is None:
        return np.concatenate([part.ravel() for part in parts])
    slots, length = parts[0].reshape(len(parts[0]), -1), int(step.memory[1][0])
    return np.concatenate([slots[len(slots) - length :].mean(axis=0), slots[-1]])


def _known(episode: Episode, label: str) -> list[tuple[Step, str, int]]:
    """The steps before which the label was shown, with its value then (at the step before) and how many steps ago."""
    first = b"".join(part.tobytes() for part in episode.steps[0].observation.values()).hex()
    shown = label + IN_VIEW
    told = shown in episode.steps[0].marks  # else it counts as shown in the first step
    found, last = [], None
    for t, step in enumerate(episode.steps):
        if last is not None:
            value = first if label == FIRST else episode.steps[t - 1].marks.get(label)
            if value is not None:
                found.append((step, str(value), t - last))
        if (told and step.marks.get(shown) == 1.0) or (not told and t == 0):
            last = t
    return found


def _check(label: str, values: list[str], groups: list[int]) -> None:
    classes = len(set(values))
    if not values:
        raise CannotProbeError(f"info has no entry {label}, or it was never shown")
    if len(set(groups)) < FEWEST_EPISODES:
        raise CannotProbeError(f"{len(set(groups))} episodes are too few; give it {FEWEST_EPISODES} or more")
    if classes < 2:
        raise CannotProbeError(f"{label} is the same in all episodes")
    if classes > MOST_CLASSES:
        raise CannotProbeError(f"{label} has {classes} values; at most {MOST_CLASSES} classes can be read")


def _read(rows: Floats, values: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.bool_]:
    from sklearn.linear_model import LogisticRegression  # of the extra ``diagnose``
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right = np.zeros(len(values), dtype=np.bool_)
    for fit, held_out in GroupKFold(min(FOLDS, len(set(groups)))).split(rows, values, groups):
        if len(set(values[fit])) < 2:
            right[held_out] = values[held_out] == values[fit][0]
            continue
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        right[held_out] = reader.fit(rows[fit], values[fit]).predict(rows[held_out]) == values[held_out]
    return right
