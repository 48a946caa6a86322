"""Control: the README's CartPole, and tasks without velocities, beside Stable-Baselines3's agents for them.

    python -m benchmarks.learning.control [--tasks CartPoleNoVel] [--agents MemoryPPO] [--seeds 0 1 2]
    python -m benchmarks.learning.tables           # puts the table into RESULTS.md

CartPole is trained as in the README. CartPoleNoVel-50k is sb3-contrib's own learning test
(test_ppo_lstm_performance), which asks for 450. The three others are the RL Zoo's tuned tasks for RecurrentPPO, as the
model cards of its published agents have them (huggingface.co/sb3/ppo_lstm-CartPoleNoVel-v1 and so on). MemoryPPO gets
the same settings and its own default network, with a memory of width 64 and as many slots as a sequence has steps;
``MemoryPPO-3e-4`` and ``RecurrentPPO-3e-4`` take Stable-Baselines3's default learning rate in the place of the one
tuned for the LSTM, ``MemoryPPO-linear-3e-4`` has linear heads besides. ``kl`` is the median over the updates of the KL
divergence that Stable-Baselines3 logs. One result a task, agent and seed is kept in benchmarks/results/control.json,
which is added to.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from benchmarks.report import ROOT, conditions
from experiment.parsing import fail
from fbrl import MemoryPPO

RESULT = ROOT / "benchmarks" / "results" / "control.json"
EPISODES = 100
SEQ_LEN = 32
MEMORY = {"core_kwargs": {"d_model": 64, "n_layers": 2, "n_heads": 4, "window": SEQ_LEN}}
DEFAULT_RATE = "-3e-4"  # of a name: with Stable-Baselines3's learning rate
LINEAR = "-linear"  # of a name: with linear heads
AGENTS = (
    *("MemoryPPO", "MemoryPPO" + DEFAULT_RATE, "MemoryPPO" + LINEAR + DEFAULT_RATE),
    *("RecurrentPPO", "RecurrentPPO" + DEFAULT_RATE, "PPO"),
)
ZOO_HEADS = {"activation_fn": nn.ReLU, "net_arch": {"pi": [64], "vf": [64]}, "ortho_init": False}


class Task(NamedTuple):
    """One of the zoo's tasks: what is hidden and how it is trained."""

    env_id: str
    seen: list[int]  # entries of the observation, the others are velocities
    steps: int
    n_envs: int
    ppo: dict[str, Any]
    lstm: dict[str, Any]  # policy_kwargs of RecurrentPPO
    norm_obs: bool = True
    norm_reward: bool = False


TASKS = {
    "CartPole": Task(
        *("CartPole-v1", [0, 1, 2, 3], 50_000, 8, {"n_steps": 128, "batch_size": 256}),
        *({"lstm_hidden_size": 64, "enable_critic_lstm": True}, False),
    ),
    "CartPoleNoVel-50k": Task(
        "CartPole-v1",
        [0, 2],
        50_000,
        8,
        {
            **{"n_steps": 128, "batch_size": 256, "learning_rate": 7e-4, "n_epochs": 10, "max_grad_norm": 1.0},
            **{"gae_lambda": 0.98},
        },
        {"net_arch": {"pi": [], "vf": [64]}, "lstm_hidden_size": 64, "ortho_init": False, "enable_critic_lstm": True},
        norm_reward=True,
    ),
    "CartPoleNoVel": Task(
        "CartPole-v1",
        [0, 2],
        100_000,
        8,
        {
            **{"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0},
            "learning_rate": LinearSchedule(1e-3, 0.0, end_fraction=1.0),
            "clip_range": LinearSchedule(0.2, 0.0, end_fraction=1.0),
        },
        ZOO_HEADS | {"lstm_hidden_size": 64, "enable_critic_lstm": True},
    ),
    "PendulumNoVel": Task(
        "Pendulum-v1",
        [0, 1],
        100_000,
        4,
        {
            **{"n_steps": 1024, "batch_size": 128, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0},
            **{"learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
        },
        ZOO_HEADS | {"lstm_hidden_size": 64, "enable_critic_lstm": True},
    ),
    "MountainCarContinuousNoVel": Task(
        "MountainCarContinuous-v0",
        [0],
        300_000,
        8,
        {
            **{"n_steps": 1024, "batch_size": 256, "gae_lambda": 0.9, "gamma": 0.9999, "n_epochs": 10},
            **{"ent_coef": 0.00429, "learning_rate": 7.77e-5, "clip_range": 0.1, "max_grad_norm": 5.0, "vf_coef": 0.19},
            **{"use_sde": True, "sde_sample_freq": 8},
        },
        {"net_arch": {"pi": [64], "vf": [64]}, "ortho_init": False, "lstm_hidden_size": 32, "enable_critic_lstm": True},
    ),
}


class StepSizes(BaseCallback):
    """How far each update moves the policy: the KL divergences that Stable-Baselines3 logs."""

    def __init__(self) -> None:
        super().__init__()
        self.kl: list[float] = []

    def _on_rollout_start(self) -> None:
        if "train/approx_kl" in self.logger.name_to_value:
            self.kl.append(self.logger.name_to_value["train/approx_kl"])

    def _on_step(self) -> bool:
        return True


class Hidden(gym.ObservationWrapper[Any, Any, Any]):
    """A task of which only some entries of the observation are seen."""

    def __init__(self, env: gym.Env[Any, Any], seen: Sequence[int]) -> None:
        super().__init__(env)
        shown = env.observation_space
        assert isinstance(shown, spaces.Box)
        self.seen = list(seen)
        self.observation_space = spaces.Box(shown.low[self.seen], shown.high[self.seen])

    def observation(self, observation: Any) -> Any:
        """The entries that are seen."""
        return observation[self.seen]


def make_envs(task: Task, n_envs: int, seed: int) -> VecNormalize:
    """What is seen of the task, normalised as the task says."""
    env = make_vec_env(lambda: Hidden(gym.make(task.env_id), task.seen), n_envs=n_envs, seed=seed)
    return VecNormalize(env, norm_obs=task.norm_obs, norm_reward=task.norm_reward)


def make_agent(name: str, task: Task, env: VecNormalize, seed: int) -> OnPolicyAlgorithm:
    """An agent by its name."""
    common: dict[str, Any] = task.ppo | {"seed": seed, "device": "cpu"}
    if name.endswith(DEFAULT_RATE):
        falls = not isinstance(common.get("learning_rate", 0.0), float)
        common["learning_rate"] = LinearSchedule(3e-4, 0.0, end_fraction=1.0) if falls else 3e-4
    if name.startswith("RecurrentPPO"):
        return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=dict(task.lstm), **common)
    if name == "PPO":
        return PPO("MlpPolicy", env, **common)
    heads: dict[str, Any] = {"net_arch": []} if LINEAR in name else {}
    return MemoryPPO("MlpPolicy", env, seq_len=SEQ_LEN, policy_kwargs=MEMORY | heads, **common)


def run(task_name: str, agent_name: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Trains one agent and plays ``EPISODES`` episodes with its most probable actions."""
    task, began = TASKS[task_name], time.perf_counter()
    env = make_envs(task, task.n_envs, seed)
    sizes = StepSizes()
    agent = make_agent(agent_name, task, env, seed).learn(steps or task.steps, callback=sizes)
    seconds = time.perf_counter() - began
    there = make_envs(task, 10, 10_000 + seed)
    there.training, there.norm_reward = False, False
    if task.norm_obs:
        there.obs_rms = env.obs_rms
    returns, _ = evaluate_policy(agent, there, n_eval_episodes=EPISODES, return_episode_rewards=True)
    parameters = sum(p.numel() for p in agent.policy.parameters())
    row = {"task": task_name, "agent": agent_name, "seed": seed, "steps": agent.num_timesteps}
    row |= {"return": float(np.mean(returns)), "deviation": float(np.std(returns)), "parameters": parameters}
    row |= {"kl": float(np.median(sizes.kl)) if sizes.kl else None}
    return row | {"seconds": seconds} | conditions(threads=1)


def keep(row: dict[str, Any], path: Path = RESULT) -> None:
    """Adds a result to the file, in the place of one of the same task, agent and seed."""
    same = ("task", "agent", "seed")
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several processes may train
        text = path.read_text()
        rows = [old for old in (json.loads(text)["rows"] if text else []) if any(old[key] != row[key] for key in same)]
        rows.append(row)
        rows.sort(key=lambda one: (list(TASKS).index(one["task"]), AGENTS.index(one["agent"]), one["seed"]))
        file.truncate(0)
        file.write(json.dumps({"benchmark": "control", "rows": rows}, indent=1) + "\n")


def table(path: Path = RESULT) -> str:
    """Mean return of each seed's agent, and how far an update moved it, in Markdown."""
    lines = ["| task | agent | parameters | seeds | mean return of each | mean | KL of an update |", "|---" * 7 + "|"]
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    for task in TASKS:
        for agent in AGENTS:
            found = [row for row in rows if (row["task"], row["agent"]) == (task, agent)]
            if found:
                each = ", ".join(f"{row['return']:.1f}" for row in found)
                seeds = ", ".join(str(row["seed"]) for row in found)
                mean = np.mean([row["return"] for row in found])
                steps = [row["kl"] for row in found if row.get("kl") is not None]
                step = f"{np.median(steps):.4f}" if steps else ""
                parameters = f"{found[0]['parameters']:,}"
                lines.append(f"| {task} | {agent} | {parameters} | {seeds} | {each} | {mean:.1f} | {step} |")
    return "\n".join(lines)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=["MemoryPPO", "RecurrentPPO"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for task in options.tasks:
            for agent in options.agents:
                row = run(task, agent, seed)
                keep(row)
                print({key: row[key] for key in ("task", "agent", "seed", "return", "seconds")}, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        fail(error)
