"""Callbacks of others in a run: run.callbacks names them, Stable-Baselines3's WandbCallback among them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from experiment.settings import Settings, SettingsError

EXAMPLE = "wandb.integration.sb3.WandbCallback"
GIVEN = ("settings", "folder")  # to what has parameters of these names


class Guests(CallbackList):
    """The callbacks that run.callbacks names.

    One that returns False ends the training: after the update that follows, and in all processes (``ended`` is for
    ``Together``), so that what is saved then belongs together.
    """

    def __init__(self, callbacks: Sequence[BaseCallback] = (), close: Callable[[], None] = lambda: None) -> None:
        super().__init__(list(callbacks))
        self.ended, self.close = False, close

    def _on_step(self) -> bool:
        self.ended = not super()._on_step() or self.ended
        return True


def invite(settings: Settings, folder: Path) -> Guests:
    """Makes the callbacks of a run; Weights & Biases' gets a run of its own, with TensorBoard's figures.

    To be called before the logger is made: only then does Weights & Biases hear what is logged.

    Raises:
        SettingsError: where an import path leads nowhere, or to what makes no callback.
    """
    makers = {path: find(path) for path in settings.run.callbacks}
    close = _start_wandb(settings, folder) if any(path.startswith("wandb.") for path in makers) else lambda: None
    try:
        return Guests([_make(path, maker, settings, folder) for path, maker in makers.items()], close)
    except BaseException:
        close()
        raise


def find(path: str) -> Callable[..., Any]:
    """What the import path leads to: a callback's class, or a function that makes a callback.

    Raises:
        SettingsError: where it leads nowhere, to another class, or to what has parameters that nothing here gives.
    """
    module, _, name = str(path).rpartition(".")
    try:
        maker = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError, TypeError) as error:  # TypeError: it begins with a dot
        raise SettingsError(f"run.callbacks must hold import paths such as {EXAMPLE}, got {path}: {error}") from None
    if not callable(maker):
        raise SettingsError(f"run.callbacks must hold classes or functions, got {path}, a {type(maker).__name__}")
    if isinstance(maker, type) and not issubclass(maker, BaseCallback):
        raise SettingsError(f"run.callbacks: {path} makes no callback, but a {maker.__name__}")
    needs = [
        name
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in GIVEN
    ]
    if needs:
        raise SettingsError(f"run.callbacks: {path} needs {', '.join(needs)}; only settings and folder can be given")
    return maker  # type: ignore[no-any-return]


def _make(path: str, maker: Callable[..., Any], settings: Settings, folder: Path) -> BaseCallback:
    """Calls it with those of ``settings`` and ``folder`` that it has parameters for."""
    takes = inspect.signature(maker).parameters
    made = maker(**{name: value for name, value in zip(GIVEN, (settings, folder), strict=True) if name in takes})
    if not isinstance(made, BaseCallback):
        raise SettingsError(f"run.callbacks: {path} makes no callback, but a {type(made).__name__}")
    return made


def _start_wandb(settings: Settings, folder: Path) -> Callable[[], None]:
    """A run of Weights & Biases, which WandbCallback wants to be there; what ends it."""
    import wandb

    if wandb.run is not None:  # the user's own
        return lambda: None
    # the same again where the run is resumed
    run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    wandb.init(
        project="fbrl", name=folder.name, id=run_id, resume="allow", dir=str(folder), config=asdict(settings),
        sync_tensorboard=True,
    )  # fmt: skip
    return lambda: wandb.finish()
