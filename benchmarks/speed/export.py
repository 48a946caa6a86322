"""The time of one step of an exported agent, in onnxruntime, beside ``predict``'s.

    python -m benchmarks.speed.export [--quick] [--threads 1] [--repeats 15] [--json benchmarks/results/export.json]

The agents are those of configs/memory_s7_view3.yaml with each core, untrained, their action heads made sharp. Both are
shown the same observations, carry their memory from step to step and take the most probable actions; they take turns in
blocks of steps. Reports nothing where, over ``PARITY`` steps of several environments and many episodes, an action
differs, or a log-probability of the exported step is further from that of the same agent in 64 bits than ``TIMES``
times what ``predict``'s is, and than 1e-4. Of each core ("keys_values" is the Feedback Transformer that
hands on keys and values), size and batch:

- ``milliseconds``: of one step, processor time, each one's median over the blocks;
- ``over_predict``: predict's over onnxruntime's: above 1, the exported step is the faster.

Processor time, because a step is so short that whatever else the machine does shows in the clock's.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.report import (
    conditions,
    laps_in_turns,
    make_parser,
    medians,
    parse,
    print_row,
    ratio,
    version,
    write,
)
from benchmarks.speed.contenders import SIZES, Size, settings_of
from benchmarks.speed.latency import BLOCK, Block, Step, play, record
from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.parsing import fail
from fbrl import MemoryPPO
from fbrl.cores.core import State
from fbrl.export import METADATA, save_onnx

CORES = (
    "feedback",
    "keys_values",
    "gru",
    "lstm",
    "mingru",
    "linear_attention",
    "transformer_xl",
    "gtrxl",
    "memoryless",
)
BATCHES = (1, 16)
PARITY = 1000  # steps
TIMES = 2.0  # rounding is no fault: as far from exact as predict's own, twice
PREDICT, EXPORTED = "predict", "onnxruntime"
COLUMNS = ["core", *Size._fields, "batch", "over_predict"]


class Exported:
    """Plays an ONNX file as ``predict`` plays an agent."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime  # of an extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options)
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])

    def step(self, obs: Any, state: Any, episode_start: Any) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs of one step."""
        if state is None:
            state = {
                name: np.zeros((len(episode_start), *of["shape"]), of["dtype"])
                for name, of in self.about["memory"].items()
            }
        outputs = self.session.run(None, {**obs, **state, "episode_start": episode_start})
        return dict(zip(self.about["outputs"], outputs, strict=True))

    def predict(self, obs: Any, state: Any, episode_start: Any, deterministic: bool = True) -> tuple[Any, Any]:
        """Actions, and the memory to pass in with the next observations."""
        out = self.step(obs, state, episode_start)
        return out["action"], {name: out[f"next_{name}"] for name in self.about["memory"]}


@cache
def agents(core: str, size: Size, threads: int) -> tuple[MemoryPPO, Exported]:
    """An agent, and its exported step."""
    settings = settings_of(size, n_envs=1, batch_size=128)
    settings.core = dataclasses.replace(settings.core, name="feedback" if core == "keys_values" else core)  # type: ignore[arg-type]
    agent = make_model(settings, make_envs(settings.env, settings.run.seed, 1))
    assert isinstance(agent, MemoryPPO)
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(100)  # type: ignore[operator]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "agent.onnx"
        save_onnx(agent.policy, file, keys_values=core == "keys_values")
        return agent, Exported(file, threads)


def in_64_bits(policy: nn.Module) -> Any:
    """A copy that computes in 64 bits; Stable-Baselines3 hands an encoder its observations in 32."""
    exact = deepcopy(policy).double()
    for module in exact.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: tuple(given.double() for given in inputs))
    return exact


def log_probabilities(policy: Any, obs: Any, state: Any, starts: np.ndarray[Any, Any]) -> tuple[Any, State]:
    """Log-probabilities of one step's actions, in the policy's own precision, and the next memory."""
    with torch.no_grad():
        obs_tensor, _ = policy.obs_to_tensor(obs)
        state = policy.initial_state(len(starts)) if state is None else state
        distribution, state = policy.get_distribution(obs_tensor, state, torch.tensor(starts))
    return distribution.distribution.logits.double().numpy(), state


def check_parity(agent: MemoryPPO, exported: Exported, track: list[Step]) -> dict[str, Any]:
    """How far each of the two is from the same agent in 64 bits over ``track``; exits where they do not agree."""
    exact = in_64_bits(agent.policy)
    kept: Any = None
    state: Any = None
    exact_state: Any = None
    apart = dict.fromkeys((PREDICT, EXPORTED), 0.0)
    episodes, equal = 0, True
    for obs, starts in track:
        out = exported.step(obs, kept, starts)
        kept = {name: out[f"next_{name}"] for name in exported.about["memory"]}
        found, state = log_probabilities(agent.policy, obs, state, starts)
        expected, exact_state = log_probabilities(exact, obs, exact_state, starts)
        for name, logits in ((PREDICT, found), (EXPORTED, out["logits"])):
            apart[name] = max(apart[name], float(np.abs(logits - expected).max()))
        equal = equal and np.array_equal(found.argmax(axis=-1), out["action"])
        episodes += int(starts.sum())
    if not equal or apart[EXPORTED] > max(1e-4, TIMES * apart[PREDICT]):
        raise SystemExit("parity is red: the exported step is not predict's; nothing is reported")
    return {"steps": len(track), "episodes": episodes, "log_probability_from_64_bits": apart}


def measure(core: str, size: Size, batch: int, threads: int, repeats: int) -> dict[str, Any]:
    """One row."""
    agent, exported = agents(core, size, threads)
    settings = settings_of(size, n_envs=1)
    parity = check_parity(agent, exported, record(settings, 4, PARITY))
    track = record(settings, batch, BLOCK)
    blocks: dict[str, Any] = {PREDICT: agent, EXPORTED: exported}
    laps = laps_in_turns({name: Block(one, track, play(one, track)) for name, one in blocks.items()}, repeats)
    seconds = medians(laps, clock=1)
    return {
        "core": core,
        **size._asdict(),
        "batch": batch,
        "over_predict": ratio(seconds, PREDICT, EXPORTED),
        "milliseconds": {name: 1000 * spent / BLOCK for name, spent in seconds.items()},
        "parity": parity,
        "seconds_and_cpu_seconds": laps,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=15)
    parser.add_argument("--threads", type=int, default=1, help="that torch and onnxruntime use (default: 1)")
    options = parse(parser, arguments)
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(needed) is None:
            fail(ValueError(f"{needed} is not installed: pip install fbrl[onnx]"))
    torch.set_num_threads(options.threads)
    sizes, cores = (SIZES[:1], CORES[:2]) if options.quick else (SIZES, CORES)
    print(*COLUMNS, sep="\t")
    rows = []
    for size in sizes:
        for core in cores:
            for batch in BATCHES:
                rows.append(measure(core, size, batch, options.threads, options.repeats))
                print_row(rows[-1], COLUMNS)
    report = conditions(options.threads)
    report["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    write(options.json, "export", report | {"rows": rows})


if __name__ == "__main__":
    main()
