"""The recurrent actor-critic policy: encoder -> core -> heads, with the core's state passed in and handed back.

Over 300 lines: each method takes the place of one of ActorCriticPolicy's, which is one class too.
"""

from __future__ import annotations

import operator
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.optim import Adam

from fbrl.arguments import check_classes, fused, needs_memory, refuse_other_algorithms
from fbrl.cores.core import Actor, Core, State
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.twin import TwinCore
from fbrl.encoders import MiniGridEncoder, is_minigrid_space
from fbrl.finite import Observation, check_values, refuse_non_finite_gradients
from fbrl.sequences import Sequences
from fbrl.spaces import Reader, to_env
from fbrl.value_scale import ValueScale


class MemoryPolicy(ActorCriticPolicy):
    """Stable-Baselines3's actor-critic policy with a core between the encoder and the heads.

    Takes everything that ``ActorCriticPolicy`` takes. ``net_arch`` describes the layers between the core and
    the two heads; by default each head has one of 2 D units, with ReLU: what to do is often an exclusive-or of what is
    remembered and what is seen, which linear heads cannot tell. ``ortho_init`` leaves the core as the core initialises
    itself.

    With ``share_features_extractor=False`` the critic has an encoder and a core of its own; a state then holds the
    actor's core's tensors and behind them the critic's.

    Values are in the reward's units wherever they are handed out, except by ``evaluate_actions``: see ``ValueScale``.

    Args:
        observation_space, action_space, lr_schedule: as in Stable-Baselines3.
        core_class: the ``Core`` to use.
        core_kwargs: its sizes.
        **kwargs: passed on to ``ActorCriticPolicy``.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        core_class: type[Core] = FastFeedbackTransformer,
        core_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_other_algorithms(self)
        check_classes(core_class, Core, kwargs.get("activation_fn", nn.Tanh))
        self.reader = Reader(observation_space)
        self._last_predicted: tuple[tuple[np.ndarray[Any, Any], ...], Actor] | None = None
        self.core_class = core_class
        self.core_kwargs = core_kwargs or {}
        self.default_heads = kwargs.get("net_arch") is None
        if self.default_heads:
            kwargs["net_arch"] = []  # until the core's width is known
            kwargs.setdefault("activation_fn", nn.ReLU)
        kwargs["optimizer_kwargs"] = fused(kwargs.get("optimizer_class", Adam), kwargs.get("optimizer_kwargs"))
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "core_class": self.core_class,
            "core_kwargs": self.core_kwargs,
            "share_features_extractor": self.share_features_extractor,
        }

    def _build_core(self) -> None:
        """The core, and what stands before it. What is built next reads ``features_dim`` features of the core's."""
        core = self.core_class(**self.core_kwargs)
        self.core_input = self._make_core_input(core.d_model)
        self.core = core
        if not self.share_features_extractor:
            self.vf_core_input = self._make_core_input(core.d_model)
            self.core = TwinCore(core, self.core_class(**self.core_kwargs))
        if self.default_heads:
            self.net_arch = [2 * core.d_model]
        self.value_scale = ValueScale()
        self.features_dim = core.d_model

    def _make_core_input(self, d_model: int) -> nn.Sequential:
        # the encoder output is layer-normed to unit scale because it enters the memory as layer 0
        return nn.Sequential(
            nn.Linear(int(self.features_dim), d_model), nn.LayerNorm(d_model, elementwise_affine=False)
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Puts the core before Stable-Baselines3's own layers, heads and optimiser, which are built as ever."""
        self._build_core()
        super()._build(lr_schedule)
        layers = self.mlp_extractor
        empty = isinstance(layers, MlpExtractor) and not len(layers.policy_net) + len(layers.value_net)
        if empty and self.activation_fn is not nn.Tanh:  # the default
            given = self.activation_fn.__name__
            raise ValueError(f"activation_fn has no effect where net_arch is empty; got {given}")
        self.optimizer.register_step_pre_hook(refuse_non_finite_gradients)

    @property
    def actor_core(self) -> Core:
        """The core that the actions come from: the only one, or the actor's."""
        return self.core.pi if isinstance(self.core, TwinCore) else self.core

    def initial_state(self, batch_size: int) -> State:
        """The core's state of ``batch_size`` sequences before their first step."""
        return self.core.initial_state(batch_size)

    @property
    def _distributes_otherwise(self) -> bool:
        """Whether a subclass has a distribution of its own, by which ``predict`` acts as it does in PPO's policies."""
        return type(self).get_distribution is not MemoryPolicy.get_distribution

    def actor(self, state: State) -> Actor:
        """What acts from ``state`` on, one step at a time."""
        return Actor(self.core, state) if self._distributes_otherwise else self.core.actor(state)

    def encode(self, obs: PyTorchObs) -> Tensor:
        """Observations (N, ...), or a dict of them -> what the core reads, layer-normed.

        (N, D); of an actor and a critic that share nothing (N, 2 D), the actor's first.
        """
        features = self.extract_features(self.reader.from_zero(obs))
        if isinstance(features, tuple):
            return torch.cat([self.core_input(features[0]), self.vf_core_input(features[1])], dim=-1)
        return cast(Tensor, self.core_input(features))

    def _features(self, sequences: Sequences) -> tuple[Tensor, State]:
        """What the core makes of sequences, (B*T, D or 2 D), flattened in their order, and the state after them."""
        observations, episode_starts, state, iterate = sequences
        batch, steps = episode_starts.shape
        if isinstance(observations, dict):
            flat: PyTorchObs = {key: value.flatten(0, 1) for key, value in observations.items()}
        else:
            flat = observations.flatten(0, 1)
        x = self.encode(flat).unflatten(0, (batch, steps))
        if iterate is None:
            features, state = self.core(x, state, episode_starts)
        else:
            features, state = iterate.run(self.core, x, state, episode_starts)
        return features.flatten(0, 1), state

    def _step_features(self, obs: PyTorchObs, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """``_features`` of one step: obs (B, ...), episode_start (B,)."""
        if isinstance(obs, dict):
            sequence: PyTorchObs = {key: value.unsqueeze(1) for key, value in obs.items()}
        else:
            sequence = obs.unsqueeze(1)
        return self._features(Sequences(sequence, episode_start.unsqueeze(1), state))

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        state: State | None = None,
        episode_start: Tensor | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """One acting step.

        Args:
            obs: (B, ...), or a dict of them.
            state: the core's state, tensors (B, ...).
            episode_start: (B,) bool.
            deterministic: the most probable action instead of a sampled one.

        Returns:
            actions (B, ...), values (B, 1), log-probabilities (B,), the state after the step.

        Raises:
            TypeError: where it is called as PPO's is, without ``state`` and ``episode_start``.
        """
        if not isinstance(state, tuple) or episode_start is None:
            raise needs_memory("forward")
        features, state = self._step_features(obs, state, episode_start)
        return *self._choose(features, deterministic), state

    def act(self, obs: PyTorchObs, actor: Actor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        """``forward`` with sampled actions, going on from where ``actor``, one of ``self.core``'s, stands."""
        features, state = actor.step(self.encode(obs), episode_start)
        return *self._choose(features, deterministic=False), state

    def _choose(self, features: Tensor, deterministic: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What the heads make of features (B, ...): actions (B, ...), values (B, 1), log-probabilities (B,)."""
        distribution = self._distribution(features)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        values = self.value_scale.to_raw(self._values(features))
        return actions.reshape((-1, *(self.action_space.shape or ()))), values, log_prob

    def _distribution(self, features: Tensor) -> Distribution:
        """The action distribution, from what the core gives."""
        return self._get_action_dist_from_latent(self._latent_pi(features))

    def _latent_pi(self, features: Tensor) -> Tensor:
        """What the action's layer reads, from what the core gives."""
        if not self.share_features_extractor:
            features = features.chunk(2, dim=-1)[0]
        return self.mlp_extractor.forward_actor(features)

    @property
    def _by_logits(self) -> bool:
        """Whether the most probable action is that of the highest output: a Categorical that nobody made otherwise."""
        ours = type(self)._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        return ours and type(self.action_dist) is CategoricalDistribution

    def _values(self, features: Tensor) -> Tensor:
        """The values (B, 1) in the units of ``value_scale``, from what the core gives."""
        if not self.share_features_extractor:
            features = features.chunk(2, dim=-1)[1]
        return cast(Tensor, self.value_net(self.mlp_extractor.forward_critic(features)))

    def evaluate_actions(  # type: ignore[override]
        self, obs: Sequences, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (B*T, 1), log-probabilities (B*T,) and entropies (B*T,) of ``actions`` (B*T, ...) in sequences.

        The values are in the units of ``value_scale``, as those of the buffer's minibatches are.
        """
        if not isinstance(obs, Sequences):
            given = type(obs).__name__
            raise TypeError(f"evaluate_actions of a policy that remembers takes fbrl.sequences.Sequences, got {given}")
        features, _ = self._features(obs)
        distribution, values = self._distribution(features), self._values(features)
        if values.requires_grad:
            check_values(values)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, state: State | None = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, State]:
        """The action distribution of one step and the state after it; arguments as in ``forward``."""
        if not isinstance(state, tuple) or episode_start is None:
            raise needs_memory("get_distribution")
        features, state = self._step_features(obs, state, episode_start)
        return self._distribution(features), state

    def predict_values(
        self, obs: PyTorchObs, state: State | None = None, episode_start: Tensor | None = None
    ) -> Tensor:
        """The values (B, 1) of one step, which leaves ``state`` as it is; arguments as in ``forward``."""
        if not isinstance(state, tuple) or episode_start is None:
            raise needs_memory("predict_values")
        features, _ = self._step_features(obs, state, episode_start)
        return self.value_scale.to_raw(self._values(features))

    def _predict(  # type: ignore[override]
        self, observation: PyTorchObs, actor: Actor, episode_start: Tensor, deterministic: bool = False
    ) -> Tensor:
        if self._distributes_otherwise:
            distribution, actor.state = self.get_distribution(observation, actor.state, episode_start)
        else:
            features, _ = actor.step(self.encode(observation), episode_start)
            if deterministic and self._by_logits:
                return cast(Tensor, self.action_net(self._latent_pi(features)).argmax(dim=1))
            distribution = self._distribution(features)
        return distribution.get_actions(deterministic=deterministic)

    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
        """The actions for one observation or a batch, and the state to pass in with the next.

        Going on from the very arrays that the call before returned is faster than from equal ones: what was made of
        them is still there.

        Args:
            observation: one observation or a batch of B.
            state: what the call before returned; ``None`` before the first step.
            episode_start: (B,) bool, true where ``observation`` is the first of an episode; ``None`` for nowhere.
            deterministic: the most probable action instead of a sampled one.

        Returns:
            actions, and the state: a tuple of arrays, not to be written to, whose first dimension is B (1 for a single
            observation).

        Raises:
            ValueError: where ``state`` or ``episode_start`` does not fit the observation or the core, or where
                the observation is not finite.
        """
        if self.training:
            self.set_training_mode(False)
        if isinstance(observation, tuple):
            raise ValueError(
                "observation must be an array or a dict, got a tuple: you are probably mixing Gym API with SB3 VecEnv "
                "API; of `obs, info = env.reset()` pass obs"
            )
        self.reader.check(observation, "observation")
        with torch.inference_mode(False), torch.no_grad():  # what is kept is written to again, in whatever mode
            obs, vectorized = self.obs_to_tensor(observation)
            batch_size = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
            actor = self._actor_from(state, batch_size)
            starts = np.zeros(batch_size, bool) if episode_start is None else np.asarray(episode_start, bool).ravel()
            if starts.size != batch_size:
                raise ValueError(f"episode_start must have one entry an observation, {batch_size}, got {starts.size}")
            starts_tensor = torch.as_tensor(starts, device=actor.state[0].device)
            actions = self._predict(obs, actor, starts_tensor, deterministic)
        returned = tuple(tensor.numpy(force=True) for tensor in actor.state)
        for part in returned:
            part.flags.writeable = False
        self._last_predicted = (returned, actor)
        array = self._to_env_actions(actions.cpu().numpy())
        return array if vectorized else array.squeeze(axis=0), returned

    def _actor_from(self, state: tuple[np.ndarray[Any, Any], ...] | None, batch_size: int) -> Actor:
        """What ``predict`` goes on with: the last call's actor where ``state`` is what it returned, else a new one."""
        if self._last_predicted is not None and state is not None:
            returned, actor = self._last_predicted
            self._last_predicted = None  # should this step fail, ``returned`` is not what the actor goes on from
            same = state is returned or (len(state) == len(returned) and all(map(operator.is_, state, returned)))
            here = actor.state[0].device == self.value_net.weight.device
            if same and here and len(returned[0]) == batch_size and actor.acts_with(self.core):
                return actor
        return self.actor(self._state_tensors(state, batch_size))

    def _state_tensors(self, state: tuple[np.ndarray[Any, Any], ...] | None, batch_size: int) -> State:
        """The state that ``predict`` was given, as tensors; raises ValueError where its shapes do not fit."""
        initial = self.initial_state(batch_size)
        if state is None:
            return initial
        given, wanted = [np.shape(array) for array in state], [tuple(tensor.shape) for tensor in initial]
        if given != wanted:
            raise ValueError(f"state must be arrays of shapes {wanted} for {batch_size} observations, got {given}")
        return tuple(
            torch.tensor(array, device=tensor.device, dtype=tensor.dtype)
            for array, tensor in zip(state, initial, strict=True)
        )

    def _to_env_actions(self, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Actions (B, ...) of the distribution, in the shape and as values in the action space."""
        actions = actions.reshape((-1, *(self.action_space.shape or ())))
        return to_env(self.unscale_action(actions) if self.squash_output else actions, self.action_space)


def goes_through_forward(policy: nn.Module) -> bool:
    """Whether a step of a rollout is to be ``policy(...)``: someone has compiled, hooked or overridden ``forward``."""
    inner = getattr(policy, "_orig_mod", policy)  # what torch.compile has wrapped
    hooked = inner._forward_hooks or inner._forward_pre_hooks or inner._compiled_call_impl is not None
    return bool(hooked or inner is not policy or inner.forward != MethodType(MemoryPolicy.forward, inner))


class MemoryCnnPolicy(MemoryPolicy):
    """``MemoryPolicy`` that reads images with Stable-Baselines3's NatureCNN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN} | kwargs)


class MemoryMultiInputPolicy(MemoryPolicy):
    """``MemoryPolicy`` for Dict observations: ``MiniGridEncoder`` where they are MiniGrid's, else CombinedExtractor."""

    def __init__(self, observation_space: spaces.Space[Any], *args: Any, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Dict):
            given = type(observation_space).__name__
            raise ValueError(f"MultiInputPolicy reads a Dict; MlpPolicy and CnnPolicy read others, got {given}")
        encoder = MiniGridEncoder if is_minigrid_space(observation_space) else CombinedExtractor
        super().__init__(observation_space, *args, **{"features_extractor_class": encoder} | kwargs)
