"""Linear maps along one axis after the other: Gaussians, interpolation, means of blocks.

They are applied as matrix products, which on a CPU are fast inside a loop, where convolutions are
not, and compile quickly. The axes of space come last here: `[..., *space]`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def apply(matrices: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """`x` `[..., *space]` times one matrix `[new, old]` for each axis of space: `[..., *new]`."""
    rank = len(matrices)
    for k, matrix in enumerate(matrices):
        # full precision: an accelerator's shorter formats cannot tell the variance of a flat patch
        if k == rank - 1:
            return jnp.matmul(x, matrix.T, precision=lax.Precision.HIGHEST)
        before, after = x.shape[: x.ndim - rank + k + 1], x.shape[x.ndim - rank + k + 1 :]
        x = jnp.matmul(matrix, x.reshape(*before, -1), precision=lax.Precision.HIGHEST)
        x = x.reshape(*before[:-1], len(matrix), *after)


def gaussian_matrix(
    size: int, sigma: float, *, border: str = "drop", truncate: float | None = None
) -> jax.Array:
    """`[size, size]` matrix that smooths a line of `size` pixels by a Gaussian of `sigma` pixels.

    Rows sum to 1. border "drop": weights beyond the ends are dropped and the others are
    renormalised; "repeat": the line goes on with its end values. `truncate`: at so many sigmas,
    rounded to pixels (only with "repeat", which needs it); a sigma that leaves one pixel is 1.
    """
    if border == "drop":
        position = jnp.arange(size, dtype=jnp.float32)
        weights = jnp.exp(-0.5 * jnp.square((position[:, None] - position[None, :]) / sigma))
        return weights / weights.sum(axis=1, keepdims=True)
    radius = int(truncate * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offset / sigma) ** 2) if radius else np.ones(1)
    rows = np.arange(size)[:, None]
    matrix = np.zeros((size, size))
    np.add.at(matrix, (rows, np.clip(rows + offset, 0, size - 1)), weights / weights.sum())
    return jnp.asarray(matrix, jnp.float32)


def smooth(x: jax.Array, sigmas: Sequence[float], **options) -> jax.Array:
    """`[..., *space]` smoothed by a Gaussian of one sigma for each axis of space, pixels.

    options: of `gaussian_matrix`.
    """
    space = x.shape[x.ndim - len(sigmas) :]
    return apply(
        [gaussian_matrix(n, sigma, **options) for n, sigma in zip(space, sigmas, strict=True)], x
    )


def interpolation_matrix(position: np.ndarray, size: int) -> jax.Array:
    """`[N, size]` matrix that reads a line of `size` pixels at N positions, linearly.

    Beyond the ends the line goes on with its end values.
    """
    position = jnp.clip(jnp.asarray(position, jnp.float32), 0, size - 1)
    distance = jnp.abs(position[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :])
    return jnp.maximum(0, 1 - distance)


def resize(x: jax.Array, size: Sequence[int], *, align: str = "corners") -> jax.Array:
    """`[..., *space]` on a grid of `size` pixels over the same field of view: `[..., *size]`.

    align "corners": the centres of the corner pixels of both grids coincide, as networks resize;
    values are interpolated linearly. "cells": the outer edges of the corner pixels coincide, as on
    the levels of a pyramid; a smaller grid has the means of blocks of pixels (whole multiples).
    """
    space = x.shape[x.ndim - len(size) :]
    if space == tuple(size):
        return x
    if align == "corners":
        positions = [np.linspace(0, old - 1, new) for old, new in zip(space, size, strict=True)]
    elif align == "cells":
        blocks = [max(1, old // new) for old, new in zip(space, size, strict=True)]
        if any(new < old != new * n for old, new, n in zip(space, size, blocks, strict=True)):
            raise ValueError(f"size: found {size}, expected whole parts of {space}")
        x = block_means(x, blocks)
        space = x.shape[x.ndim - len(size) :]
        if space == tuple(size):
            return x
        positions = [
            (np.arange(new, dtype=np.float32) + 0.5) / (new / old) - 0.5
            for old, new in zip(space, size, strict=True)
        ]
    else:
        raise ValueError(f"align: found {align!r}, expected 'corners' or 'cells'")
    return apply([interpolation_matrix(p, old) for p, old in zip(positions, space, strict=True)], x)


def block_means(x: jax.Array, blocks: Sequence[int]) -> jax.Array:
    """`[..., *space]` -> means of blocks of so many pixels along each axis of space."""
    if math.prod(blocks) == 1:
        return x
    rank = len(blocks)
    before, space = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
    pairs = [part for n, block in zip(space, blocks, strict=True) for part in (n // block, block)]
    first = len(before)
    return x.reshape(*before, *pairs).mean(axis=tuple(range(first + 1, first + 2 * rank, 2)))
