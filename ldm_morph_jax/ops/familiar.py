"""How far numbers that describe something are from those that were seen before."""

from collections.abc import Mapping

import numpy as np

_SHRINKAGE = 0.1  # of the correlations towards none: a sample of hundreds has random ones


def describe(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Mean `[K]`, standard deviation `[K]` and correlation `[K, K]` of `[N, K]` numbers."""
    x = np.asarray(numbers, np.float64)
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-4)
    scaled = (x - mean) / deviation
    return {"mean": mean, "deviation": deviation, "correlation": scaled.T @ scaled / len(x)}


def distance(numbers: np.ndarray, described: Mapping[str, np.ndarray]) -> np.ndarray:
    """The Mahalanobis distance of `[N, K]` numbers over sqrt(K), `[N]`.

    About 1 for numbers like those described. Correlations are shrunk (Ledoit and Wolf, J.
    Multivariate Analysis 88, 2004, with a fixed intensity), so that K may be near the number of
    rows that were described.
    """
    mean, deviation, correlation = (
        np.asarray(described[key], np.float64) for key in ("mean", "deviation", "correlation")
    )
    x = (np.asarray(numbers, np.float64) - mean) / deviation
    shrunk = (1 - _SHRINKAGE) * correlation + _SHRINKAGE * np.eye(len(mean))
    return np.sqrt(np.einsum("ik,ik->i", x, np.linalg.solve(shrunk, x.T).T) / len(mean))
