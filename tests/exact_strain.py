"""Strain of a motion given as a function or on a grid; areas; where two masks touch."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.ops.strain import normal_strain


def deformation_gradient_of(displacement, points, spacing=None):
    """F at `points` `[..., n]`, `[..., n, n]`; `displacement`: point -> displacement, pixels."""
    n = points.shape[-1]
    spacing = np.ones(n) if spacing is None else np.asarray(spacing)
    gradient = jax.vmap(jax.jacfwd(displacement))(points.reshape(-1, n))
    return jnp.eye(n) + gradient.reshape(*points.shape, n) * spacing[:, None] / spacing


def deformation_gradient(u, spacing=None):
    """F by central differences, `[..., *space, n]` -> `[..., *space, n, n]`."""
    n = u.shape[-1]
    spacing = np.ones(n) if spacing is None else np.asarray(spacing)
    gradient = jnp.stack(jnp.gradient(u, axis=tuple(range(-n - 1, -1))), axis=-1)
    return jnp.eye(n) + gradient * spacing[:, None] / spacing


def shared_border(a, b):
    """Middle of the border between masks `[H, W]`, `[2]`; NaN where they do not touch.

    Of ventricle and atrium in apical views: the middle of the mitral plane.
    """
    between = []
    for axis in (0, 1):
        n = a.shape[axis] - 1
        (a0, a1), (b0, b1) = ([m.take(range(k, n + k), axis) for k in (0, 1)] for m in (a, b))
        between.append(np.argwhere((a0 & b1) | (b0 & a1)) + 0.5 * np.eye(2)[axis])
    between = np.concatenate(between)
    return between.mean(axis=0) if len(between) else np.full(2, np.nan)


def engineering_strain(tensor, direction):
    """Change of length per length along unit vectors: sqrt(1 + 2 d . E d) - 1."""
    return jnp.sqrt(1 + 2 * normal_strain(tensor, direction)) - 1


def contour_area(contour):
    """Area inside closed contours `[..., N, 2]`, `[...]`."""
    row, column = np.moveaxis(np.asarray(contour), -1, 0)
    cross = row * np.roll(column, -1, axis=-1) - column * np.roll(row, -1, axis=-1)
    return np.abs(cross.sum(axis=-1)) / 2
