"""Warping and the algebra of displacements. Conventions: `ldm_morph_jax.ops`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ldm_morph_jax.ops.checks import check_shape


def identity_grid(height: int, width: int) -> jax.Array:
    """Coordinates (row, column) of every pixel, `[H, W, 2]` float32."""
    rows = jnp.arange(height, dtype=jnp.float32)
    columns = jnp.arange(width, dtype=jnp.float32)
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)


def warp(image: jax.Array, displacement: jax.Array, *, interpolation: str = "linear") -> jax.Array:
    """warped(x) = image(x + u(x)), `[B, H, W, C]`, in the dtype of `image`.

    Equals `scipy.ndimage.map_coordinates(mode="nearest")` of order 1 ("linear") or 0 ("nearest":
    halves round up). The gradient with respect to `displacement` is zero where x + u(x) lies
    outside the image; on the border itself it is the one-sided derivative towards the inside. A
    NaN displacement gives NaN with "linear".

    Args:
        image: `[B, H, W, C]`; floating for "linear", any dtype (labels) for "nearest".
        displacement: `[B, H, W, 2]`, pixels.
        interpolation: "linear" or "nearest".

    Raises:
        ValueError: on wrong shapes, an image below 2x2, an unknown interpolation, or "linear" on
            an integer image.
    """
    sizes = check_shape("image", image, "B H W C")
    check_shape("displacement", displacement, "B H W 2", sizes)
    coordinates = identity_grid(sizes["H"], sizes["W"])[None] + _at_least_float32(displacement)
    return _sample(image, coordinates, interpolation)


def compose(u: jax.Array, v: jax.Array) -> jax.Array:
    """The displacement w with x + w(x) = (x + v(x)) + u(x + v(x)), `[B, H, W, 2]`.

    v is applied first, and u is read at the displaced points. For pull-back displacements this is
    "warp by u, then warp the result by v": warp(image, compose(u, v)) is
    warp(warp(image, u), v) with one interpolation less.
    """
    sizes = check_shape("v", v, "B H W 2")
    check_shape("u", u, "B H W 2", sizes)
    return v + warp(u, v)


def jacobian_determinant(u: jax.Array) -> jax.Array:
    """J = det d(x + u(x))/dx, `[B, H, W]` (paper eq. 18); below zero the map folds.

    Central differences, one-sided at the border: `numpy.gradient` of id + u.
    """
    sizes = check_shape("u", u, "B H W 2")
    _check_2x2("u", sizes["H"], sizes["W"])
    by_row, by_column = jnp.gradient(_at_least_float32(u), axis=(1, 2))
    return (1 + by_row[..., 0]) * (1 + by_column[..., 1]) - by_column[..., 0] * by_row[..., 1]


def resize_displacement(u: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The same motion on a grid of `size` = (H2, W2) pixels over the same field of view.

    The corner pixels of both grids coincide; values are interpolated linearly and scaled by
    (H2-1)/(H-1) and (W2-1)/(W-1), since they are in pixels. `[B, H, W, 2]` -> `[B, H2, W2, 2]`.
    """
    sizes = check_shape("u", u, "B H W 2")
    _check_2x2("u", sizes["H"], sizes["W"])
    height, width = size
    _check_2x2("size", height, width)
    rows = np.linspace(0, sizes["H"] - 1, height)
    columns = np.linspace(0, sizes["W"] - 1, width)
    coordinates = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(np.float32)
    coordinates = jnp.broadcast_to(coordinates, (sizes["B"], height, width, 2))
    scale = np.array([(height - 1) / (sizes["H"] - 1), (width - 1) / (sizes["W"] - 1)], np.float32)
    return _sample(u, coordinates, "linear") * scale[None, None, None].astype(u.dtype)


def integrate_velocity(v: jax.Array, steps: int = 7) -> jax.Array:
    """exp(v) - id of a stationary velocity `[B, H, W, 2]` by scaling and squaring.

    v / 2^steps is composed with itself `steps` times. (Arsigny et al., MICCAI 2006.)
    """
    check_shape("v", v, "B H W 2")
    if steps < 0:
        raise ValueError(f"steps: found {steps}, expected 0 or more")
    return lax.fori_loop(0, steps, lambda _, u: compose(u, u), v / 2**steps)


def smooth_gaussian(u: jax.Array, sigma: float) -> jax.Array:
    """u `[B, H, W, C]` convolved with a Gaussian of `sigma` pixels, borders repeated.

    `scipy.ndimage.gaussian_filter(sigma=(0, sigma, sigma, 0), mode="nearest", truncate=3)`.
    """
    check_shape("u", u, "B H W C")
    if sigma < 0:
        raise ValueError(f"sigma: found {sigma}, expected 0 or more pixels")
    radius = int(3 * sigma + 0.5)
    if not radius:
        return u
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        size = u.shape[axis]
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(u, pad, mode="edge")
        # slices instead of a convolution, which with two channels is several times slower on a CPU
        u = sum(w * lax.slice_in_dim(wide, k, k + size, axis=axis) for k, w in enumerate(weights))
    return u


def _sample(image, coordinates, interpolation):
    """Values of `image` `[B, H, W, C]` at `coordinates` `[B, H2, W2, 2]`, border replicated."""
    _, height, width, _ = image.shape
    _check_2x2("image", height, width)
    last = jnp.array([[[[height - 1, width - 1]]]], coordinates.dtype)
    # `where`, not `clip`: exactly on the border clip would pass on only half of the gradient, and
    # with a zero displacement every border pixel is exactly on the border.
    coordinates = jnp.where(coordinates < 0, 0, coordinates)
    coordinates = jnp.where(coordinates > last, last, coordinates)
    if interpolation == "nearest":
        # inside the image every coordinate is >= 0, so rounding away from zero is rounding up
        corner = lax.round(coordinates, lax.RoundingMethod.AWAY_FROM_ZERO)
        return _gather_windows(image, corner, 1)[..., 0, 0, :]
    if interpolation != "linear":
        raise ValueError(f"interpolation: found {interpolation!r}, expected 'linear' or 'nearest'")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image: found dtype {image.dtype}, expected floating for linear interpolation; "
            "warp labels with interpolation='nearest'"
        )
    corner = jnp.minimum(jnp.floor(coordinates), last - 1)
    # One gather of 2x2 windows. Its gradient with respect to the displacement, a bottleneck of
    # training, is more than twice as fast as that of map_coordinates' four gathers.
    window = _gather_windows(image, corner, 2)
    row_weight, column_weight = jnp.split(coordinates - corner, 2, axis=-1)
    # a (1-w) + b w is exact at w = 0 and w = 1: a zero displacement changes nothing
    top = window[..., 0, 0, :] * (1 - column_weight) + window[..., 0, 1, :] * column_weight
    bottom = window[..., 1, 0, :] * (1 - column_weight) + window[..., 1, 1, :] * column_weight
    return (top * (1 - row_weight) + bottom * row_weight).astype(image.dtype)


def _gather_windows(image, corner, size):
    """`[B, H2, W2, size, size, C]`: the windows whose first pixel is `corner` `[B, H2, W2, 2]`."""
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)
    )

    def gather(image, corner):
        # mode clip: a NaN coordinate becomes some valid index, never an out-of-bounds read
        window = (size, size, image.shape[-1])
        return lax.gather(image, corner, dimensions, slice_sizes=window, mode="clip")

    return jax.vmap(gather)(image, corner.astype(jnp.int32))


def _at_least_float32(array):
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _check_2x2(name, height, width):
    if height < 2 or width < 2:
        raise ValueError(f"{name}: found {height}x{width}, expected at least 2x2 pixels")
