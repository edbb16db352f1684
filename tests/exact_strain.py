"""Strain of a motion given as a function, by automatic differentiation; areas by the shoelace."""

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


def engineering_strain(tensor, direction):
    """Change of length per length along unit vectors: sqrt(1 + 2 d . E d) - 1."""
    return jnp.sqrt(1 + 2 * normal_strain(tensor, direction)) - 1


def contour_area(contour):
    """Area inside closed contours `[..., N, 2]`, `[...]`."""
    row, column = np.moveaxis(np.asarray(contour), -1, 0)
    cross = row * np.roll(column, -1, axis=-1) - column * np.roll(row, -1, axis=-1)
    return np.abs(cross.sum(axis=-1)) / 2
