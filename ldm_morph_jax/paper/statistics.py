"""Is one method better than another? By patient, over training seeds, for many comparisons at once.

Pairs of one patient are not independent, and one training is one draw of many: what is resampled
are patients and, where a method was trained several times, its trainings.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """Scores of one method minus those of another on the same pairs.

    difference: mean over pairs, of scores averaged over seeds
    low, high: its 95 % bootstrap interval, patients and seeds resampled
    p_value: two-sided Wilcoxon signed-rank test of the patients' mean differences
    patients, pairs: how many of each
    seeds: trainings of the first and of the second method
    """

    difference: float
    low: float
    high: float
    p_value: float
    patients: int
    pairs: int
    seeds: tuple[int, int]

    @property
    def reversed(self) -> "Comparison":
        """The second method minus the first."""
        return self._replace(
            difference=0.0 - self.difference,  # 0, where -0 would be written with a sign
            low=0.0 - self.high,
            high=0.0 - self.low,
            seeds=self.seeds[::-1],
        )


def compare(first: np.ndarray, second: np.ndarray, patients: Sequence[str]) -> Comparison:
    """Compare two methods.

    Every resample draws as many patients as there are, with all their pairs, and as many trainings
    of each method as it has, all with replacement (hierarchical or cluster bootstrap; percentile
    interval, 9999 resamples, a fixed seed). With one training the interval cannot know what
    another would give. A pair without a score (NaN) in any training of either method is left out;
    without any pair all numbers are NaN.

    Args:
        first, second: scores of N pairs by each of S trainings, `[S, N]`; S may differ.
        patients: the patient of every pair.

    Raises:
        ValueError: for scores that are not `[S, N]`, or not of as many pairs as there are patients.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for name, scores in (("first", first), ("second", second)):
        if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(patients):
            raise ValueError(
                f"{name}: found scores of shape {scores.shape}, expected [seeds, {len(patients)}], "
                "a column for every pair"
            )
    seeds = len(first), len(second)
    scored = ~np.isnan(np.concatenate([first, second])).any(axis=0)
    if not scored.any():
        return Comparison(*[float("nan")] * 4, 0, 0, seeds)
    first, second = first[:, scored], second[:, scored]
    names, number = np.unique(np.asarray(patients)[scored], return_inverse=True)
    of_patient = np.eye(len(names))[number]  # [pairs, patients]
    pairs = of_patient.sum(axis=0)

    rng = np.random.default_rng(0)
    drawn = _draws(rng, len(names))

    def resampled_means(scores):
        trainings = _draws(rng, len(scores)) / len(scores)
        sums = np.einsum("rs,sp,rp->r", trainings, scores @ of_patient, drawn, optimize=True)
        return sums / (drawn @ pairs)

    resampled = resampled_means(first) - resampled_means(second)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    difference = first.mean(axis=0) - second.mean(axis=0)
    of_patients = difference @ of_patient / pairs
    p_value = stats.wilcoxon(of_patients).pvalue if of_patients.any() else 1.0
    return Comparison(
        float(difference.mean()),
        float(low),
        float(high),
        float(p_value),
        len(names),
        int(scored.sum()),
        seeds,
    )


def _draws(rng: np.random.Generator, n: int) -> np.ndarray:
    """`[RESAMPLES, n]`: how often each of n is among n draws with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number (Holm, 1979); NaN stay NaN and are not counted.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be smaller than one
    before it, or above 1.
    """
    p_values = np.asarray(p_values, np.float64)
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(p_values.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected
