"""How far images are from those that were seen before, by numbers that describe them."""

from collections.abc import Mapping

import numpy as np

_SCALES = 5  # of differences: pixels, means of 2 x 2, ... of 16 x 16
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
    return mahalanobis(x, shrunk)


def mahalanobis(difference: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """sqrt(d C^-1 d / K) of differences d `[N, K]` from a mean with covariance C, `[N]`."""
    squared = np.einsum("ik,ik->i", difference, np.linalg.solve(covariance, difference.T).T)
    return np.sqrt(squared / len(covariance))


def greys(windows: np.ndarray, floor: float = 1e-8) -> np.ndarray:
    """Ten numbers of each `[N, S, S]` in [0, 1] on one grid, `[N, 10]`; S at least 32.

    Mean, standard deviation, three quantiles, and the logarithm of the mean squared difference of
    neighbours, plus `floor`, on five scales, which tells texture and noise. They know the size of
    what is shown and what surrounds it; `ops.appearance` takes both away before.
    """
    x = np.asarray(windows, np.float64)
    numbers = [x.mean((1, 2)), x.std((1, 2)), *np.quantile(x, [0.25, 0.5, 0.9], axis=(1, 2))]
    for _ in range(_SCALES):
        rows, columns = (np.square(np.diff(x, axis=axis)).mean((1, 2)) for axis in (1, 2))
        numbers.append(np.log(rows + columns + floor))
        side = x.shape[1] // 2
        x = x[:, : 2 * side, : 2 * side].reshape(len(x), side, 2, side, 2).mean((2, 4))
    return np.stack(numbers, axis=-1)
