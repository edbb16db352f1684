"""Warping and the algebra of displacements. Conventions: `ldm_morph_jax.ops`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ldm_morph_jax.ops import separable
from ldm_morph_jax.ops.checks import check_shape


def identity_grid(*space: int) -> jax.Array:
    """Coordinates of every pixel, in axis order, `[*space, rank]` float32."""
    axes = [jnp.arange(n, dtype=jnp.float32) for n in space]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def warp(image: jax.Array, displacement: jax.Array, *, interpolation: str = "linear") -> jax.Array:
    """warped(x) = image(x + u(x)), `[B, *space, C]`, in the dtype of `image`.

    Equals `scipy.ndimage.map_coordinates(mode="nearest")` of order 1 ("linear") or 0 ("nearest":
    halves round up). The gradient with respect to `displacement` is zero where x + u(x) lies
    outside the image; on the border itself it is the one-sided derivative towards the inside. A
    NaN displacement gives NaN with "linear".

    Args:
        image: `[B, *space, C]`; floating for "linear", any dtype (labels) for "nearest".
        displacement: `[B, *space, rank]`, pixels.
        interpolation: "linear" or "nearest".

    Raises:
        ValueError: on wrong shapes, an image below two pixels along an axis, an unknown
            interpolation, or "linear" on an integer image.
    """
    sizes = check_shape("image", image, "B *space C")
    check_shape("displacement", displacement, "B *space rank", sizes)
    coordinates = identity_grid(*sizes["space"])[None] + _at_least_float32(displacement)
    return _sample(image, coordinates, interpolation)


def within_slices(displacement):
    """Where x + u(x) lies in a stack of slices, `[..., S, H, W]` bool, of `[..., S, H, W, 3]`.

    A slice is as thick as the distance to the next one: half of it lies beyond the first and the
    last centre. NumPy or JAX.
    """
    slices = displacement.shape[-4]
    at = displacement[..., 0] + np.arange(slices, dtype=np.float32).reshape(-1, 1, 1)
    return (at >= -0.5) & (at <= slices - 0.5)


def compose(u: jax.Array, v: jax.Array) -> jax.Array:
    """The displacement w with x + w(x) = (x + v(x)) + u(x + v(x)), `[B, *space, rank]`.

    v is applied first, and u is read at the displaced points. For pull-back displacements this is
    "warp by u, then warp the result by v": warp(image, compose(u, v)) is
    warp(warp(image, u), v) with one interpolation less.
    """
    sizes = check_shape("v", v, "B *space rank")
    check_shape("u", u, "B *space rank", sizes)
    return v + warp(u, v)


def resize_displacement(u: jax.Array, size: Sequence[int], *, align: str = "corners") -> jax.Array:
    """The same motion on a grid of `size` pixels over the same field of view.

    `[B, *space, rank]` -> `[B, *size, rank]`. Values are interpolated linearly and scaled, since
    they are in pixels: by (new - 1) / (old - 1) of each axis for align "corners", by new / old for
    "cells"; see `separable.resize`.
    """
    sizes = check_shape("u", u, "B *space rank")
    _check_2x2("u", sizes["space"])
    _check_2x2("size", size)
    less = 1 if align == "corners" else 0
    scale = [(new - less) / (old - less) for new, old in zip(size, sizes["space"], strict=True)]
    resized = separable.resize(jnp.moveaxis(u, -1, 1), size, align=align)
    return jnp.moveaxis(resized, 1, -1) * jnp.asarray(scale, u.dtype)


def integrate_velocity(v: jax.Array, steps: int = 7) -> jax.Array:
    """exp(v) - id of a stationary velocity `[B, *space, rank]` by scaling and squaring.

    v / 2^steps is composed with itself `steps` times. (Arsigny et al., MICCAI 2006.)
    """
    check_shape("v", v, "B *space rank")
    if steps < 0:
        raise ValueError(f"steps: found {steps}, expected 0 or more")
    return lax.fori_loop(0, steps, lambda _, u: compose(u, u), v / 2**steps)


def smooth_gaussian(u: jax.Array, sigma: float) -> jax.Array:
    """u `[B, *space, C]` convolved with a Gaussian of `sigma` pixels, borders repeated.

    `scipy.ndimage.gaussian_filter(mode="nearest", truncate=3)` along the axes of space.
    """
    rank = check_shape("u", u, "B *space C")["rank"]
    if sigma < 0:
        raise ValueError(f"sigma: found {sigma}, expected 0 or more pixels")
    smoothed = separable.smooth(jnp.moveaxis(u, -1, 1), [sigma] * rank, border="repeat", truncate=3)
    return jnp.moveaxis(smoothed, 1, -1)


def _sample(image, coordinates, interpolation):
    """Values of `image` `[B, *space, C]` at `coordinates` `[B, *new, rank]`, border replicated."""
    space = image.shape[1:-1]
    _check_2x2("image", space)
    last = jnp.array(space, coordinates.dtype) - 1
    last = last.reshape((1,) * (coordinates.ndim - 1) + last.shape)
    # `where`, not `clip`: exactly on the border clip would pass on only half of the gradient, and
    # with a zero displacement every border pixel is exactly on the border.
    coordinates = jnp.where(coordinates < 0, 0, coordinates)
    coordinates = jnp.where(coordinates > last, last, coordinates)
    if interpolation == "nearest":
        # inside the image every coordinate is >= 0, so rounding away from zero is rounding up
        corner = lax.round(coordinates, lax.RoundingMethod.AWAY_FROM_ZERO)
        values = _gather_windows(image, corner, 1)
        return values.reshape(*coordinates.shape[:-1], image.shape[-1])
    if interpolation != "linear":
        raise ValueError(f"interpolation: found {interpolation!r}, expected 'linear' or 'nearest'")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image: found dtype {image.dtype}, expected floating for linear interpolation; "
            "warp labels with interpolation='nearest'"
        )
    corner = jnp.minimum(jnp.floor(coordinates), last - 1)
    # One gather of windows of two pixels along every axis. Its gradient with respect to the
    # displacement, a bottleneck of training, is more than twice as fast as that of the gathers of
    # map_coordinates, one for each corner.
    values = _gather_windows(image, corner, 2)
    for axis in reversed(range(len(space))):  # the last axis of the windows is gone after each
        weight = (coordinates - corner)[..., axis].reshape(corner.shape[:-1] + (1,) * (axis + 1))
        # a (1-w) + b w is exact at w = 0 and w = 1: a zero displacement changes nothing
        values = values[..., 0, :] * (1 - weight) + values[..., 1, :] * weight
    return values.astype(image.dtype)


def _gather_windows(image, corner, size):
    """`[B, *new, *[size] * rank, C]`: the windows that begin at `corner` `[B, *new, rank]`."""
    rank = corner.shape[-1]
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(rank, 2 * rank + 1)),
        collapsed_slice_dims=(),
        start_index_map=tuple(range(rank)),
    )

    def gather(image, corner):
        # mode clip: a NaN coordinate becomes some valid index, never an out-of-bounds read
        window = (size,) * rank + (image.shape[-1],)
        return lax.gather(image, corner, dimensions, slice_sizes=window, mode="clip")

    return jax.vmap(gather)(image, corner.astype(jnp.int32))


def _at_least_float32(array):
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _check_2x2(name, space):
    if min(space) < 2:
        raise ValueError(
            f"{name}: found {'x'.join(map(str, space))}, expected at least "
            f"{'x'.join('2' * len(space))} pixels"
        )
