"""Volumes as figures of pairs show them: one plane of each."""

import numpy as np

from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant


def shown_planes(moving, fixed, displacement, moving_mask, fixed_mask, **more) -> dict:
    """Registered pairs `[N, *space, ...]` as `figures.pairs_sheet` takes them.

    Images stay as they are. Of a volume it is the plane with most of the fixed image's structures,
    with the displacement within it, and what follows from the motion in space.

    more: perhaps "spacing", `[N]` of (slice, row, column).
    """
    arrays = {
        "moving": moving,
        "fixed": fixed,
        "displacement": displacement,
        "moving_mask": moving_mask,
        "fixed_mask": fixed_mask,
    }
    arrays = {name: np.asarray(array) for name, array in (arrays | more).items()}
    if arrays["fixed"].ndim == 4:
        return arrays
    u = arrays["displacement"]
    arrays["warped"] = np.asarray(warp(arrays["moving"], u))
    arrays["warped_mask"] = np.asarray(warp(arrays["moving_mask"], u, interpolation="nearest"))
    arrays["jacobian"] = jacobian_determinant(u)
    widest = np.count_nonzero(arrays["fixed_mask"], axis=(2, 3, 4)).argmax(axis=1)
    pairs = np.arange(len(widest))
    planes = {
        name: array if name == "spacing" else array[pairs, widest] for name, array in arrays.items()
    }
    for name in planes.keys() & {"displacement", "spacing"}:
        planes[name] = planes[name][..., 1:]
    return planes
