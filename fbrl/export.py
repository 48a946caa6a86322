"""An agent's step as a program that runs without this library: ONNX, or torch.export's.

One step takes observations as the environment gives them, where episodes start, and the memory; it gives the most
probable action, what actions are drawn from, and the memory to pass in with the next step. Encoder, episode starts and
the reading of the action are inside. The critic is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fbrl.cores.core import Core, State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.cores.feedback_keys import FeedbackKeys, KeysAndValues
from fbrl.cores.feedback_once import is_plain_step, step_once
from fbrl.memory import Memory
from fbrl.policy import MemoryPolicy

METADATA = "fbrl"  # the key, or the extra file, that holds what ``OneStep.about`` gives, as JSON
ROWS = 3  # of the example that the program is traced with; any other number may be given to it


class OneStep(nn.Module):
    """One step of the actor, from tensors to tensors.

    Args:
        policy: the agent's.
        keys_values: carry keys and values in the place of memory vectors: faster, and twice as large. Of the Feedback
            Transformer only.

    Raises:
        ValueError: where ``keys_values`` is asked of another core, or a space counts from another number than 0, or
            a policy with action masks acts in a MultiBinary one. Other masks are the caller's to put on ``logits``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: MemoryPolicy, keys_values: bool = False) -> None:
        super().__init__()
        core: Core = policy.actor_core
        if keys_values:
            if not isinstance(core, FeedbackTransformer):
                raise ValueError(f"keys_values needs a FeedbackTransformer core, got {type(core).__name__}")
            if not is_plain_step(core):
                raise ValueError(f"keys_values knows no step but FeedbackTransformer's, got {type(core).__name__}'s")
            core = FeedbackKeys(core)
        if hasattr(policy, "masked") and isinstance(policy.action_space, spaces.MultiBinary):
            raise ValueError(f"an exported step has no masks for {policy.action_space}")
        for part in (policy.action_space, *_parts(policy.observation_space).values()):
            if np.any(getattr(part, "start", 0)):
                raise ValueError(f"an exported step counts from 0, got {part}")
        self.policy, self.core = policy, core
        self.projects_once = isinstance(core, FeedbackTransformer) and is_plain_step(core)
        space = policy.action_space
        self.action_dtype = torch.as_tensor(np.zeros((), space.dtype)).dtype
        if isinstance(space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(space.low.ravel()))
            self.register_buffer("high", torch.as_tensor(space.high.ravel()))

    def forward(
        self, observations: dict[str, Tensor], episode_start: Tensor, memory: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One step of B sequences.

        Args:
            observations: (B, ...) each, as the environment gives them; ``observation`` where they are no Dict.
            episode_start: (B,) bool.
            memory: what the step before gave, its names without ``next_``; zeros before the first step.

        Returns:
            ``action`` (B, ...), the most probable one, in the action space's shape, type and bounds; of a Box ``mean``
            and, without gSDE, ``std`` (B, N), of any other space ``logits`` (B, N); and the memory after the step.
        """
        policy = self.policy
        obs: Any = observations if isinstance(policy.observation_space, spaces.Dict) else observations["observation"]
        x = policy.core_input(BasePolicy.extract_features(policy, obs, policy.pi_features_extractor))
        initial: Any = self.core.initial_state(x.shape[0])  # not len(x), which would be the example's
        state = [memory.get(f"memory.{name}", part) for name, part in zip(initial._fields, initial, strict=True)]
        features, after = self._step(x, type(initial)(*state), episode_start)
        read = self._read(policy.action_net(policy.mlp_extractor.forward_actor(features)))
        named = {f"memory.{name}": part for name, part in zip(initial._fields, after, strict=True)}
        return read | {f"next_{name}": named[name] for name in memory}

    def _step(self, x: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """x (B, D), the state before the step, episode_start (B,) -> features (B, D) and the state after it."""
        core = self.core
        if isinstance(core, FeedbackTransformer) and self.projects_once:
            return step_once(core, x, Memory(*state).reset(episode_start))
        if isinstance(core, FeedbackKeys):
            keys = KeysAndValues(*state)
            return core.step(x, keys._replace(length=keys.length.masked_fill(episode_start, 0)))
        # of a Feedback Transformer in whatever form: exporters can follow the plain one
        forward = partial(FeedbackTransformer.forward, core) if isinstance(core, FeedbackTransformer) else core
        features, after = forward(x.unsqueeze(1), state, episode_start.unsqueeze(1))
        return features.squeeze(1), after

    def _read(self, read: Tensor) -> dict[str, Tensor]:
        """What the action head says (B, N), and the action that Stable-Baselines3's distributions call their mode."""
        policy, space = self.policy, self.policy.action_space
        if isinstance(space, spaces.Box):
            found = {"mean": read} if policy.use_sde else {"mean": read, "std": policy.log_std.exp().expand_as(read)}
            squashed = self.low + 0.5 * (read.tanh() + 1) * (self.high - self.low)
            action = squashed if policy.squash_output else read.clamp(self.low, self.high)
        elif isinstance(space, spaces.MultiBinary):
            found, action = {"logits": read}, read > 0
        else:
            numbers = space.nvec.ravel().tolist() if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]  # type: ignore[attr-defined]
            choices = [part.log_softmax(dim=-1) for part in read.split(numbers, dim=-1)]
            found = {"logits": torch.cat(choices, dim=-1)}
            action = torch.stack([part.argmax(dim=-1) for part in choices], dim=-1)
        return {"action": action.to(self.action_dtype).reshape(-1, *(space.shape or ()))} | found

    def example(self) -> dict[str, Any]:
        """What ``forward`` takes, by name, of ``ROWS`` sequences before their first step."""
        parts = _parts(self.policy.observation_space)
        observations = {key: torch.as_tensor(np.stack([part.sample()] * ROWS)) for key, part in parts.items()}
        initial: Any = self.core.initial_state(ROWS)
        named = zip(initial._fields, initial, strict=True)
        memory = {f"memory.{name}": part for name, part in named if part.numel()}  # a memoryless core has none
        assert not any(part.any() for part in memory.values()), "a memory must start with zeros"
        starts = torch.ones(ROWS, dtype=torch.bool)
        return {"observations": observations, "episode_start": starts, "memory": memory}

    def about(self) -> dict[str, Any]:
        """What a user of the program needs to know: names, shapes without the batch and types; the core's sizes."""
        example = self.example()
        with torch.no_grad():
            outputs = self(**example)
        return {
            "fbrl": metadata.version("fbrl"),
            "core": type(self.core).__name__,
            "core_kwargs": self.policy.core_kwargs,
            "observations": _shapes(example["observations"]),
            "memory": _shapes(example["memory"]),
            "outputs": _shapes(outputs),
            "action_space": str(self.policy.action_space),
        }


def _parts(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The observation's parts by the names that the program gives them."""
    return space.spaces if isinstance(space, spaces.Dict) else {"observation": space}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": list(part.shape[1:]), "dtype": str(part.dtype).removeprefix("torch.")}
        for name, part in tensors.items()
    }


@contextlib.contextmanager
def _traceable(policy: MemoryPolicy, keys_values: bool) -> Iterator[OneStep]:
    """The step of a copy on the CPU, which learns no more; without what torch's exporters say about themselves."""
    with torch.random.fork_rng():
        copy = type(policy)(**policy._get_constructor_parameters())
    copy.load_state_dict(policy.state_dict())
    step = OneStep(copy, keys_values).eval().requires_grad_(False)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield step
        finally:
            logger.setLevel(level)


def export_program(policy: MemoryPolicy, keys_values: bool = False) -> ExportedProgram:
    """``OneStep.forward``, with keyword arguments, as torch.export's program for any number of sequences.

    Raises:
        ValueError: see ``OneStep``.
    """
    with _traceable(policy, keys_values) as step:
        example = step.example()
        return torch.export.export(step, (), example, dynamic_shapes=_any_batch(example))


def save_program(policy: MemoryPolicy, path: str | Path, keys_values: bool = False) -> None:
    """Writes ``export_program`` to a .pt2 file, with what ``OneStep.about`` says as the extra file ``fbrl``."""
    about = json.dumps(OneStep(policy, keys_values).about())
    buffer = io.BytesIO()  # torch's own writer aborts the process where a disk is full
    torch.export.save(export_program(policy, keys_values), buffer, extra_files={METADATA: about})
    Path(path).write_bytes(buffer.getvalue())


def save_onnx(policy: MemoryPolicy, path: str | Path, keys_values: bool = False) -> None:
    """Writes the step to an ONNX file, with what ``OneStep.about`` says as the metadata ``fbrl``.

    Inputs and outputs have the names of ``OneStep.forward``. Needs ``pip install fbrl[onnx]``.

    Raises:
        ModuleNotFoundError: without the extra.
        ValueError: see ``OneStep``.
    """
    importlib.import_module("onnxscript")  # torch's exporter would look for it later
    with _traceable(policy, keys_values) as step:
        example, about = step.example(), step.about()
        program = torch.onnx.export(
            step,
            kwargs=example,
            dynamic_shapes=_any_batch(example),
            input_names=[*example["observations"], "episode_start", *example["memory"]],
            output_names=list(about["outputs"]),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[METADATA] = json.dumps(about)
        program.save(path)


def _any_batch(example: dict[str, Any]) -> dict[str, Any]:
    """Says of every tensor of ``OneStep.example`` that its first dimension may be of any size."""
    batch = {0: Dim("batch")}
    return {name: dict.fromkeys(part, batch) if isinstance(part, dict) else batch for name, part in example.items()}
