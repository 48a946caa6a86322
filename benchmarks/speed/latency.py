"""The time of one ``predict``: beside RecurrentPPO's, and late in a long episode.

    python -m benchmarks.speed.latency [--quick] [--device cuda] [--threads 1] [--repeats 15] [--json FILE]

``contenders.py`` says how the two agents are made alike. Both are shown the same observations, which a random
agent met, and carry their state from step to step; actions are the most probable ones; they take turns in blocks of
steps. Reports nothing where our steps one at a time do not end in the memory and at the actions of one scan over all of
them, or where the numbers of parameters differ by more than a tenth. Of each size (D, L, H, M) and each batch:

- ``milliseconds``: of one call, each agent's median over the blocks;
- ``over_recurrent_ppo``: RecurrentPPO's over ours: above 1, ours is the faster. RecurrentPPO's ``predict`` runs the
  actor's LSTM alone;
- ``late_over_early``: for batch 1, what a step of ours costs ``--steps`` steps (default: 100,000) into an episode over
  what it costs 1,000 steps into it. The states at both points are kept, and blocks that go on from them measured in
  turns, four times ``--repeats``;
- ``episode``: for batch 1, the median milliseconds of a step in each hundredth of that episode, as it is played.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from benchmarks.report import (
    SEED,
    add_device,
    conditions,
    laps_in_turns,
    make_parser,
    medians,
    parameters,
    parse,
    print_row,
    ratio,
    write,
)
from benchmarks.speed.contenders import (
    OURS,
    RIVAL,
    SIZES,
    Size,
    check_parameters,
    make_agent,
    settings_of,
)
from experiment.environments import make_envs
from experiment.settings import Settings
from fbrl import MemoryPPO
from fbrl.finite import Observation
from fbrl.sequences import Sequences

BATCHES = (1, 16, 256)
BLOCK = 50  # steps
EARLY = 1000  # steps
POINTS = 100  # of the curve
COLUMNS = ["batch", "over_recurrent_ppo", "late_over_early"]

State = tuple[np.ndarray[Any, Any], ...] | None


class Step(NamedTuple):
    """What an agent is shown."""

    obs: Observation
    episode_start: np.ndarray[Any, Any]  # (B,) bool


def record(settings: Settings, batch: int, steps: int) -> list[Step]:
    """What a random agent meets in ``batch`` environments."""
    env, random = make_envs(settings.env, SEED, batch), np.random.default_rng(SEED)
    obs, starts, track = env.reset(), np.ones(batch, dtype=bool), []
    for _ in range(steps):
        track.append(Step(cast(Observation, obs), starts))
        obs, _, starts, _ = env.step(random.integers(env.action_space.n, size=batch))  # type: ignore[attr-defined]
    return track


def play(agent: Any, track: list[Step], state: State = None) -> State:
    """Shows the agent some steps; gives the state after them."""
    for obs, starts in track:
        _, state = agent.predict(obs, state=state, episode_start=starts, deterministic=True)
    return state


class Block:
    """Shows an agent some steps each time it is called, and goes on from where it stands: an agent may keep more than
    the state of the step before.
    """

    def __init__(self, agent: Any, track: list[Step], state: State) -> None:
        self.agent, self.track, self.state = agent, track, state

    def __call__(self) -> None:
        """One block."""
        self.state = play(self.agent, self.track, self.state)


def check_steps_are_a_scan(agent: MemoryPPO, track: list[Step]) -> None:
    """Exits where ``predict`` step by step and one scan over the same steps differ."""
    policy, state, actions = agent.policy, None, []
    for step in track:
        action, state = agent.predict(step.obs, state=state, episode_start=step.episode_start, deterministic=True)
        actions.append(torch.as_tensor(action))
    parts = [cast("dict[str, np.ndarray[Any, Any]]", step.obs) for step in track]
    stacked = {
        key: torch.as_tensor(np.stack([part[key] for part in parts], axis=1), device=policy.device) for key in parts[0]
    }
    starts = torch.as_tensor(np.stack([step.episode_start for step in track], axis=1), device=policy.device)
    with torch.no_grad():
        features, final = policy._features(Sequences(stacked, starts, policy.initial_state(len(starts))))
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(features))
        taken = distribution.log_prob(torch.stack(actions, dim=1).flatten().to(policy.device))
        best = distribution.log_prob(distribution.get_actions(deterministic=True))
    ends = [end.cpu() for end in final]
    pairs = [(taken, best), *((torch.tensor(part), end) for part, end in zip(state or (), ends, strict=True))]
    if not all(torch.allclose(part, end, rtol=0, atol=1e-4) for part, end in pairs):
        raise SystemExit("parity is red: predict step by step is not the scan; nothing is reported")


def compare(agents: dict[str, Any], track: list[Step], repeats: int) -> dict[str, Any]:
    """The agents' milliseconds a call."""
    laps = laps_in_turns({name: Block(agent, track, play(agent, track)) for name, agent in agents.items()}, repeats)
    seconds = medians(laps)
    return {
        "over_recurrent_ppo": ratio(seconds, RIVAL, OURS),
        "milliseconds": {name: 1000 * spent / len(track) for name, spent in seconds.items()},
        "seconds_and_cpu_seconds": laps,
    }


def long_episode(agent: Any, track: list[Step], steps: int, repeats: int) -> dict[str, Any]:
    """What a step costs as the episode gets longer; ``track``'s observations over and over, in one episode."""
    going_on = np.zeros(1, dtype=bool)
    track = [Step(obs, going_on) for obs, _ in track]
    state, kept, spent = None, {}, np.empty(steps)
    for index in range(steps):
        start = time.perf_counter()
        _, state = agent.predict(track[index % len(track)].obs, state, going_on, deterministic=True)
        spent[index] = time.perf_counter() - start
        if index + 1 in (EARLY, steps):
            kept[index + 1] = state
    blocks = {"early": Block(agent, track, kept[EARLY]), "late": Block(agent, track, kept[steps])}
    laps = laps_in_turns(blocks, 4 * repeats)
    curve = np.median(spent[: steps - steps % POINTS].reshape(POINTS, -1), axis=1)
    return {
        "late_over_early": ratio(medians(laps), "late", "early"),
        "steps": steps,
        "episode": (1000 * curve).tolist(),
        "episode_laps": laps,
    }


def measure(size: Size, batches: Sequence[int], steps: int, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """The rows of one size."""
    settings = settings_of(size)
    settings.run.device = device
    agents = {name: make_agent(name, settings) for name in (OURS, RIVAL)}
    counts = {name: parameters(agent.policy) for name, agent in agents.items()}
    check_parameters(counts)
    rows = []
    for batch in batches:
        track, ours = record(settings, batch, BLOCK), cast(MemoryPPO, agents[OURS])
        check_steps_are_a_scan(ours, track)
        row = {**size._asdict(), "batch": batch, "parameters": counts, **compare(agents, track, repeats)}
        rows.append(row | (long_episode(ours, track, steps, repeats) if batch == 1 else {"late_over_early": None}))
        print_row(rows[-1], [*Size._fields, *COLUMNS])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=15)
    parser.add_argument("--threads", type=int, default=1, help="that torch uses (default: 1)")
    parser.add_argument("--steps", type=int, default=100_000, help="length of the long episode")
    add_device(parser)
    options = parse(parser, arguments)
    if options.steps <= EARLY:
        parser.error(f"--steps must be more than {EARLY}, got {options.steps}")
    torch.set_num_threads(options.threads)
    sizes, steps = (SIZES[:1], min(options.steps, 5000)) if options.quick else (SIZES, options.steps)
    print(*Size._fields, *COLUMNS, sep="\t")
    rows = [row for size in sizes for row in measure(size, BATCHES, steps, options.repeats, options.device)]
    write(options.json, "latency", conditions(options.threads, options.device) | {"rows": rows})


if __name__ == "__main__":
    main()
