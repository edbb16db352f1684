"""The shape check of `ops`: chex, with the argument's name and consistent sizes."""

import chex
import numpy as np


def check_shape(name: str, array, axes: str, sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Check `array.shape` against `axes` and return the sizes by letter.

    `axes` is a string such as "B H W 2". A number must match exactly; a letter must equal its entry
    in `sizes` (the result of an earlier check), if it has one. Raises ValueError otherwise. Only
    the shape is read, so the check costs nothing inside `jit`.
    """
    names, sizes = axes.split(), sizes or {}
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in names]
    wanted = [axis if size is None else size for axis, size in zip(names, expected, strict=True)]
    found = np.shape(array)
    chex.assert_shape(
        array if hasattr(array, "shape") else np.asarray(array),
        tuple(expected),
        custom_message=(
            f"{name}: found shape {found}, expected [{', '.join(map(str, wanted))}] ({axes})"
        ),
        include_default_message=False,
        exception_type=ValueError,
    )
    return dict(zip(names, found, strict=True))
