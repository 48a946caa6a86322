"""What settings may be: their types, their ranges, and how they have to fit each other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import get_type_hints

import torch
from stable_baselines3.common.utils import get_device

from experiment.settings import GROUPS, Settings, SettingsError
from experiment.typed import convert, shown
from fbrl.cores.forms import Form, cannot_compile, cannot_run_triton
from fbrl.cores.names import CORES, core_kwargs

RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        (
            *("env.n_envs", "env.frame_stack", "env.novelty_steps"),
            *("core.d_model", "core.n_layers", "core.n_heads", "core.window", "core.d_feedforward"),
            *("ppo.timesteps", "ppo.seq_len", "ppo.passes", "ppo.n_epochs"),
            *("run.threads", "run.eval_every", "run.eval_episodes", "run.eval_envs", "run.eval_max_steps"),
            "run.checkpoint_every",
        ),
    ),
    (
        "at least 0",
        lambda value: value >= 0,
        (
            "env.novelty",
            "ppo.learning_rate_end",
            "ppo.clip_range_end",
            "ppo.ent_coef",
            "ppo.ent_coef_end",
            "ppo.vf_coef",
            "run.seed",
        ),
    ),
    (
        "more than 0",
        lambda value: value > 0,
        ("ppo.learning_rate", "ppo.clip_range", "ppo.max_grad_norm", "ppo.target_kl"),
    ),
    ("between 0 and 1", lambda value: 0 <= value <= 1, ("ppo.gamma", "ppo.gae_lambda", "run.stop_at_success")),
)


MOST_OF_ALL = 10**12  # of a number for which nothing less is said
MOST = {  # beyond what machines have; what is less may still be too much for one of them
    **dict.fromkeys(("env.n_envs", "core.d_model", "core.n_heads", "run.eval_envs"), 100_000),
    **dict.fromkeys(("env.frame_stack", "core.n_layers", "run.threads"), 1_000),
    **dict.fromkeys(("core.window", "core.d_feedforward", "ppo.seq_len", "ppo.n_epochs", "ppo.passes"), 1_000_000),
    **dict.fromkeys(("ppo.n_steps", "ppo.batch_size", "run.eval_episodes"), 100_000_000),
    **dict.fromkeys(("ppo.learning_rate", "ppo.learning_rate_end", "ppo.clip_range", "ppo.target_kl"), 1_000),
    **dict.fromkeys(("ppo.ent_coef", "ppo.ent_coef_end", "ppo.vf_coef", "ppo.max_grad_norm", "env.novelty"), 10**6),
    "run.seed": 2**31 - 1,  # with room for the seeds of evaluations and further environments below 2^32
}
WINDOWS = os.name == "nt"
PATHS = ("run.folder", "run.start_from")
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[ .]$')  # in a name, on Windows


def check(settings: Settings) -> None:
    """Raises SettingsError, naming the setting, what was given and what is allowed."""
    check_each(settings)
    env, core, ppo, run = settings.env, settings.core, settings.ppo, settings.run
    _check_name(settings.run.name)
    for name, value in {"ppo.n_steps": ppo.n_steps, "ppo.batch_size": ppo.batch_size}.items():
        if value < 1 or value % ppo.seq_len:
            raise SettingsError(f"{name} must be a multiple of ppo.seq_len = {ppo.seq_len}, got {value}")
    # advantages are normalised in every minibatch, which takes two of them
    for name, value in {"ppo.batch_size": ppo.batch_size, "ppo.n_steps x env.n_envs": ppo.n_steps * env.n_envs}.items():
        if value < 2:
            raise SettingsError(f"{name} must be at least 2, got {value}")
    for wrapper in env.wrappers:
        is_mapping = isinstance(wrapper, dict) and len(wrapper) == 1 and isinstance(next(iter(wrapper.values())), dict)
        path = next(iter(wrapper)) if is_mapping else wrapper
        if not isinstance(path, str) or "." not in path:
            allowed = "import paths such as minigrid.wrappers.FullyObsWrapper, or {path: {keyword arguments}}"
            raise SettingsError(f"env.wrappers must hold {allowed}, got {wrapper}")
    if env.wrappers and env.engine == "envpool":
        raise SettingsError(f"env.wrappers must be [] where env.engine is envpool, got {env.wrappers}")
    check_form(core.form, run.device)
    has_heads = core.name in CORES and "n_heads" in core_kwargs(core.name, asdict(core))
    if has_heads and core.d_model % core.n_heads:
        raise SettingsError(f"core.n_heads must divide core.d_model = {core.d_model}, got {core.n_heads}")


def check_each(settings: Settings) -> None:
    """As ``check``, but of each number by itself only: its type and its range, not how it fits the others."""
    _check_types(settings)
    for allowed, holds, names in RULES:
        for name in names:
            group, _, key = name.partition(".")
            value = getattr(getattr(settings, group), key)
            if value is not None and not holds(value):
                raise SettingsError(f"{name} must be {allowed}, got {value}")
    _check_most(settings)
    ppo = settings.ppo
    if any(width < 1 for width in ppo.net_arch):
        raise SettingsError(f"ppo.net_arch must hold widths of at least 1, got {ppo.net_arch}")
    if ppo.sde_sample_freq < 1 and ppo.sde_sample_freq != -1:
        raise SettingsError(f"ppo.sde_sample_freq must be at least 1, or -1, got {ppo.sde_sample_freq}")
    if abs(ppo.log_std_init) > 20:
        raise SettingsError(f"ppo.log_std_init must be between -20 and 20, got {ppo.log_std_init}")


def _check_types(settings: Settings) -> None:
    """Settings may also be made in Python, where types are not looked at."""
    for group, kind in GROUPS.items():
        for key, hint in get_type_hints(kind).items():
            convert(f"{group}.{key}", getattr(getattr(settings, group), key), hint)


def _check_most(settings: Settings) -> None:
    for group in GROUPS:
        for key, value in vars(getattr(settings, group)).items():
            name = f"{group}.{key}"
            most = MOST.get(name, MOST_OF_ALL)
            if isinstance(value, (int, float)) and value > most:
                raise SettingsError(f"{name} must be at most {most:,}, got {value}")
    if len(settings.ppo.net_arch) > MOST["core.n_layers"] or any(
        width > MOST["core.d_model"] for width in settings.ppo.net_arch
    ):
        raise SettingsError(
            f"ppo.net_arch must hold widths of at most {MOST['core.d_model']:,}, got {shown(settings.ppo.net_arch)}"
        )


def _check_name(name: str | None) -> None:
    if name is None:
        return
    path = Path(name)
    if not name.strip() or path.is_absolute() or ".." in path.parts or path == Path():
        raise SettingsError(f"run.name must be a folder inside run.folder, got {name or 'nothing'}")
    if WINDOWS and FORBIDDEN.search(name):
        raise SettingsError(f"run.name must be without characters that Windows forbids in a name, got {name}")


def check_form(form: Form, device: str) -> None:
    """Refuses a form of the scan that the device, or this machine, has not."""
    on_gpu = device != "cpu" and (device != "auto" or torch.cuda.is_available())
    if form in ("compiled", "triton") and (form == "triton") != on_gpu:
        raise SettingsError(f"core.form must be auto, fast or plain where run.device is {device}, got {form}")
    if form == "compiled" and (lacks := cannot_compile()):
        raise SettingsError(f"core.form must be auto, fast or plain without {lacks}, got compiled")
    if form == "triton" and (lacks := cannot_run_triton(get_device(device))):
        raise SettingsError(f"core.form must be auto, fast or plain without {lacks}, got triton")


def check_device(name: str, device: str) -> None:
    """Raises SettingsError where PyTorch has no such device; Stable-Baselines3 would take the CPU without a word."""
    if device == "auto":
        return
    if not re.fullmatch(r"cpu|(cuda|mps|xpu|hpu)(:\d{1,3})?", device):
        raise SettingsError(f"{name} must be auto, cpu, cuda, cuda:1, ..., got {shown(device)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or one that this machine lacks
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{name} must be auto, cpu, cuda, cuda:1, ..., got {device}: {reason}") from None
