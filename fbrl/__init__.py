"""Feedback memory for Stable-Baselines3.

from fbrl import MemoryPPO
model = MemoryPPO("MlpPolicy", env)
"""

from fbrl.novelty import EpisodicNovelty
from fbrl.policy import MemoryCnnPolicy, MemoryMultiInputPolicy, MemoryPolicy
from fbrl.ppo import MemoryPPO

__version__ = "0.1.0"  # setup.cfg reads it; CITATION.cff repeats it

__all__ = ["EpisodicNovelty", "MemoryCnnPolicy", "MemoryMultiInputPolicy", "MemoryPPO", "MemoryPolicy"]
