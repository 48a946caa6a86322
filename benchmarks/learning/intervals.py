"""Statistics of runs that were repeated with several seeds on one or several tasks; the methods are scipy's.

Following Agarwal et al. 2021 (arXiv 2108.13264): bootstrap intervals of the mean, the interquartile mean and the
probability of improvement, stratified: the seeds of every task are drawn anew on their own.

Scores are a list with an array (seeds,) for each task; each needs two seeds for an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fbrl.evaluation import CONFIDENCE, Estimate

RESAMPLES = 10_000
Scores = Sequence[NDArray[np.float64]]


def mean(scores: Scores) -> Estimate:
    """The mean over all seeds of all tasks."""
    return _bootstrap(lambda *tasks, axis: np.concatenate(tasks, axis=axis).mean(axis=axis), scores)


def interquartile_mean(scores: Scores) -> Estimate:
    """The mean of all seeds of all tasks but the lowest and the highest quarter."""
    return _bootstrap(lambda *tasks, axis: stats.trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis), scores)


def probability_of_improvement(scores: Scores, over: Scores) -> Estimate:
    """How probably a run with one core does better than one with the other on the same task, ties counted half.

    The mean over the tasks of Mann and Whitney's U as a share of all pairs.
    """

    def statistic(*tasks: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        halves = zip(tasks[: len(scores)], tasks[len(scores) :], strict=True)
        shares = [stats.mannwhitneyu(x, y, axis=axis)[0] / (x.shape[axis] * y.shape[axis]) for x, y in halves]
        return np.asarray(np.mean(shares, axis=0))

    return _bootstrap(statistic, [*scores, *over])


def _bootstrap(statistic: Callable[..., Any], samples: Scores) -> Estimate:
    value = float(statistic(*samples, axis=-1))
    if min(len(sample) for sample in samples) < 2:
        return Estimate(value, np.nan, np.nan)
    found = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Estimate(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
