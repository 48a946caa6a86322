"""The RL Zoo (rl-zoo3) with ``memory_ppo`` among its algorithms: ``python -m fbrl.zoo train --algo memory_ppo ...``.

The zoo is not patched: ``register`` adds entries to its tables of algorithms and samplers, which is all that it asks.
"""

from __future__ import annotations

from pathlib import Path

ALGO = "memory_ppo"
HYPERPARAMETERS = Path(__file__).with_name(f"{ALGO}.yml")


def register() -> None:
    """Adds ``memory_ppo`` to the zoo's algorithms and to those whose hyperparameters it can search.

    A second call changes nothing. ``fbrl`` itself never calls it.

    Raises:
        ModuleNotFoundError: where rl-zoo3 is not installed: ``pip install fbrl[zoo]``.
    """
    import rl_zoo3  # noqa: F401  (first, so that it is what is said to be missing)
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from fbrl.ppo import MemoryPPO
    from fbrl.zoo.sampler import converted, sample

    ALGOS[ALGO] = MemoryPPO
    HYPERPARAMS_SAMPLER[ALGO] = sample
    HYPERPARAMS_CONVERTER[ALGO] = converted
