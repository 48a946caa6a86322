"""What a rollout tells of the policy, for the log."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import safe_mean

MOST_ACTIONS = 32  # of more, the shares say little and fill the log


def log_rollout(model: OnPolicyAlgorithm) -> None:
    """Records what the model's last rollout shows, besides what Stable-Baselines3 records.

    - ``rollout/p_action_a``: for Discrete actions, how often action a was taken; hidden from the console. The entropy
      alone does not show that most of it goes to actions which do nothing.
    - ``rollout/novelty``: under an ``EpisodicNovelty``, the mean over the last episodes of the sum of their bonuses.
    """
    space = model.action_space
    if isinstance(space, spaces.Discrete) and space.n <= MOST_ACTIONS:
        taken = model.rollout_buffer.actions.astype(np.int64).ravel() - int(space.start)
        for action, share in enumerate(np.bincount(taken, minlength=int(space.n)) / len(taken)):
            model.logger.record(f"rollout/p_action_{action}", float(share), exclude="stdout")
    bonuses = [episode["novelty"] for episode in model.ep_info_buffer or [] if "novelty" in episode]
    if bonuses:
        model.logger.record("rollout/novelty", safe_mean(bonuses))
