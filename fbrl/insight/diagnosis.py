"""What a trained agent's memory is good for: figures, what they mean in words, and what one might do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fbrl.evaluation import Summary, wilson
from fbrl.insight.probe import Probed
from fbrl.insight.recording import Episode, by_step
from fbrl.insight.seen import Floats

CLEAR = 0.1  # a difference in success, or in the share of the return, that is worth a word
GOOD, WORST = 0.95, 0.5  # what a probe reads
LONGER = 3  # times the length: an agent that does not get to an end
NATS = 0.05  # a policy this close is the same


@dataclass
class Finding:
    """One line of a diagnosis.

    Attributes:
        key: its name.
        says: what was measured and what it means.
        advice: what one might do; empty where there is nothing to do.
        figures: for programs.
    """

    key: str
    says: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        return f"- {self.says}" + (f"\n  -> {self.advice}" if self.advice else "")


def score(summary: Summary) -> float:
    """Success where the task reports it, else the mean return."""
    return summary.returns.value if summary.success is None else summary.success.value


def _told(summary: Summary) -> str:
    return f"return {summary.returns.value:.3f}" if summary.success is None else f"success {summary.success.value:.1%}"


def _is_worse(summary: Summary, whole: Summary) -> bool:
    """Whether it is clearly worse: by a tenth of what there is, and outside of the interval where there is one."""
    scale = 1.0 if whole.success is not None else max(abs(whole.returns.value), abs(summary.returns.value), 1e-9)
    estimate = whole.returns if whole.success is None else whole.success
    outside = not estimate.low <= score(summary) or np.isnan(estimate.low)
    return bool(score(whole) - score(summary) > CLEAR * scale and outside)


def comparable(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """The same, with a success of none where all episodes were cut before the task said whether it was solved."""
    if summaries["whole"].success is None:
        return summaries
    return {
        name: replace(one, success=wilson(0, one.episodes)) if one.success is None else one
        for name, one in summaries.items()
    }


def performance(summaries: dict[str, Summary]) -> list[Finding]:
    """What is left of the success with a memory that was tampered with; ``whole`` is the agent as it is."""
    whole = summaries["whole"]
    found = [Finding("whole", f"As it is: {_told(whole)} over {whole.episodes} episodes.", figures=figures(whole))]
    if "emptied" in summaries:
        found.append(_emptied(summaries["emptied"], whole))
    if "shuffled" in summaries:
        found.append(_shuffled(summaries["shuffled"], whole))
    windows = {int(name.split()[-1]): one for name, one in summaries.items() if name.startswith("window")}
    if windows:
        found.append(_windows(windows, whole))
    return found


def _emptied(emptied: Summary, whole: Summary) -> Finding:
    told = f"Memory emptied before every step: {_told(emptied)}, against {_told(whole)}."
    if _is_worse(emptied, whole):
        told += " The agent lives on its memory."
        if emptied.length.value > LONGER * whole.length.value:
            told += (
                f" Without it, it does not even guess: its episodes last {emptied.length.value:.0f} steps instead of "
                f"{whole.length.value:.0f}."
            )
        return Finding("emptied", told, figures=figures(emptied))
    return Finding(
        "emptied",
        f"{told} The agent does about as well without its memory.",
        "either this task needs none (train the memoryless control, run.control: true: if it does as well, use it) or "
        "the agent has not yet learned to use it (train longer, explore more)",
        figures(emptied),
    )


def _shuffled(shuffled: Summary, whole: Summary) -> Finding:
    told = f"Slots in another order at every step: {_told(shuffled)}."
    if _is_worse(shuffled, whole):
        return Finding("shuffled", f"{told} When something was written matters to it.", figures=figures(shuffled))
    return Finding(
        "shuffled",
        f"{told} It reads what was written and hardly cares when.",
        "nothing need be done; a task whose answer depends on the order would not be solved in this way",
        figures(shuffled),
    )


def _windows(windows: dict[int, Summary], whole: Summary) -> Finding:
    told = ", ".join(f"{window}: {_told(one)}" for window, one in sorted(windows.items(), reverse=True))
    enough = [window for window, one in sorted(windows.items()) if not _is_worse(one, whole)]
    numbers = {str(window): figures(one) for window, one in windows.items()}
    if not enough:
        says = f"Window cut short ({told}). It takes more than half of its window."
        return Finding("window", says, "try a larger core.window: what lies beyond may be missed too", numbers)
    says = f"Window cut short ({told}). {_plural(enough[0], 'slot')} would do for this agent."
    advice = f"core.window {2 * enough[0]} would leave room and cost less" if 2 * enough[0] < max(windows) else ""
    return Finding("window", says, advice, numbers)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def figures(summary: Summary) -> dict[str, Any]:
    """A summary for JSON."""
    success = summary.success
    return {
        "success": None if success is None else success.value,
        "success_interval": None if success is None or np.isnan(success.low) else [success.low, success.high],
        "return": summary.returns.value,
        "length": summary.length.value,
        "episodes": summary.episodes,
    }


def ages(episodes: Sequence[Episode]) -> Floats | None:
    """How much of its attention each layer pays to what is so old: (L, 1 + M), the first to no slot; None without."""
    if not episodes or episodes[0].steps[0].reads is None:
        return None
    total = np.zeros((episodes[0].steps[0].reads.shape[0], episodes[0].steps[0].reads.shape[-1]))
    steps = 0
    for episode in episodes:
        for t, step in enumerate(episode.steps):
            if t == 0 or step.reads is None:
                continue
            reads = by_step(step.reads, t).mean(axis=1)[:, ::-1]  # by age, 1 step ago first
            total[:, 0] += 1 - reads.sum(axis=1)
            readable = min(reads.shape[1], total.shape[1] - 1)
            total[:, 1 : 1 + readable] += reads[:, :readable]
            steps += 1
    return total / max(steps, 1)


def reading(by_age: Floats | None, first: str) -> list[Finding]:
    """How old what is read is."""
    if by_age is None:
        says = "How old what is read is cannot be told: this core does not attend to past steps one by one."
        return [Finding("age", says, "the probe and the contamination below say how long it holds what it knows")]
    found = []
    for layer, row in enumerate(by_age, start=1):
        slots = row[1:]
        read, age = float(slots.sum()), np.arange(1, len(row))
        name = f"age_{layer}"
        if read < 0.05:
            says = f"Layer {layer} hardly reads the memory: {row[0]:.0%} of its attention goes to {first}."
            found.append(Finding(name, says, "one layer less may do", {"read": read}))
            continue
        share = slots.cumsum() / read
        half, most = (1 + min(int(np.searchsorted(share, part)), len(age) - 1) for part in (0.5, 0.9))
        mean = float((slots * age).sum() / read)
        says = (
            f"Layer {layer} pays {read:.0%} of its attention to the memory, the rest to {first}. Half of what it reads "
            f"is at most {_plural(half, 'step')} old, nine tenths at most {_plural(most, 'step')} (mean {mean:.1f})."
        )
        advice = ""
        if most >= 0.9 * len(age):
            advice = "it reads up to the end of its window: a larger core.window may help"
        numbers = {"read": read, "half": half, "nine_tenths": most, "mean": mean, "by_age": slots.round(5).tolist()}
        found.append(Finding(name, says, advice, numbers))
    return found


def writing(episodes: Sequence[Episode]) -> Finding:
    """What the layers write."""
    rows = [step.seen.written[0] for episode in episodes for step in episode.steps if step.seen.written is not None]
    if not rows:
        return Finding("written", "What the layers write cannot be told: this core writes no mix of its layers.")
    shares = np.mean(rows, axis=0)
    names = ["the input", *(f"layer {layer}" for layer in range(1, len(shares)))]
    told = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))
    says, advice = f"A memory vector is made of: {told} (shares of length).", ""
    if shares[0] > 0.8:
        says += " It is hardly more than the observation: the feedback is not used."
        advice = "to track a state the higher layers have to be heard; train longer, or check that the task needs it"
    elif shares[0] < 0.05:
        advice = "observations themselves are hardly kept; if they must be recalled as they were, that may hurt"
    return Finding("written", says, advice, {"shares": shares.round(5).tolist()})


def probing(probed: Probed | str) -> Finding:
    """What a linear probe reads; a string says why there is none."""
    if isinstance(probed, str):
        return Finding("probe", f"No linear probe: {probed}.")
    right = float(probed.right.mean())
    decides = probed.right[probed.decides]
    at = f", at decisions {decides.mean():.1%}" if len(decides) else ""
    says = (
        f"A linear probe reads “{probed.label}” ({probed.classes} values, the most frequent {probed.chance:.0%}) from "
        f"the memory in {right:.1%} of the steps after it was shown{at}."
    )
    by_age = probe_by_age(probed)
    last = by_age[-1][2]
    numbers = {"right": right, "chance": probed.chance, "by_age": [list(row) for row in by_age]}
    numbers["at_decisions"] = float(decides.mean()) if len(decides) else None
    key = decides.mean() if len(decides) else right
    if key >= GOOD:
        says += " It is there, in plain sight of the heads."
        return Finding("probe", says, "if success is low all the same, the policy is at fault, not the memory", numbers)
    if right <= probed.chance + CLEAR:
        says += " It is not there in a form that a linear layer could read."
        advice = "the memory has not learned to keep it: explore more so that it pays, train longer, or move it closer"
        return Finding("probe", says, advice, numbers)
    says += f" It fades: {last:.0%} after {by_age[-1][0]} to {by_age[-1][1]} steps."
    return Finding("probe", says, "a longer ppo.seq_len lets the gradient reach back further", numbers)


def probe_by_age(probed: Probed) -> list[tuple[int, int, float, int]]:
    """(first age, last age, share read right, steps) for ages 1, 2, 3 to 4, 5 to 8, ..."""
    found, first, last = [], 0, 1
    while first < probed.age.max():
        inside = (probed.age > first) & (probed.age <= last)
        if inside.any():
            found.append((first + 1, last, float(probed.right[inside].mean()), int(inside.sum())))
        first, last = last, 2 * last
    return found


def contaminating(after: Floats | None, window: int | None) -> Finding:
    """What one odd observation does to the policy from then on."""
    if after is None or not len(after):
        return Finding("contamination", "No odd observation was shown: there is no memory that would keep it.")
    mean = after[:, 0]
    shown = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= len(mean)]
    told = ", ".join(f"{max(mean[k - 1], 0.0):.2f} after {_plural(k, 'step')}" for k in shown)
    says = f"One observation that is noise moves the policy; in nats: {told}."
    late = after[len(mean) // 2 :]
    tail = float(np.average(late[:, 0], weights=late[:, 2]))  # few cases are that late
    numbers = {"mean": mean.round(5).tolist(), "ninth_decile": after[:, 1].round(5).tolist(), "tail": tail}
    if mean[0] < NATS and tail < NATS:
        return Finding("contamination", f"{says} It shrugs it off.", figures=numbers)
    if tail < max(mean[0] / 3, NATS):
        return Finding("contamination", f"{says} It comes back by itself.", figures=numbers)
    if tail < mean[0]:
        says += f" It comes back slowly: late in an episode it is off by {tail:.2f}."
        return Finding("contamination", says, figures=numbers)
    longer = f" The odd step leaves the window of {window}; what was made of it does not." if window else ""
    advice = "train with noise of the kind that you expect (an observation wrapper), or reset the memory after a fault"
    return Finding("contamination", f"{says} It does not come back within an episode.{longer}", advice, numbers)


def need(summaries: dict[str, Summary], episodes: Sequence[Episode]) -> Finding:
    """Whether this task, as this agent plays it, needs memory at all."""
    effects = [float(step.seen.effect[0]) for one in episodes for step in one.steps if step.seen.effect is not None]
    if not effects or "emptied" not in summaries:
        return Finding("need", "This agent has no memory: whether the task needs one, an agent with one would tell.")
    effect, worse = float(np.mean(effects)), _is_worse(summaries["emptied"], summaries["whole"])
    says = f"The memory moves the policy by {effect:.2f} nats a step on average. "
    numbers = {"effect": effect, "needs_memory": worse}
    if worse:
        says += "Without it success falls: as this agent plays, the task needs memory."
        advice = "whether a policy trained without memory does worse, the memoryless control tells (run.control: true)"
    elif effect > NATS:
        says += "It acts differently with it, and no better: what it keeps does not pay here."
        advice = "compare with the memoryless control (run.control: true); the task may not need memory"
    else:
        says += "It acts the same without it: the task does not need memory, or the agent does not know that it does."
        advice = "train the memoryless control (run.control: true); where both fail, the memory was never rewarded"
    return Finding("need", says, advice, numbers)
