"""What ``scaling.py`` counts and measures: a process's bytes, operations, memory, and what talking to another takes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import SEED, parameters
from benchmarks.speed.contenders import OURS, SIZES, make_agent, settings_of
from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.settings import Settings
from fbrl import MemoryPPO
from fbrl.cores.feedback_scan import FastFeedbackTransformer

STEPS = 10  # of the environments alone
ROLLOUT = 32  # steps of the training whose memory is measured
COUNTED = 256  # steps, in 8 sequences


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the height at 0 and the slope, neither below 0."""
    x, y = np.array(points).T
    slope = max(0.0, float(np.polyfit(x, y, 1)[0]))
    return max(0.0, float((y - slope * x).mean())), slope


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The least processor time of some calls after a first one."""
    function()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return min(spent)


def agent_with(n_envs: int, batch_size: int) -> MemoryPPO:
    """Ours, with a logger that says nothing."""
    agent = cast(MemoryPPO, make_agent(OURS, settings_of(SIZES[0], n_envs, batch_size)))
    agent.set_logger(Logger(folder=None, output_formats=[]))
    return agent


def rollout(agent: MemoryPPO) -> Callable[[], object]:
    """What collects one."""
    _, callback = agent._setup_learn(agent.n_steps * agent.n_envs, None)
    env, buffer = agent.get_env(), agent.rollout_buffer
    return lambda: agent.collect_rollouts(env, callback, buffer, agent.n_steps)  # type: ignore[arg-type]


def _added_product(to: Sequence[int], a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """The operations of a product that is added to something, from the three shapes."""
    return 2 * math.prod(a) * b[-1]


def count_flops(function: Callable[[], object]) -> int:
    """Of the matrix products in it."""
    aten = torch.ops.aten
    left_out = {aten.addmm_: _added_product, aten.baddbmm_: _added_product}  # by torch, which counts those not in place
    with FlopCounterMode(display=False, custom_mapping=left_out) as counter:
        function()
    return int(counter.get_total_flops())


def counts() -> dict[str, Any]:
    """Bytes and operations of one process."""
    agent = agent_with(8, COUNTED)
    policy, buffer, configured = agent.policy, agent.rollout_buffer, settings_of(SIZES[0])
    assert isinstance(policy.core, FastFeedbackTransformer)
    policy.core.form = "fast"  # torch counts its own products, and not those of the compiled form, which does the same
    rollout(agent)()
    held = [buffer.actions, buffer.rewards, buffer.returns, buffer.values, buffer.log_probs, buffer.advantages]
    held += [buffer.episode_starts, *cast("dict[str, np.ndarray[Any, Any]]", buffer.observations).values()]
    batch: Any = next(iter(buffer.get(COUNTED)))
    flat = {key: value.flatten(0, 1) for key, value in batch.observations.observations.items()}
    state = policy.initial_state(COUNTED)
    actor, x = policy.core.actor(state), torch.zeros(COUNTED, configured.core.d_model)
    starts = torch.zeros(COUNTED, dtype=torch.bool)

    def update() -> None:
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
        (values.sum() + log_prob.sum() + cast(Tensor, entropy).sum()).backward()

    actor.step(x, starts)  # which makes the keys and values of the whole window
    with torch.no_grad():
        flops = {
            "encoder": count_flops(lambda: policy.encode(flat)),
            "acting": count_flops(lambda: actor.step(x, starts)),
        }
    flops["update"] = count_flops(update)
    return {
        "parameters": parameters(policy),
        "gradient_bytes": sum(parameter.nbytes for parameter in policy.parameters()),
        "optimiser_steps": agent.n_epochs * agent.n_steps * configured.env.n_envs // configured.ppo.batch_size,
        "rollout_bytes": sum(array.nbytes for array in held) / (agent.n_steps * agent.n_envs),
        "state_bytes": sum(part.nbytes for part in state) / COUNTED,
        "flops": {name: found / COUNTED for name, found in flops.items()},
    }


def resident() -> int:
    """The bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_settings(task: str, n_envs: int) -> Settings:
    """A rollout of ``ROLLOUT`` steps and one epoch, in minibatches of 250 sequences or less."""
    settings = settings_of(SIZES[0], n_envs, ROLLOUT * min(n_envs, 250))
    settings.env.id = task
    settings.ppo.n_steps = settings.ppo.seq_len = ROLLOUT
    settings.ppo.n_epochs = 1
    return settings


def hold(task: str, n_envs: int) -> dict[str, Any]:
    """What so many environments cost, in a process of their own."""
    settings, random = memory_settings(task, n_envs), np.random.default_rng(SEED)
    env = make_envs(settings.env, SEED, n_envs)
    env.reset()
    actions = [random.integers(env.action_space.n, size=n_envs) for _ in range(STEPS)]  # type: ignore[attr-defined]
    start = time.process_time()
    for action in actions:
        env.step(action)
    spent, held = time.process_time() - start, resident()
    agent = make_model(settings, env)
    agent.set_logger(Logger(folder=None, output_formats=[]))
    agent.learn(2 * ROLLOUT * n_envs)
    peak = int(next(row for row in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in row).split()[1])
    return {
        "task": task,
        "n_envs": n_envs,
        "held": held,
        "peak": 1024 * peak,
        "microseconds": 1e6 * spent / STEPS / n_envs,
    }


def all_reduce(sizes: Sequence[int], repeats: int = 200) -> list[tuple[float, float]]:
    """Bytes, and the least seconds of adding them up over the processes of this group."""
    found = []
    for size in sizes:
        numbers, spent = torch.zeros(max(1, size // 4)), []
        for _ in range(repeats):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(numbers)
            spent.append(time.perf_counter() - start)
        found.append((float(4 * len(numbers)), min(spent)))
    return found
