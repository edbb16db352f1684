"""The one shape check of `ops`: a clear error instead of a silent broadcast."""

import numpy as np


def check_shape(name: str, array, axes: str, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Check `array.shape` against `axes` and return the sizes by letter.

    `axes` is a text such as "B H W 2": a number must be matched, a letter must equal its entry in
    `sizes` (the result of an earlier check) where it has one. Raises ValueError otherwise. Reads
    the shape only, so it costs nothing inside `jit`.
    """
    sizes = sizes or {}
    found = np.shape(array)
    expected = [int(axis) if axis.isdigit() else sizes.get(axis, axis) for axis in axes.split()]
    fits = len(found) == len(expected) and all(
        isinstance(e, str) or e == f for e, f in zip(expected, found, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, expected))
        raise ValueError(f"{name}: found shape {tuple(found)}, expected [{wanted}] ({axes})")
    return dict(zip(axes.split(), found, strict=True))
