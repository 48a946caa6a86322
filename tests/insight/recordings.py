"""Tiny agents on the T-maze, and their episodes, for the tests of what is drawn."""

import envs
from envs.cue import with_cue
from fbrl import MemoryPPO
from fbrl.insight.recording import record
from tests.tasks import CORES

CORRIDOR = 2


def task(render_mode="rgb_array", seed=0):
    return with_cue(envs.make("fbrl/TMaze-v0", seed=seed, corridor=CORRIDOR, render_mode=render_mode))


def make_agent(core="plain", env=None, policy="MlpPolicy"):
    core_class, sizes = CORES[core]
    policy_kwargs = {"core_class": core_class, "core_kwargs": sizes}
    return MemoryPPO(policy, env or task(), device="cpu", seed=0, policy_kwargs=policy_kwargs)


def play(agent, n_episodes, env=None, **kwargs):
    env = env or task()
    return [record(agent, env, **kwargs) for _ in range(n_episodes)]
