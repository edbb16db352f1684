"""Pairs with a known motion: a blurred disc with a ring around it that contracts."""

import numpy as np
from scipy import ndimage

SIZE = 48


def make_pair(seed: int) -> dict:
    """moving -> fixed contracts about a centre; the truth is exact in the pull-back convention."""
    rng = np.random.default_rng(seed)
    centre = 23.5 + rng.uniform(-2, 2, size=2)
    grid = np.stack(np.mgrid[:SIZE, :SIZE], axis=-1).astype(np.float64)
    offset = grid - centre
    radius = np.linalg.norm(offset, axis=-1)
    # x + u(x): points near the centre of the fixed image came from further out
    displacement = offset * (0.5 * np.exp(-((radius / 12) ** 2)))[..., None]
    source = np.linalg.norm(offset + displacement, axis=-1)

    def mask(distance):
        return np.where(distance < 8, 1, np.where(distance < 12, 2, 0)).astype(np.uint8)

    texture = ndimage.gaussian_filter(rng.uniform(size=(SIZE, SIZE)), 2)
    moving = ndimage.gaussian_filter(0.6 * (radius < 8) + 0.2 * (radius < 12), 1.0) + 0.2 * texture
    positions = np.moveaxis(grid + displacement, -1, 0)
    fixed = ndimage.map_coordinates(moving, positions, order=1, mode="nearest")
    return {
        "moving": moving[..., None].astype(np.float32),
        "fixed": fixed[..., None].astype(np.float32),
        "moving_mask": mask(radius)[..., None],
        "fixed_mask": mask(source)[..., None],
        "spacing": np.float32([1.5, 1.5]),
        "displacement": displacement.astype(np.float32),
    }
