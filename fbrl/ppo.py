"""PPO with a memory: Stable-Baselines3's PPO, whose policy carries a core's state through the steps of an episode.

Over 300 lines, a quarter of which are ``collect_rollouts``, kept beside the upstream method that it follows.
"""

from __future__ import annotations

import inspect
import io
import warnings
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from fbrl.arguments import NoMemoryError, check_buffer_kwargs, check_policy, check_sizes
from fbrl.buffer import SequenceDictRolloutBuffer, SequenceRolloutBuffer
from fbrl.cores.core import State
from fbrl.cores.feedback import FeedbackTransformer
from fbrl.figures import log_rollout
from fbrl.finite import LARGEST_VALUE, NotFiniteError
from fbrl.policy import MemoryCnnPolicy, MemoryMultiInputPolicy, MemoryPolicy, goes_through_forward
from fbrl.spaces import as_numbers, check_spaces, contiguous

SelfMemoryPPO = TypeVar("SelfMemoryPPO", bound="MemoryPPO")

PPO_ARGUMENTS = inspect.signature(PPO).parameters


class MemoryPPO(PPO):
    """Proximal Policy Optimization with a policy that remembers.

    ``PPO.train()`` is used unchanged. The core is a Feedback Transformer; its sizes are set with
    ``policy_kwargs=dict(core_kwargs=dict(d_model=128, n_layers=2, n_heads=4, window=64))``, and another core with
    ``core_class`` beside them.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a ``MemoryPolicy``.
        env, learning_rate, ...: as in ``stable_baselines3.PPO``, in its order and with its defaults but for ``n_steps``
            and ``batch_size``.
        n_steps: steps of each environment in a rollout; a multiple of ``seq_len``.
        batch_size: steps in a minibatch; a multiple of ``seq_len``.
        seq_len: steps that the loss is back-propagated through.
        normalize_values: learn values in units of the returns' running mean and deviation (``ValueScale``), so that
            rewards may be of any scale. ``train/value_loss`` and ``clip_range_vf`` are then in these units.
        passes: train with so many parallel passes over each sequence (``fbrl.cores.feedback_passes``) in the place
            of the scan; ``None`` for the scan.

    Raises:
        ValueError: where sizes do not fit each other, a space is not supported, the policy has no memory,
            ``rollout_buffer_class`` is not a ``SequenceRolloutBuffer``, or ``rollout_buffer_kwargs`` holds what is
            given elsewhere.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MemoryPolicy,
        "CnnPolicy": MemoryCnnPolicy,
        "MultiInputPolicy": MemoryMultiInputPolicy,
    }
    policy: MemoryPolicy
    gives_memory = True
    normalize_values = False  # of an agent that was saved before it could be said
    _last_state: State | None = None

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        seq_len: int = 32,
        passes: int | None = None,
        normalize_values: bool = True,
    ) -> None:
        of_ppo = {name: value for name, value in locals().items() if name in PPO_ARGUMENTS}
        check_policy(policy, MemoryPolicy)
        check_buffer_kwargs(rollout_buffer_kwargs)
        if batch_size == 1 and normalize_advantage:
            raise ValueError("batch_size must be at least 2 where advantages are normalized, got 1")
        self.seq_len, self.passes = seq_len, passes
        if _init_setup_model:  # not where an agent is loaded, whose file says it
            check_sizes(seq_len, passes, n_steps=n_steps, batch_size=batch_size)
            self.normalize_values = normalize_values
        with warnings.catch_warnings():  # a rollout of one minibatch is no truncated one
            warnings.filterwarnings("ignore", r"You have specified a mini-batch size .* after every 0 untruncated")
            super().__init__(**of_ppo)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces(env)
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if "normalize_values" not in vars(self):  # saved when heads were linear unless it was said otherwise
            self.policy_kwargs = {"net_arch": []} | self.policy_kwargs
        check_sizes(self.seq_len, self.passes, n_steps=self.n_steps, batch_size=self.batch_size)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = SequenceDictRolloutBuffer if is_dict else SequenceRolloutBuffer
        if not issubclass(self.rollout_buffer_class, SequenceRolloutBuffer):
            name = self.rollout_buffer_class.__name__
            raise ValueError(f"rollout_buffer_class must be a SequenceRolloutBuffer, got {name}")
        self.rollout_buffer_kwargs = self.rollout_buffer_kwargs | {"seq_len": self.seq_len, "passes": self.passes}
        super()._setup_model()
        if self.passes is not None and not issubclass(self.policy.core_class, FeedbackTransformer):
            raise ValueError(f"passes needs a FeedbackTransformer core, got {self.policy.core_class.__name__}")
        if self.normalize_values:
            self.rollout_buffer.value_scale = self.policy.value_scale  # type: ignore[attr-defined]
        self._last_state = None

    @classmethod
    def load(
        cls: type[SelfMemoryPPO], path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfMemoryPPO:
        """As ``PPO.load``; raises ValueError where the file holds an agent of an algorithm without memory."""
        try:
            return super().load(path, *args, **kwargs)
        except NoMemoryError as error:
            found = str(error).rpartition(" ")[2]
            raise NoMemoryError(
                f"{path}: holds no MemoryPPO but a PPO, or another agent without memory, whose policy is {found}: load "
                "it by its own class, such as stable_baselines3.PPO"
            ) from None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_state", "return_moments"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fills the buffer with ``n_rollout_steps`` steps of every environment; false where a callback stopped it.

        Follows ``OnPolicyAlgorithm.collect_rollouts`` of Stable-Baselines3 2.9.2. What differs: the policy is given
        the episode starts and acts by the core's actor, which carries the state; the states before and after each
        step go to the buffer; and the value that bootstraps a truncated episode is that of its last observation
        with the memory after its last step. Over 60 lines, so that the two can be read side by side.

        Raises:
            ValueError: where an observation or a reward is not finite.
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer)
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        self.policy.reader.check(self._last_obs, "observation", "of environment {}")
        if self._last_state is None or len(self._last_state[0]) != env.num_envs:
            self._last_state = self.policy.initial_state(env.num_envs)
        actor = self.policy.actor(self._last_state)
        act = self.policy if goes_through_forward(self.policy) else None
        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            if not actor.acts_with(self.policy.core):  # a callback has put in another
                actor = self.policy.actor(self._last_state)
            more = self.of_step(env)
            with torch.no_grad():
                starts = torch.as_tensor(self._last_episode_starts, dtype=torch.bool, device=self.device)
                obs_tensor = obs_as_tensor(contiguous(self._last_obs), self.device)
                if act is None:
                    action_tensor, values, log_probs, next_state = self.policy.act(obs_tensor, actor, starts, **more)
                else:
                    action_tensor, values, log_probs, next_state = act(obs_tensor, self._last_state, starts, **more)
            actions = action_tensor.cpu().numpy()
            clipped_actions = self.policy._to_env_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            place = f"of environment {{}} at step {self.num_timesteps // env.num_envs}"
            self.policy.reader.check(new_obs, "observation", place)  # type: ignore[arg-type]
            rewards = as_numbers(rewards, "reward", env.num_envs, place)
            dones = as_numbers(dones, "done", env.num_envs, place).astype(bool)

            callback.update_locals(locals())
            if not callback.on_step():
                # unlike upstream, go on from here and not from the step before if learning is taken up again
                self._last_obs, self._last_episode_starts, self._last_state = new_obs, dones, next_state  # type: ignore[assignment]
                return False

            self._update_info_buffer(infos, dones)
            rollout_buffer.add(
                self._last_obs,
                actions,
                rewards,
                self._last_episode_starts,
                values,
                log_probs,
                state=self._last_state,
                next_state=next_state,
                after_cut=self._values_after_cut(dones, infos, next_state),
                **more,
            )
            self._last_obs, self._last_episode_starts, self._last_state = new_obs, dones, next_state  # type: ignore[assignment]

        with torch.no_grad():
            starts = torch.as_tensor(dones, dtype=torch.bool, device=self.device)
            values = self.policy.predict_values(obs_as_tensor(contiguous(new_obs), self.device), next_state, starts)
        if self.normalize_values:
            self._renew_value_scale(rollout_buffer, values, dones)
        else:
            rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        log_rollout(self)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def of_step(self, env: VecEnv) -> dict[str, Any]:
        """What acting and the buffer are given with each step besides: nothing here, masks in a subclass."""
        return {}

    def _renew_value_scale(
        self, buffer: SequenceRolloutBuffer, last_values: Tensor, dones: np.ndarray[Any, Any]
    ) -> None:
        """Computes returns and advantages, and takes the returns into the units of the value head.

        Before there are any, the units are those of the returns that the rewards give without values.
        """
        scale = self.policy.value_scale
        first = not scale.known
        if first:
            said = buffer.values.copy(), buffer.after_cut.copy()
            buffer.values[:], buffer.after_cut[:] = 0, np.nan
            buffer.compute_returns_and_advantage(torch.zeros_like(last_values), dones)
            scale.update(*self.return_moments(), self.policy.value_net)
            mean, std = scale.mean.item(), scale.std.item()
            buffer.values[:], buffer.after_cut[:] = (mean + std * values for values in said)
            last_values = scale.to_raw(last_values)
        buffer.compute_returns_and_advantage(last_values, dones)
        if not first:
            scale.update(*self.return_moments(), self.policy.value_net)
        self.logger.record("train/return_mean", scale.mean.item())
        self.logger.record("train/return_std", scale.std.item())

    def return_moments(self) -> tuple[float, float]:
        """The mean and the variance of the rollout's returns."""
        returns = self.rollout_buffer.returns.astype(np.float64)
        return float(returns.mean()), float(returns.var())

    def train(self) -> None:
        """``PPO.train``; then logs the drift of each epoch e of parallel passes as ``memory/drift_e``."""
        assert isinstance(self.rollout_buffer, SequenceRolloutBuffer)
        largest = np.abs(self.rollout_buffer.returns).max()
        if not largest <= LARGEST_VALUE:
            raise NotFiniteError(f"the value loss is not finite: returns are as large as {largest:g}")
        super().train()
        for epoch, drift in enumerate(self.rollout_buffer.drift, start=1):
            self.logger.record(f"memory/drift_{epoch}", drift)

    def _values_after_cut(
        self, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]], state: State
    ) -> np.ndarray[Any, Any]:
        """(n_envs,) the value of the last observation where an episode was cut short, NaN elsewhere."""
        values = np.full(len(dones), np.nan, dtype=np.float32)
        cut = [
            index
            for index in np.flatnonzero(dones)
            if infos[index].get("terminal_observation") is not None and infos[index].get("TimeLimit.truncated", False)
        ]
        if not cut:
            return values
        last = [infos[index]["terminal_observation"] for index in cut]
        for index, observation in zip(cut, last, strict=True):
            step = self.num_timesteps // len(dones)
            self.policy.reader.check(observation, "terminal_observation", f"of environment {index} at step {step}")
        if isinstance(self.observation_space, spaces.Dict):
            stacked: Any = {key: np.stack([obs[key] for obs in last]) for key in last[0]}
        else:
            stacked = np.stack(last)
        rows = torch.as_tensor(np.array(cut), device=self.device)
        with torch.no_grad():
            obs, _ = self.policy.obs_to_tensor(stacked)
            going_on = torch.zeros(len(cut), dtype=torch.bool, device=self.device)
            after = self.policy.predict_values(obs, tuple(part[rows] for part in state), going_on)
        values[cut] = after.flatten().cpu().numpy()
        return values

    def learn(
        self: SelfMemoryPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMemoryPPO:
        """As ``PPO.learn``."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
