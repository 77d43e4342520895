"""Aggregates over tasks and seeds, in which every task weighs the same, and their 95% bootstrap intervals.

IQM, profile and probability of improvement are those of Agarwal et al. 2021 (arXiv:2108.13264): they equal their
library rliable's (metrics.py) where every task has equally many runs, and take any number a task. A sample is a list of
arrays, one a task, of that task's scores, (..., runs); of two algorithms that share seeds, (..., seeds, 2).
"""

import math
from collections.abc import Callable

import numpy as np

RESAMPLES = 2000  # of the bootstrap
# What the intervals are worth: tests/test_report.py repeats the simulation's first figure
COVERAGE = (
    "An interval called 95% is too narrow where seeds are few. In a simulation (independent normal scores with the "
    "means and deviations of the paper's ASPC column, 6,000 repetitions a figure) it held the true interquartile mean "
    "in 85% of cases with 3 seeds on 14 tasks (Table 3's nine, the mazes, pen-human and door-human), 89% with 4 on all "
    "39, 93% with 10 on Table 3's nine; the true mean in 84%, 89% and 92%."
)


def mean(sample: list[np.ndarray]) -> np.ndarray:
    """The mean over tasks of the means over runs."""
    return np.mean([scores.mean(-1) for scores in sample], axis=0)


def gain(pairs: list[np.ndarray]) -> np.ndarray:
    """By how much the second of two algorithms is better, seed by seed: mean over tasks."""
    return mean([scores[..., 1] - scores[..., 0] for scores in pairs])


def relative_gain(pairs: list[np.ndarray]) -> np.ndarray:
    """The second's mean over that of the first, less 1: the gains in percent of the paper's tables. NaN over 0."""
    base = mean([scores[..., 0] for scores in pairs])
    return gain(pairs) / np.where(base == 0, math.nan, base)


def iqm(sample: list[np.ndarray]) -> np.ndarray:
    """Interquartile mean: of all runs together, without the lowest and the highest quarter.

    A run weighs 1 / (runs of its task). As in rliable a whole number of runs' weights is cut at each end.
    """
    scores = np.concatenate(sample, -1)
    weights = np.concatenate([np.full(x.shape[-1], 1 / x.shape[-1] / len(sample)) for x in sample])
    cut = int(0.25 * len(weights)) / len(weights)
    order = scores.argsort(-1)
    scores, weights = np.take_along_axis(scores, order, -1), weights[order]
    ends = weights.cumsum(-1)
    kept = np.clip(np.minimum(ends, 1 - cut) - np.maximum(ends - weights, cut), 0, None)
    return (kept * scores).sum(-1) / kept.sum(-1)


def profile(sample: list[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs above each threshold, mean over tasks, -> (..., thresholds)."""
    return np.stack([mean([scores > threshold for scores in sample]) for threshold in thresholds], -1)


def improvement(pairs: list[np.ndarray]) -> np.ndarray:
    """The probability that a run of the second beats one of the first on the same task, ties counting half: mean over
    tasks. Every run of the one meets every run of the other.
    """
    meet = [(scores[..., :, None, 1], scores[..., None, :, 0]) for scores in pairs]
    return np.mean([((a > b) + 0.5 * (a == b)).mean((-2, -1)) for a, b in meet], axis=0)


def correlation(pairs: list[np.ndarray]) -> float:
    """Of two algorithms' scores by seed, mean over tasks: what pairing them is worth. NaN where seeds do not vary."""
    vary = [scores for scores in pairs if len(scores) > 1 and (scores != scores[0]).any(0).all()]
    return float(np.mean([np.corrcoef(scores.T)[0, 1] for scores in vary])) if vary else math.nan


def resample(sample: list[np.ndarray]) -> list[np.ndarray]:
    """Stratified bootstrap: each task's seeds drawn anew with replacement, [(n, ...)] -> [(RESAMPLES, n, ...)].

    Of two algorithms a drawn seed brings the scores of both: a paired bootstrap.
    """
    rng = np.random.default_rng(0)
    return [scores[rng.integers(len(scores), size=(RESAMPLES, len(scores)))] for scores in sample]


def interval(draws: np.ndarray) -> np.ndarray:
    """The 95% percentile interval over the first axis: (RESAMPLES, ...) -> (2, ...)."""
    return np.percentile(draws, [2.5, 97.5], axis=0)


def estimate(statistic: Callable, sample: list[np.ndarray]) -> tuple[float, float, float]:
    """A statistic of a sample, and its interval's ends: NaN if a task has one seed, whose variation nobody knows."""
    one = min(map(len, sample)) < 2
    return float(statistic(sample)), *((math.nan,) * 2 if one else map(float, interval(statistic(resample(sample)))))


def deviation(values: list[float]) -> float:
    """Sample standard deviation (ddof 1, the paper's: its 92.5 ± 5.0 is 90, 90, 90, 100); NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
