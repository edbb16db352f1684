"""What kind of image it is, in ten numbers: whether a network has been trained on such images."""

import numpy as np

from ldm_morph_jax.ops.checks import check_shape

_SCALES = 5  # of the differences between neighbours: pixels, means of 2 x 2, ... of 16 x 16


def appearance(images: np.ndarray) -> np.ndarray:
    """Ten numbers of each image `[B, H, W]` in [0, 1], `[B, 10]`; H and W at least 32.

    Mean, standard deviation, three quantiles, and the logarithm of the mean squared difference of
    neighbours on five scales, which tells texture, noise and the size of what is shown.
    """
    x = np.asarray(images, np.float64)
    sizes = check_shape("images", x, "B H W")
    if min(sizes["H"], sizes["W"]) < 2**_SCALES:
        raise ValueError(f"images: found {x.shape[1:]} pixels, expected at least 32 x 32")
    numbers = [x.mean((1, 2)), x.std((1, 2)), *np.quantile(x, [0.25, 0.5, 0.9], axis=(1, 2))]
    for _ in range(_SCALES):
        rows, columns = (np.square(np.diff(x, axis=axis)).mean((1, 2)) for axis in (1, 2))
        numbers.append(np.log(rows + columns + 1e-8))
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))
    return np.stack(numbers, axis=-1)


def describe(images: np.ndarray) -> dict[str, list]:
    """Mean `[10]` and covariance `[10, 10]` of the appearance of many images, as plain numbers."""
    numbers = appearance(images)
    return {"mean": numbers.mean(axis=0).tolist(), "covariance": np.cov(numbers.T).tolist()}


def distance(images: np.ndarray, described: dict[str, list]) -> np.ndarray:
    """How far images `[B, H, W]` are from those that were described, `[B]`.

    The Mahalanobis distance of their appearance, divided by sqrt(10): about 1 for images of the
    same kind.
    """
    difference = appearance(images) - np.array(described["mean"])
    covariance = np.array(described["covariance"]) + 1e-6 * np.eye(difference.shape[1])
    squared = np.einsum("bi,bi->b", difference, np.linalg.solve(covariance, difference.T).T)
    return np.sqrt(squared / difference.shape[1])
