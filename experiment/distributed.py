"""One training in several processes, as ``torchrun`` starts them, on torch.distributed.

Every process holds the whole model and has its share of the environments. Each averages its gradients with the others'
in every step of the optimiser, so that the weights stay the same everywhere. The first process alone reads and writes
files, evaluates and prints. In a single process everything here does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, TextIO, TypeVar, cast

import torch
import torch.distributed as dist
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiment.rules import check
from experiment.settings import Settings, SettingsError
from fbrl.ppo import MemoryPPO

T = TypeVar("T")
TIMEOUT = timedelta(hours=1)  # how long processes wait for each other; evaluations are the first one's alone


class ProcessLost(ConnectionError):
    """Another process of the run has ended, or cannot be reached any more."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """N, the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def say(message: str, file: TextIO | None = None) -> None:
    """Prints a line in the first process."""
    if rank() == 0:
        print(message, file=file)


def launcher() -> str:
    """What starts a script in as many processes of this machine as now."""
    return "python" if size() == 1 else f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', size())}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Lets the processes that ``torchrun`` started reach each other.

    The first to meet an error raises it; in the others, which then lose that process or meet the same error, it is
    SystemExit(2), so that there is one message.

    Raises:
        ProcessLost: where another process ended without an error of its own, as one that is killed does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    except (dist.DistError, ValueError) as error:  # no such host, or not all that torchrun sets
        raise ProcessLost(f"the processes of this run cannot reach each other: {error}") from error
    try:
        yield
    except Exception as error:
        if not _first_to_fail():
            raise SystemExit(2) from None
        if is_lost(error):
            raise ProcessLost("another process of this run has ended, or cannot be reached") from error
        raise
    except SystemExit:  # which all of them agreed on
        _end_group()
        raise
    _end_group()


def _end_group() -> None:
    gc.collect()  # DistributedDataParallel holds the group in cycles, whose end at the exit of Python sometimes aborts
    dist.destroy_process_group()


def _first_to_fail() -> bool:
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False)  # type: ignore[attr-defined]
        # torchrun may start all of them anew, with the same store
        return bool(store.add(f"fbrl/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1)
    except dist.DistError:  # the process that held it has ended: nobody can tell, so that each says what it met
        return True


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    # gloo raises bare RuntimeErrors, which name its source file
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def of_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in every process; the others wait and do not call it.

    Where it ends the first, as ``--help`` does, it ends all.
    """
    if size() == 1:
        return make()
    made: list[Any] = [None]
    if rank() == 0:
        try:
            made = [make()]
        except SystemExit as stop:
            made = [stop]
    dist.broadcast_object_list(made, device=torch.device("cpu"))
    if isinstance(made[0], SystemExit):
        raise made[0]
    return cast(T, made[0])


def in_any(flag: bool) -> bool:
    """Whether ``flag`` is true in any process."""
    if size() == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


def gather(part: T) -> list[T]:
    """The parts of all processes, in their order, in the first process; nothing in the others."""
    if size() == 1:
        return [part]
    parts: list[Any] = [None] * size() if rank() == 0 else []
    dist.gather_object(part, parts or None)
    return parts


def share(settings: Settings) -> Settings:
    """What this process does of settings that are of all processes together.

    It takes n_envs / N environments, with the seeds that a single process would give to them, batch_size / N steps of
    each minibatch, and of the GPUs of its machine its own.

    Raises:
        SettingsError: where something cannot be shared out evenly.
    """
    processes = size()
    if processes == 1:
        return settings
    env, ppo, run = settings.env, settings.ppo, settings.run
    if env.n_envs % processes:
        raise SettingsError(f"env.n_envs must be a multiple of the {processes} processes, got {env.n_envs}")
    if ppo.batch_size % (processes * ppo.seq_len):
        raise SettingsError(
            f"ppo.batch_size must be a multiple of ppo.seq_len x processes = {ppo.seq_len} x {processes}, "
            f"got {ppo.batch_size}"
        )
    device = run.device
    if device.startswith("cuda:"):
        raise SettingsError(f"run.device must be auto, cpu or cuda where there are {processes} processes, got {device}")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    n_envs = env.n_envs // processes
    mine = Settings(
        env=dataclasses.replace(env, n_envs=n_envs, novelty_steps=max(1, env.novelty_steps // processes)),
        core=settings.core,
        ppo=dataclasses.replace(ppo, batch_size=ppo.batch_size // processes),
        run=dataclasses.replace(run, seed=run.seed + rank() * n_envs, device=device),
    )
    try:
        check(mine)
    except SettingsError as error:
        raise SettingsError(f"{error}, in each of {processes} processes") from None
    return mine


class Together(BaseCallback):
    """Counts the steps of all processes, and ends the training in all of them when one is to end it.

    Args:
        ends: whether this process is to end it; asked before every rollout.
    """

    def __init__(self, ends: Callable[[], bool]) -> None:
        super().__init__()
        self.ends, self.ending = ends, False

    def _on_rollout_start(self) -> None:
        self.ending = in_any(self.ends())

    def _on_step(self) -> bool:
        self.model.num_timesteps += self.training_env.num_envs * (size() - 1)
        return not self.ending


@contextlib.contextmanager
def in_parallel(model: PPO) -> Iterator[None]:
    """Within it, ``model.train()`` of every process makes the same steps of the optimiser, from the first's weights.

    Raises:
        ValueError: where the processes' rollouts or minibatches are not of one size.
    """
    if size() == 1:
        yield
        return
    sizes: list[Any] = [None] * size()
    dist.all_gather_object(sizes, (model.n_steps, model.n_envs, model.batch_size, model.n_epochs))
    if len(set(sizes)) > 1:
        raise ValueError(f"n_steps, n_envs, batch_size and n_epochs must be the same in all processes, got {sizes}")
    update = _Update(model)
    # attributes of the two objects, over the methods of their classes: `PPO.train()` stays as it is, and nothing of
    # this is saved with the agent
    model.policy.evaluate_actions = update.evaluate_actions  # type: ignore[method-assign]
    model.rollout_buffer.get = update.get  # type: ignore[method-assign,assignment]
    if isinstance(model, MemoryPPO):
        model.return_moments = partial(_moments_of_all, model.return_moments)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.policy.evaluate_actions, model.rollout_buffer.get
        if isinstance(model, MemoryPPO):
            del model.return_moments


class _Evaluation(nn.Module):
    """The policy's ``evaluate_actions`` as the forward of a module, which is what DistributedDataParallel wraps."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.evaluate_actions = cast(Callable[..., Any], policy.evaluate_actions)
        # DistributedDataParallel warns where it looks for parameters without a gradient and finds none
        self.unused = nn.Parameter(torch.zeros((), device=next(policy.parameters()).device))

    def forward(self, obs: Any, actions: Tensor) -> Any:
        return self.evaluate_actions(obs, actions)


class _Update:
    """What ``PPO.train()`` of one of several processes meets instead of its buffer's and its policy's own methods.

    The gradients of all processes are averaged before ``train()`` clips them. ``train()`` looks at one process's
    advantages and KL divergence only, so these are replaced: minibatches come with advantages that are normalised
    over all processes, and ``target_kl`` by what all of them decide together.
    """

    def __init__(self, model: PPO) -> None:
        self.model, self._get = model, model.rollout_buffer.get
        # a parameter may be without a gradient: the mix of the layers, where sequences are of one step
        self.evaluation = DistributedDataParallel(_Evaluation(model.policy), find_unused_parameters=True)

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """The buffer's minibatches; while it is iterated over, the model's own settings are set aside."""
        model = self.model
        normalize, self.target_kl = model.normalize_advantage, model.target_kl
        model.normalize_advantage = False
        try:
            for samples in self._get(batch_size):
                self.old_log_prob = samples.old_log_prob
                yield samples._replace(advantages=_normalized(samples.advantages)) if normalize else samples
        finally:
            model.normalize_advantage, model.target_kl = normalize, self.target_kl

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The policy's; ends the update in all processes where the KL divergence over them is too large."""
        values, log_prob, entropy = self.evaluation(obs, actions)
        if self.target_kl is not None:
            log_ratio = log_prob.detach() - self.old_log_prob
            kl = ((log_ratio.exp() - 1) - log_ratio).mean()  # as in `PPO.train()`
            dist.all_reduce(kl)
            self.model.target_kl = -math.inf if kl / size() > 1.5 * self.target_kl else math.inf
        return values, log_prob, entropy


def _moments_of_all(of_mine: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The mean and the variance over the rollouts of all processes, which are of one size."""
    parts = [torch.empty(2, dtype=torch.float64) for _ in range(size())]
    dist.all_gather(parts, torch.tensor(of_mine(), dtype=torch.float64))
    means, variances = torch.stack(parts).unbind(dim=1)
    return float(means.mean()), float(variances.mean() + means.var(correction=0))


def _normalized(advantages: Tensor) -> Tensor:
    """This process's advantages (B*T,), normalised as `PPO.train()` does, over those of all processes."""
    of_mine = advantages.double()
    mean, variance = _moments_of_all(lambda: (float(of_mine.mean()), float(of_mine.var(correction=0))))
    count = advantages.numel() * size()
    return (advantages - mean) / (math.sqrt(variance * count / (count - 1)) + 1e-8)
