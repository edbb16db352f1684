"""The Jacobian determinant of a map, for NumPy and JAX arrays. Conventions: `ldm_morph_jax.ops`."""

from collections.abc import Sequence

import numpy as np


def jacobian_determinant(u):
    """J = det d(x + u(x))/dx, `[..., *space, rank]` -> `[..., *space]` (paper eq. 18).

    Below zero the map folds. Central differences, one-sided at the border: `numpy.gradient` of
    id + u; along an axis of a single pixel nothing changes. NumPy arrays give NumPy arrays, JAX
    arrays JAX arrays, float32 at least. With u in pixels it is the ratio of volumes, whatever the
    spacing.
    """
    u = u if hasattr(u, "__array_namespace__") else np.asarray(u)
    rank = u.shape[-1]
    if rank not in (2, 3) or u.ndim <= rank:
        raise ValueError(f"u: found shape {u.shape}, expected [..., H, W, 2] or [..., D, H, W, 3]")
    xp = u.__array_namespace__()
    u = u.astype(xp.promote_types(u.dtype, np.float32))

    def derivative(component, axis):
        values, axis = u[..., component], axis - rank
        slope = xp.gradient(values, axis=axis) if values.shape[axis] > 1 else xp.zeros_like(values)
        return slope + 1 if component == axis + rank else slope

    return determinant([[derivative(i, j) for j in range(rank)] for i in range(rank)])


def determinant(rows: Sequence[Sequence]):
    """Determinants of small matrices, given as rows of arrays of one shape: `[...]`."""
    if len(rows) == 1:
        return rows[0][0]
    total = None
    for k, entry in enumerate(rows[0]):
        minor = entry * determinant([[*row[:k], *row[k + 1 :]] for row in rows[1:]])
        total = minor if total is None else total - minor if k % 2 else total + minor
    return total
