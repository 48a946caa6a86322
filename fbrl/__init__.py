"""Feedback memory for Stable-Baselines3.

from fbrl import MemoryPPO
model = MemoryPPO("MlpPolicy", env)
"""

from fbrl.novelty import EpisodicNovelty
from fbrl.policy import MemoryCnnPolicy, MemoryMultiInputPolicy, MemoryPolicy
from fbrl.ppo import MemoryPPO

__all__ = ["EpisodicNovelty", "MemoryCnnPolicy", "MemoryMultiInputPolicy", "MemoryPPO", "MemoryPolicy"]
