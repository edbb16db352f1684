"""Is one method better than another on the same pairs?"""

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9999


class Comparison(NamedTuple):
    """Paired scores, first minus second.

    difference: its mean over `n` pairs
    low, high: 95 % bootstrap interval of that mean
    p_value: two-sided Wilcoxon signed-rank test of the differences
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare scores `[N]` of the same N pairs; pairs without one of the scores (NaN) are left out.

    The interval is SciPy's bias-corrected and accelerated one with 9999 resamples and a fixed seed.
    Differences that are all equal have no distribution: their interval is the mean alone, and
    p is 1 if they are all zero. Without any pair everything is NaN.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores: found shapes {first.shape}, {second.shape}, expected one [N]")
    difference = first - second
    difference = difference[~np.isnan(difference)]
    if not difference.size:
        return Comparison(0, *[float("nan")] * 4)
    mean = float(difference.mean())
    low = high = mean
    if np.ptp(difference) > 0:
        low, high = stats.bootstrap(
            (difference,), np.mean, n_resamples=RESAMPLES, confidence_level=0.95, rng=0
        ).confidence_interval
    p_value = stats.wilcoxon(difference).pvalue if difference.any() else 1.0
    return Comparison(difference.size, mean, float(low), float(high), float(p_value))
