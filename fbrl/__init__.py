"""Feedback memory for Stable-Baselines3.

from fbrl import MemoryPPO
model = MemoryPPO("MlpPolicy", env)
"""

from fbrl.policy import MemoryPolicy
from fbrl.ppo import MemoryPPO

__all__ = ["MemoryPPO", "MemoryPolicy"]
