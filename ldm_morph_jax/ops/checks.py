"""The shape check of `ops`: what `chex.assert_shape` checks, with the argument's name.

Not chex itself, because that imports JAX, which a process that only draws does without: with chex
`register --example` takes 0.7 s longer (4.7 s against 4.0 s, second call, two cores in use).
"""

import numpy as np


def check_shape(name: str, array, axes: str, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Check `array.shape` against `axes` and return the sizes by letter.

    `axes` is a string such as "B H W 2". A number must match exactly; a letter must equal its entry
    in `sizes` (the result of an earlier check), if it has one. Raises ValueError otherwise. Only
    the shape is read, so the check costs nothing inside `jit`.
    """
    names, sizes = axes.split(), sizes or {}
    found = np.shape(array)
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in names]
    fits = len(found) == len(expected) and all(
        size is None or size == n for size, n in zip(expected, found, strict=True)
    )
    if not fits:
        wanted = (
            axis if size is None else size for axis, size in zip(names, expected, strict=True)
        )
        raise ValueError(
            f"{name}: found shape {found}, expected [{', '.join(map(str, wanted))}] ({axes})"
        )
    return dict(zip(names, found, strict=True))
