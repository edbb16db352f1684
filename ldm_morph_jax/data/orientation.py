"""The eight orientations of a square image (the dihedral group), numbered 0 to 7.

k = 0..3: k quarter turns counter-clockwise (numpy.rot90). k = 4..7: mirror left-right first, then
k - 4 quarter turns. 0 leaves the image unchanged.
"""

import numpy as np

ORIENTATIONS = tuple(range(8))


def orient(array: np.ndarray, k: int, axes: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Brings an array into orientation k.

    Args:
      array: [H, W] or [H, W, C]; with axes=(-3, -2) images or volumes [..., H, W, C].
      k: 0 to 7. For odd k, height and width are swapped.
      axes: the row and the column axis.

    Returns:
      A contiguous array of the same type.
    """
    if k not in ORIENTATIONS:
        raise ValueError(f"orientation must be an integer from 0 to 7, found {k!r}")
    if k >= 4:
        array = np.flip(array, axes[1])
    return np.ascontiguousarray(np.rot90(array, k % 4, axes))


def orient_displacement(u: np.ndarray, k: int, axes: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Brings a displacement field [..., rank] into orientation k: positions and components.

    orient(warp(moving, u)) equals warp(orient(moving), orient_displacement(u)). Of volumes,
    planes are turned; the component along the first axis stays.
    """
    oriented = orient(u, k, axes)
    *through, row, column = np.moveaxis(oriented, -1, 0)
    if k >= 4:
        column = -column
    for _ in range(k % 4):  # a quarter turn takes the row direction to +column, column to -row
        row, column = -column, row
    return np.stack([*through, row, column], axis=-1)
