"""The repository's task suite: memory tasks and other environments, ready for Stable-Baselines3."""

from envs.registry import UnknownEnvironmentError, make, register_tasks

__all__ = ["UnknownEnvironmentError", "make"]

register_tasks()
