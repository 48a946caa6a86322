"""What the zoo's search (``train -optimize``) tries for ``memory_ppo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

HEADS: dict[str, list[int]] = {"none": [], "small": [64], "medium": [128], "deep": [64, 64]}


def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``MemoryPPO`` for one trial; the zoo puts them over those of the hyperparameters file.

    ``n_steps`` and ``batch_size`` are drawn in sequences, so that ``seq_len`` divides both; a batch that is larger than
    the rollout is the rollout. Every range is the same in every trial, as multivariate samplers want it. The last three
    arguments are what the zoo hands to every sampler; none is needed here.
    """
    params = {
        "seq_len_pow": trial.suggest_int("seq_len_pow", 3, 7),
        "rollout_sequences_pow": trial.suggest_int("rollout_sequences_pow", 0, 4),
        "batch_sequences_pow": trial.suggest_int("batch_sequences_pow", 2, 6),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.001, 0.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        "n_epochs": trial.suggest_categorical("n_epochs", [2, 4, 10, 20]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2),
        "n_layers": trial.suggest_int("n_layers", 1, 4),
        "d_model_pow": trial.suggest_int("d_model_pow", 5, 7),
        "n_heads_pow": trial.suggest_int("n_heads_pow", 0, 3),
        "window_pow": trial.suggest_int("window_pow", 3, 7),
        "net_arch": trial.suggest_categorical("net_arch", list(HEADS)),
    }
    given = converted(params)
    for name in ("gamma", "gae_lambda", "seq_len", "n_steps", "batch_size"):  # shown beside what was drawn
        trial.set_user_attr(name, given[name])
    return given


def converted(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """What ``sample`` drew, by the names of the trial's parameters, as keyword arguments of ``MemoryPPO``."""
    core = {name: 2 ** sampled_params[f"{name}_pow"] for name in ("d_model", "n_heads", "window")}
    seq_len = 2 ** sampled_params["seq_len_pow"]
    plain = ("learning_rate", "ent_coef", "clip_range", "n_epochs", "max_grad_norm")
    return {
        **{name: sampled_params[name] for name in plain},
        "gamma": 1 - sampled_params["one_minus_gamma"],
        "gae_lambda": 1 - sampled_params["one_minus_gae_lambda"],
        "seq_len": seq_len,
        "n_steps": seq_len * 2 ** sampled_params["rollout_sequences_pow"],
        "batch_size": seq_len * 2 ** sampled_params["batch_sequences_pow"],
        "policy_kwargs": {
            "core_kwargs": {"n_layers": sampled_params["n_layers"], **core},
            "net_arch": list(HEADS[sampled_params["net_arch"]]),
        },
    }
