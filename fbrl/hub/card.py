"""The card of an agent for the Hugging Face Hub: what it is, how well it plays, how to get it; Markdown with metadata.

The metadata is what the Hub reads: the library, the task, and the evaluation as its model-index has it.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

SECTION = "## From the Hub"
METADATA = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class CardError(ValueError):
    """What a card cannot be made of; the message is one line."""


class Score(NamedTuple):
    """How well an agent plays."""

    success: float | None  # share of the episodes; None where the task does not report it
    mean_reward: float  # sum of an episode's rewards, not discounted
    how: str  # how it was played, in words
    option: str  # of evaluate_agent.py, for the same again


def read_score(evaluation: Any, config: dict[str, Any], steps: int) -> Score:
    """What an evaluation says of an agent.

    Args:
        evaluation: as ``evaluate_agent.py --json`` writes it, or as it stands beside the agents of a suite.
        config: the agent's settings, by groups.
        steps: how many environment steps the agent has learned from.

    Raises:
        CardError: where it says nothing of that kind, or of another task, of other steps or of an emptied memory.
    """
    if not isinstance(evaluation, dict) or not _is_number(evaluation.get("return")):
        raise CardError("holds no evaluation, which has a return; evaluate_agent.py --json writes one")
    env = config["env"]
    played, trained = (evaluation.get("task"), evaluation.get("env_kwargs")), (env["id"], env.get("kwargs") or {})
    if "suite" not in evaluation and played != trained:  # a suite has names of its own for tasks
        raise CardError(f"is of {played[0]} {played[1]}, and the agent was trained on {trained[0]} {trained[1]}")
    if evaluation.get("control"):
        raise CardError(f"is of the control {evaluation['control']}, and not of the agent as it is")
    at = evaluation.get("trained_steps", evaluation.get("best_at"))
    if at != steps:
        raise CardError(f"is of an agent after {at} steps, and this one has learned from {steps}")
    success, episodes = evaluation.get("success"), evaluation.get("episodes")
    if success is not None and not (_is_number(success) and 0 <= success <= 1):
        raise CardError(f"must have a success from 0 to 1, got {success!r}")
    if evaluation.get("exhaustive", evaluation.get("exact")):
        return Score(success, evaluation["return"], f"all {episodes} start states, exact", " --exhaustive")
    if evaluation.get("deterministic", "suite" in evaluation):
        return Score(success, evaluation["return"], f"{episodes} episodes, most probable actions", " --deterministic")
    return Score(success, evaluation["return"], f"{episodes} episodes, sampled actions", "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def card(repo: str, config: dict[str, Any], score: Score | None, replay: str | None, text: str | None = None) -> str:
    """The card, in Markdown.

    Args:
        repo: "user/name" on the Hub.
        config: the agent's settings, by groups, with ``env.id``.
        score: how well it plays, where that is known.
        replay: the name of a film beside the card.
        text: the card that there is; it is kept, and its own metadata too, besides what is said here.

    Raises:
        CardError: where the metadata of ``text`` is none.
    """
    theirs, body = _split(text or _body(repo, config, score))
    said = metadata(repo, config, score)
    tags = theirs.get("tags") if isinstance(theirs.get("tags"), list) else []
    said["tags"] = list(dict.fromkeys([*said["tags"], *tags]))  # type: ignore[misc]
    body = re.sub(rf"\n*^{SECTION}$.*?(?=^## |\Z)", "\n\n", body, flags=re.DOTALL | re.MULTILINE)
    section = _section(repo, score, replay)
    return f"---\n{_yaml(theirs | said)}---\n\n{body.strip()}\n\n{section}"


def metadata(repo: str, config: dict[str, Any], score: Score | None) -> dict[str, Any]:
    """What the Hub reads; the evaluation is left out where there is none."""
    task, core = config["env"]["id"], config["core"].get("name", "feedback")
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", "fbrl", f"core-{core}", task]
    said: dict[str, Any] = {"library_name": "fbrl", "pipeline_tag": "reinforcement-learning", "tags": tags}
    if score is not None:
        metrics = [{"type": "mean_reward", "name": "mean reward", "value": round(score.mean_reward, 4)}]
        if score.success is not None:
            metrics.append({"type": "success_rate", "name": "success rate", "value": round(score.success, 4)})
        result = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": task, "type": task},
            "metrics": [metric | {"verified": False} for metric in metrics],
        }
        said["model-index"] = [{"name": repo.partition("/")[2], "results": [result]}]
    return said


def _yaml(value: dict[str, Any]) -> str:
    import yaml  # what the Hub's own library brings

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _split(text: str) -> tuple[dict[str, Any], str]:
    """A card's metadata, and what follows it."""
    import yaml

    text = text.replace("\r\n", "\n")
    found = METADATA.match(text)
    if not found:
        return {}, text
    try:
        said = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(f"its metadata is no YAML: {' '.join(str(error).split())}") from None
    if said is not None and not isinstance(said, dict):
        raise CardError("its metadata must be names and values")
    return said or {}, text[found.end() :]


def _body(repo: str, config: dict[str, Any], score: Score | None) -> str:
    """What the agent is, where no one has written it."""
    env = config["env"]
    kwargs = "".join(f", {key} {value}" for key, value in (env.get("kwargs") or {}).items())
    rows = []
    if score is not None:
        rows += [f"| success | {score.success:.3f} ({score.how}) |"] if score.success is not None else []
        rows += [f"| return | {score.mean_reward:.3f} ({score.how}) |"]
    for title, group in (("core", config["core"]), ("training", config.get("ppo") or {})):
        values = ", ".join(f"{key} {value}" for key, value in group.items() if value is not None)
        rows += [f"| {title} | {values} |"] if values else []
    about = f"An agent for `{env['id']}`{kwargs}: Stable-Baselines3's PPO with a memory, by fbrl."
    return "\n".join([f"# {repo.partition('/')[2]}", "", about, "", "| | |", "|---|---|", *rows, ""])


def _section(repo: str, score: Score | None, replay: str | None) -> str:
    """How to get the agent, and what it looks like at work."""
    name, option = repo.partition("/")[2], "" if score is None else score.option
    shown = [f"![the agent at work]({replay})", ""] if replay is not None and replay.endswith(".gif") else []
    lines = [
        SECTION,
        "",
        *shown,
        "```sh",
        f"python -m fbrl.hub pull {repo} {name}   # needs pip install fbrl[hub]; unpickles nothing",
        f"python evaluate_agent.py {name}{option}   # in a copy of fbrl's repository",
        "```",
        "",
        "The network is rebuilt from `config.yaml`, its sizes and its weights, and nothing that the .zip holds is run;",
        "`MemoryPPO.load` would unpickle it. `model.safetensors` holds the weights alone.",
    ]
    return "\n".join(lines) + "\n"
