"""The two agents that ``throughput.py`` and ``latency.py`` compare, alike in all but the network.

Both come from configs/memory_s7_view3.yaml: same task (or Counting in its place), environments, encoder, rollouts,
minibatches and epochs, and heads that read the recurrent network directly (``net_arch=[]``). sb3-contrib's RecurrentPPO
gets LSTMs as wide as make its number of parameters ours. By default it has one LSTM for the actor and one for the
critic; "recurrent_ppo_shared" has one for both, as ours has one memory, and is then wider. It learns from sequences of
up to ``n_steps`` steps, padded, and starts a new one at every episode's start; ours are always ``seq_len`` steps.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any, Literal, NamedTuple

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.ppo_recurrent.policies import MultiInputLstmPolicy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.report import ROOT, SEED, parameters
from experiment.agents import make_model
from experiment.environments import make_envs
from experiment.parsing import load_settings
from experiment.settings import Settings
from fbrl import MemoryPPO
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.encoders import MiniGridEncoder, is_minigrid_space

Engine = Literal["minigrid", "envpool"]
Task = Literal["MemoryS7-View3", "Counting"]
LONG: Task = "MemoryS7-View3"  # a new agent's episodes take up to 245 steps
SHORT: Task = "Counting"  # 21 to 41 steps, whatever the agent does
OURS, RIVAL, SHARED = "fbrl", "recurrent_ppo", "recurrent_ppo_shared"
PASSES, EAGER = "fbrl_passes_2", "fbrl_without_graphs"  # ours by two parallel passes; on a GPU, without CUDA graphs
ALIKE = ["n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef"]
ALIKE += ["max_grad_norm", "target_kl", "learning_rate"]
TOLERANCE = 0.1  # of the number of parameters


class Size(NamedTuple):
    """Width, layers, heads, slots."""

    D: int
    L: int
    H: int
    M: int


SIZES = [Size(64, 2, 4, 32), Size(128, 2, 4, 64)]  # the configuration's own, and the one that the scan is quoted at


def settings_of(
    size: Size,
    n_envs: int | None = None,
    batch_size: int | None = None,
    engine: Engine = "minigrid",
    device: str = "cpu",
    task: Task = LONG,
) -> Settings:
    """The configuration with another core and, if given, other environments and another number of steps a minibatch.

    Without the bonus and hidden heads, which RecurrentPPO's side has not. ``task``: instead of its own.
    """
    settings = load_settings(ROOT / "configs/memory_s7_view3.yaml")
    core = dict(zip(("d_model", "n_layers", "n_heads", "window"), size, strict=True))
    settings.core = dataclasses.replace(settings.core, **core)  # type: ignore[arg-type]
    settings.env = dataclasses.replace(settings.env, n_envs=n_envs or settings.env.n_envs, engine=engine, novelty=0.0)
    if task == SHORT:
        settings.env = dataclasses.replace(settings.env, id="fbrl/Counting-v0", kwargs={})
    settings.ppo = dataclasses.replace(settings.ppo, batch_size=batch_size or settings.ppo.batch_size, net_arch=[])
    settings.run = dataclasses.replace(settings.run, seed=SEED, device=device)
    return settings


def make_agent(name: str, settings: Settings) -> OnPolicyAlgorithm:
    """One agent with environments of its own, on the settings' device."""
    env = make_envs(settings.env, settings.run.seed, settings.env.n_envs)
    if name == PASSES:
        settings = dataclasses.replace(settings, ppo=dataclasses.replace(settings.ppo, passes=2))
    ours = make_model(settings, env)
    if name == EAGER:
        core = ours.policy.core
        assert isinstance(core, FastFeedbackTransformer)
        core.form, core.cuda_graphs = "fast", False
    return ours if name in (OURS, PASSES, EAGER) else make_rival(name == SHARED, settings, env, parameters(ours.policy))


def make_rival(shared: bool, settings: Settings, env: VecEnv, wanted: int) -> RecurrentPPO:
    """RecurrentPPO with ``wanted`` parameters or a few less."""
    policy_kwargs: dict[str, Any] = {"net_arch": [], "shared_lstm": shared, "enable_critic_lstm": not shared}
    policy_class: type[RecurrentActorCriticPolicy] = RecurrentActorCriticPolicy
    if is_minigrid_space(env.observation_space):
        policy_class = MultiInputLstmPolicy
        policy_kwargs["features_extractor_class"] = MiniGridEncoder
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": settings.core.d_model}

    def count(width: int) -> int:
        policy = policy_class(
            env.observation_space, env.action_space, lambda _: 0.0, lstm_hidden_size=width, **policy_kwargs
        )
        return parameters(policy)

    widths = range(1, 1000)
    policy_kwargs["lstm_hidden_size"] = widths[bisect.bisect_right(widths, wanted, key=count) - 1]
    kwargs: dict[str, Any] = {name: getattr(settings.ppo, name) for name in ALIKE}
    kwargs |= {"seed": SEED, "device": settings.run.device}
    return RecurrentPPO(policy_class, env, policy_kwargs=policy_kwargs, **kwargs)


def check_parameters(counts: dict[str, int]) -> None:
    """Exits where an agent's number of parameters is not ours within ``TOLERANCE``."""
    for name, count in counts.items():
        if abs(count - counts[OURS]) > TOLERANCE * counts[OURS]:
            raise SystemExit(f"{name} has {count} parameters beside our {counts[OURS]}; nothing is reported")


def check_first_ratio(ours: OnPolicyAlgorithm) -> None:
    """Exits where learning from a rollout does not start at the probabilities that it was acted with."""
    assert isinstance(ours, MemoryPPO)
    _, callback = ours._setup_learn(ours.n_steps * ours.n_envs, None)
    ours.collect_rollouts(ours.get_env(), callback, ours.rollout_buffer, ours.n_steps)  # type: ignore[arg-type]
    for batch in ours.rollout_buffer.get(ours.batch_size):
        with torch.no_grad():
            _, log_prob, _ = ours.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())  # type: ignore[arg-type]
        if not torch.allclose(log_prob, batch.old_log_prob, rtol=0, atol=1e-5):
            raise SystemExit("parity is red: the first ratio of an update is not one; nothing is reported")
