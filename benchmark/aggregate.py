"""Aggregates over tasks and seeds, as Agarwal et al. 2021 define them (arXiv:2108.13264).

They equal those of their library rliable (metrics.py) where every task has equally many runs, and take any number a
task. A sample is a list of arrays, one a task, of that task's scores, one a seed.
"""

import math

import numpy as np

RESAMPLES = 2000  # of the bootstrap


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean without the lowest and the highest quarter of all runs."""
    cut = int(0.25 * scores.shape[-1])
    return np.sort(scores, -1)[..., cut : scores.shape[-1] - cut].mean(-1)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs above each threshold, (..., n) and (T,) -> (..., T)."""
    return np.stack([(scores > threshold).mean(-1) for threshold in thresholds], -1)


def improvement(x: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    """The probability that a run of x beats one of y on the same task, ties counting half: mean over tasks.

    Lists of (..., n) and (..., m), one a task -> (...).
    """
    pairs = [(a[..., :, None], b[..., None, :]) for a, b in zip(x, y, strict=True)]
    return np.mean([((a > b) + 0.5 * (a == b)).mean((-2, -1)) for a, b in pairs], axis=0)


def resample(sample: list[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """Stratified bootstrap: each task's runs drawn anew with replacement, [(n,)] -> [(RESAMPLES, n)]."""
    rng = np.random.default_rng(seed)
    return [scores[rng.integers(len(scores), size=(RESAMPLES, len(scores)))] for scores in sample]


def interval(draws: np.ndarray) -> np.ndarray:
    """The 95% percentile interval over the first axis: (RESAMPLES, ...) -> (2, ...)."""
    return np.percentile(draws, [2.5, 97.5], axis=0)


def deviation(values: list[float]) -> float:
    """Sample standard deviation (ddof 1, the paper's: its 92.5 ± 5.0 is 90, 90, 90, 100); NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
