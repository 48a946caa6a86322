"""How fast the tasks that are written for N environments step, beside as many single environments.

    python -m benchmarks.speed.stepping [--quick] [--repeats 9] [--json benchmarks/results/stepping.json]

64 environments of each task with its default sizes, random actions, everything that Stable-Baselines3 gets from them:
``steps_per_second`` of all environments together (medians, by processor time, which what else the machine does leaves
alone), and how many times as fast as ``FiniteVecEnv`` of Gymnasium environments under a ``Monitor`` they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

import envs
from benchmarks.report import SEED, conditions, laps_in_turns, make_parser, medians, parse, print_row, write
from envs.batch import TaskEnv
from envs.batch_vec_env import BatchVecEnv
from fbrl.vec_env import FiniteVecEnv

TASKS = ("HiddenAutomaton", "GridWalk", "Counting", "TMaze", "ActiveTMaze", "WaterMaze")
N_ENVS = 64
STEPS = 300  # of each environment in a lap
COLUMNS = ["task", "steps_per_second", "times_single"]


def make_both(task: str) -> dict[str, VecEnv]:
    """The task's environments, stepped at once and one by one."""
    single = envs.make(f"fbrl/{task}-v0")
    assert isinstance(single, TaskEnv)
    return {
        "batch": BatchVecEnv(single.batch(N_ENVS), SEED),
        "single": FiniteVecEnv([partial(_single, task, SEED + index) for index in range(N_ENVS)]),
    }


def _single(task: str, seed: int) -> gym.Env[Any, Any]:
    return Monitor(envs.make(f"fbrl/{task}-v0", seed=seed))


def play(env: VecEnv, steps: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Random play; the last observations and the sum of the rewards, (N,)."""
    actions = np.random.default_rng(SEED).integers(env.action_space.n, size=(steps, N_ENVS))  # type: ignore[attr-defined]
    total = np.zeros(N_ENVS, dtype=np.float32)
    for step in actions:
        observations, rewards, _, _ = env.step(step)
        total += rewards
    assert isinstance(observations, np.ndarray)
    return observations, total


def check(both: dict[str, VecEnv]) -> None:
    """Resets both and raises AssertionError where they are not the same environments."""
    for env in both.values():
        env.reset()
    batch, single = (play(env, 100) for env in both.values())
    for part, expected in zip(batch, single, strict=True):
        np.testing.assert_array_equal(part, expected)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and, if asked to, writes."""
    options = parse(make_parser(__doc__, repeats=9), arguments)
    steps = STEPS // 10 if options.quick else STEPS
    rows = []
    print(*COLUMNS, sep="\t")
    for task in TASKS:
        both = make_both(task)
        check(both)
        laps = laps_in_turns({name: partial(play, env, steps) for name, env in both.items()}, options.repeats)
        seconds = medians(laps, clock=1)
        rates = {"steps_per_second": steps * N_ENVS / seconds["batch"]}
        rates["times_single"] = seconds["single"] / seconds["batch"]
        rows.append({"task": task, **rates, "steps": steps * N_ENVS, "seconds_and_cpu_seconds": laps})
        print_row(rows[-1], COLUMNS)
    write(options.json, "stepping", conditions(1) | {"n_envs": N_ENVS, "rows": rows})


if __name__ == "__main__":
    main()
