"""What kind of image it is, in ten numbers: whether a network has been trained on such images.

They do not depend on gain and offset, on the size of pixels, nor on an empty margin: an image is
cut to what it shows, brought to 64 x 64 pixels and to the range of its 1st to 99th percentile.
"""

from collections.abc import Iterable

import numpy as np
import PIL.Image

from ldm_morph_jax.ops.familiar import greys, mahalanobis

_SIDE = 64
_FLOOR = 1e-6  # of squared differences: what interpolation leaves of a flat image
_EMPTY = 0.05  # of the range; darker pixels show nothing
_MARGIN = 0.02  # a row or column of which less than this is shown belongs to the margin


def appearance(images: Iterable[np.ndarray]) -> np.ndarray:
    """`familiar.greys` of each image, `[B, 10]`; images `[H, W]` may differ in size."""
    return greys(np.stack([_standard(np.asarray(image, np.float32)) for image in images]), _FLOOR)


def _standard(image: np.ndarray) -> np.ndarray:
    """An image without its margin, `[64, 64]` in [0, 1]."""
    if image.ndim != 2:
        raise ValueError(f"images: found an array of {image.ndim} dimensions, expected [H, W]")
    shown = _scaled(image) > _EMPTY
    rows, columns = (np.flatnonzero(shown.mean(axis) > _MARGIN) for axis in (1, 0))
    if len(rows) and len(columns):
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Pillow's filters grow with the reduction, so that fine structure does not alias
    small = PIL.Image.fromarray(image).resize((_SIDE, _SIDE), PIL.Image.Resampling.BILINEAR)
    return _scaled(np.asarray(small))


def _scaled(image: np.ndarray) -> np.ndarray:
    low, high = np.quantile(image, [0.01, 0.99])
    return np.clip((image - low) / max(high - low, 1e-30), 0, 1)


def describe(images: Iterable[np.ndarray]) -> dict[str, list]:
    """Mean `[10]` and covariance `[10, 10]` of the appearance of many images, as plain numbers."""
    numbers = appearance(images)
    return {"mean": numbers.mean(axis=0).tolist(), "covariance": np.cov(numbers.T).tolist()}


def distance(images: Iterable[np.ndarray], described: dict[str, list]) -> np.ndarray:
    """How far images, each `[H, W]`, are from those that were described, `[B]`.

    The Mahalanobis distance of their appearance, divided by sqrt(10): about 1 for images of the
    same kind.
    """
    difference = appearance(images) - np.array(described["mean"])
    covariance = np.array(described["covariance"])
    return mahalanobis(difference, covariance + 1e-6 * np.eye(len(covariance)))
