"""Strain, areas and volumes of a tracked heart. Conventions: `ldm_morph_jax.ops`; besides:

Lagrangian
    u_t `[T, *space, n]`, pixels, carries the *reference* frame to frame t: the tissue at x of the
    reference is at x + u_t(x) in frame t. That is the pull-back displacement of a registration
    with moving = frame t and fixed = reference: frame_t(x + u_t(x)) ~ reference(x).
Tensors
    `[..., n, n]`, first index of the component, second of the derivative, both in axis order: n = 2
    (row, column), or 3 with the slice first. `spacing`, in the same order, is the size of a pixel:
    with unequal sides gradients, directions and lengths must be taken in millimetres. Strain has no
    unit: 0.1 is 10 % longer.
Directions
    Unit vectors `[..., n]` of the reference frame, in axis order, in millimetres.

Terms follow D'hooge et al., Eur J Echocardiogr 1:154, 2000, and the consensus of Voigt et al.,
Eur Heart J Cardiovasc Imaging 16:1, 2015.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from ldm_morph_jax.ops import separable
from ldm_morph_jax.ops.jacobian import determinant, jacobian_determinant

Spacing = tuple[float, ...]

_OUTSIDE = 1e-3  # what a pixel outside the region counts in a fit: where it is thin, enough
_DISCS = 20  # of a volume

# ---------------------------------------------------------------------------- tensors


def regional_gradient(
    u: jax.Array, region: jax.Array, sigma: float, spacing: Spacing | None = None
) -> jax.Array:
    """F of the affine motion that fits u best around every pixel, `[..., *space, n, n]`.

    Moving least squares (Lancaster and Salkauskas, Math Comput 37:141, 1981): around every pixel an
    affine motion is fitted with Gaussian weights. Pixels outside the region hardly count, so that
    what moves beside the myocardium does not leak into its strain; a difference of neighbours looks
    across its border. The wider the Gaussian, the less noise of u is left, which adds to strain in
    every direction, and the more is averaged of what really differs. Affine motion is found
    exactly.

    Args:
        u: `[..., *space, n]` pixels.
        region: `[*space]` bool.
        sigma: of the Gaussian, in the unit of `spacing`; at least half a pixel is taken.
        spacing: of a pixel; None: 1 along each axis.
    """
    n = _check_field(u)
    spacing = (1.0,) * n if spacing is None else spacing
    weight = jnp.where(jnp.asarray(region, bool), 1.0, _OUTSIDE)
    lines = [
        _moments(size, max(sigma / step, 0.5))
        for size, step in zip(weight.shape, spacing, strict=True)
    ]

    def moment(x, *axes):
        """Sum of weight x o over offsets, o the product of their components along `axes`."""
        return separable.apply([line[axes.count(k)] for k, line in enumerate(lines)], weight * x)

    total = moment(1.0)
    offset = [moment(1.0, i) / total for i in range(n)]
    spread = [
        [moment(1.0, *sorted((i, j))) / total - offset[i] * offset[j] for j in range(n)]
        for i in range(n)
    ]
    value = jnp.moveaxis(u, -1, -n - 1)
    level = moment(value) / total
    covariance = jnp.stack([moment(value, k) / total - level * offset[k] for k in range(n)], -1)
    slopes = jnp.einsum("...k,...kj->...j", covariance, _inverse(spread))
    step = np.asarray(spacing, np.float32)  # du_i/dx_j: from pixels per pixel to mm per mm
    return jnp.eye(n) + jnp.moveaxis(slopes, -n - 2, -2) * (step[:, None] / step[None, :])


def green_lagrange(deformation: jax.Array) -> jax.Array:
    """E = (F^T F - I) / 2 of F `[..., n, n]`: zero for every rotation. (Holzapfel, eq. 2.69.)"""
    if deformation.ndim < 2:
        raise ValueError(f"deformation: found shape {deformation.shape}, expected [..., n, n]")
    identity = jnp.eye(deformation.shape[-1])
    return (jnp.einsum("...ki,...kj->...ij", deformation, deformation) - identity) / 2


def normal_strain(tensor: jax.Array, direction: jax.Array) -> jax.Array:
    """d . E d, the component of E `[..., n, n]` along the unit vectors d `[..., n]`: `[...]`."""
    return jnp.einsum("...i,...ij,...j->...", direction, tensor, direction)


def strain_rate(strain: jax.Array, times: jax.Array) -> jax.Array:
    """d strain / dt `[T, ...]`, per unit of the increasing `times` `[T]`: `numpy.gradient`.

    Of engineering strain this is the Lagrangian rate; the natural rate, which Doppler measures, is
    that of `log1p(strain)` (D'hooge 2000, eq. 6).
    """
    strain, times = jnp.asarray(strain), jnp.asarray(times)
    if times.shape != strain.shape[:1] or len(times) < 2:
        raise ValueError(
            f"times: found shape {times.shape}, expected one for each of at least two frames, "
            f"strain having shape {strain.shape}"
        )
    steps = jnp.diff(times).reshape(-1, *[1] * (strain.ndim - 1))
    slopes = jnp.diff(strain, axis=0) / steps
    left, right = steps[:-1], steps[1:]
    middle = (left * slopes[1:] + right * slopes[:-1]) / (left + right)
    return jnp.concatenate([slopes[:1], middle, slopes[-1:]])


# ---------------------------------------------------------------------------- directions


def polar_directions(
    points: jax.Array, centre: jax.Array, spacing: Spacing = (1.0, 1.0)
) -> tuple[jax.Array, jax.Array]:
    """(radial, circumferential) at `points` `[..., 2]` about `centre` `[2]`, for short-axis views.

    Radial points away from the centre; circumferential is a quarter turn on, from row to column.
    At the centre itself both are NaN.
    """
    away = (points - jnp.asarray(centre)) * jnp.asarray(spacing)
    radial = away / jnp.linalg.norm(away, axis=-1, keepdims=True)
    return radial, _quarter_turn(radial)


def slice_axis(cavity: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """The long axis of a cavity `[S, H, W]` in a stack of short-axis slices.

    The line that fits the centroids of its slices best, each with the weight of its area; along the
    slices' normal where fewer than three show it.

    Returns:
        A point on it, (slice, row, column) in voxels, and its unit vector in millimetres.
    """
    areas = np.asarray(cavity, bool).sum(axis=(1, 2))
    slices = np.flatnonzero(areas)
    middles = np.array([(k, *np.argwhere(cavity[k]).mean(axis=0)) for k in slices])
    weights = areas[slices] / areas.sum()
    centre = weights @ middles
    along = np.eye(3)[0]
    if len(slices) > 2:
        depth = middles[:, 0] - centre[0]
        along = (weights * depth) @ (middles - centre) / (weights @ depth**2)
    axis = along * spacing
    return centre, axis / np.linalg.norm(axis)


def cylinder_directions(
    points: jax.Array, centre: jax.Array, axis: jax.Array, spacing: Spacing
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(radial, circumferential, longitudinal) at `points` `[..., 3]` about a long axis.

    Args:
        points: (slice, row, column) voxels.
        centre, axis: see `slice_axis`. Radial points away from it; on it, radial and
            circumferential are NaN.
        spacing: of a voxel.
    """
    axis = jnp.asarray(axis)
    away = (points - jnp.asarray(centre)) * jnp.asarray(spacing)
    away = away - (away @ axis)[..., None] * axis
    radial = away / jnp.linalg.norm(away, axis=-1, keepdims=True)
    return radial, jnp.cross(axis, radial), jnp.broadcast_to(axis, radial.shape)


def contour_directions(
    points: jax.Array, contour: jax.Array, spacing: Spacing = (1.0, 1.0)
) -> tuple[jax.Array, jax.Array]:
    """(normal, tangent) at `points` `[..., 2]`: those of the nearest point of `contour` `[N, 2]`.

    The contour is open. The tangent follows its order, the normal is a quarter turn back from it:
    of a cavity in an apical view, outlined from row towards column, the normal points outwards
    (radial) and the tangent is longitudinal.
    """
    _check_contour(contour)
    curve = jnp.asarray(contour) * jnp.asarray(spacing)
    along = jnp.gradient(curve, axis=0)
    tangents = along / jnp.linalg.norm(along, axis=-1, keepdims=True)
    here = (jnp.asarray(points) * jnp.asarray(spacing))[..., None, :]
    nearest = jnp.argmin(jnp.sum((here - curve) ** 2, axis=-1), axis=-1)
    tangent = tangents[nearest]
    return -_quarter_turn(tangent), tangent


# ---------------------------------------------------------------------------- regions


def contour_segments(contour: jax.Array, count: int, spacing: Spacing = (1.0, 1.0)) -> jax.Array:
    """Number 1 to `count` of every point of an open contour `[N, 2]`, by equal lengths: `[N]`.

    With six along the wall of an apical view, from base over the apex to the other base, they are
    the basal, middle and apical segments of either side (Voigt 2015, fig. 5).
    """
    _check_contour(contour)
    steps = jnp.linalg.norm(jnp.diff(contour, axis=0) * jnp.asarray(spacing), axis=-1)
    at = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)]) / jnp.sum(steps)
    return jnp.minimum((count * at).astype(jnp.int32), count - 1) + 1


def regional_mean(values: jax.Array, regions: jax.Array, count: int) -> jax.Array:
    """Mean of `values` `[..., *S]` over regions 1 to `count` of `regions` `[*S]`: `[..., count]`.

    A global value is that of a mask, with count 1. NaN for a region without pixels; values outside
    every region are not looked at.
    """
    regions = jnp.asarray(regions)
    if values.shape[values.ndim - regions.ndim :] != regions.shape:
        raise ValueError(f"values: found shape {values.shape}, expected [..., {regions.shape}]")
    axes = tuple(range(-regions.ndim, 0))
    means = [
        jnp.where(regions == k, values, 0).sum(axes) / (regions == k).sum()
        for k in range(1, count + 1)
    ]
    return jnp.stack(means, axis=-1)


# ---------------------------------------------------------------------------- curves over time


def peak(curve: jax.Array, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(value of largest magnitude with its sign, its time) of `curve` `[T, ...]`, each `[...]`.

    Time to peak counts from the reference frame if `times` `[T]` do (Voigt 2015, sec. 3.3). The
    earliest of equal peaks; NaN where the curve holds NaN.
    """
    curve, times = jnp.asarray(curve), jnp.asarray(times)
    first = jnp.argmax(jnp.abs(curve), axis=0)  # a NaN counts as the largest
    value = jnp.take_along_axis(curve, first[None], axis=0)[0]
    return value, jnp.where(jnp.isnan(value), jnp.nan, times[first])


def fractional_change(reference: jax.Array, value: jax.Array) -> jax.Array:
    """(reference - value) / reference.

    Of end-diastolic and end-systolic areas: fractional area change; of volumes: ejection fraction
    (Lang et al., J Am Soc Echocardiogr 28:1, 2015, tables 2 and 8).
    """
    return (reference - value) / reference


# ---------------------------------------------------------------------------- lengths, areas


def move_points(points: jax.Array, u: jax.Array) -> jax.Array:
    """Where reference `points` `[..., n]` are under u `[T, *space, n]`, `[T, ..., n]`, pixels.

    The displacement is linear between pixels and continues with its border value.
    """
    n = _check_field(u)
    if points.shape[-1:] != (n,):
        raise ValueError(f"points: found shape {points.shape}, expected [..., {n}]")
    at = list(jnp.moveaxis(points, -1, 0))

    def sample(component):
        return map_coordinates(component, at, order=1, mode="nearest")

    moves = jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(u)
    return points + moves


def contour_length(contour: jax.Array, spacing: Spacing = (1.0, 1.0), *, closed: bool) -> jax.Array:
    """Length of contours `[..., N, 2]`, `[...]`, in the unit of `spacing`.

    Global strain along a wall is its change per length, (L_t - L_0) / L_0: longitudinal of an open
    contour in apical views, circumferential of a closed one in short-axis (Voigt 2015, sec. 3.2).
    """
    _check_contour(contour)
    ends = jnp.roll(contour, -1, axis=-2)
    steps = jnp.linalg.norm((ends - contour) * jnp.asarray(spacing), axis=-1)
    return (steps if closed else steps[..., :-1]).sum(axis=-1)


def region_size(u: jax.Array, region: jax.Array, spacing: Spacing | None = None) -> jax.Array:
    """Area or volume to which the reference `region` `[*space]` (0 to 1) has changed, `[...]`.

    The integral of det F over the region: no mask has to be resampled. u is `[..., *space, n]`;
    without a spacing, pixels are counted.
    """
    n = _check_field(u)
    total = (jacobian_determinant(u) * region).sum(axis=tuple(range(-n, 0)))
    return total * float(np.prod((1.0,) * n if spacing is None else spacing))


# ---------------------------------------------------------------------------- volume


def long_axis(
    ventricle: jax.Array, base: jax.Array, spacing: Spacing = (1.0, 1.0)
) -> tuple[jax.Array, jax.Array]:
    """(apex, base), (row, column) pixels, of an apical mask `[H, W]`.

    Args:
        ventricle: the cavity.
        base: `[2]`, the middle of the mitral plane.
        spacing: of a pixel.

    Returns:
        The apex, where the cavity ends furthest from the base (Lang 2015, sec. 2.2), and the base.
    """
    spacing = jnp.asarray(spacing)
    away = (jnp.stack(jnp.indices(ventricle.shape), axis=-1) - base) * spacing
    distance = jnp.where(jnp.asarray(ventricle, bool), jnp.linalg.norm(away, axis=-1), -1)
    far = away.reshape(-1, 2)[jnp.argmax(distance)]
    unit = far / jnp.linalg.norm(far)
    # the pixel ends half its size beyond its centre
    far = far + 0.5 * unit * jnp.linalg.norm(unit * spacing)
    return base + far / spacing, jnp.asarray(base)


def disc_volume(
    ventricle: jax.Array, apex: jax.Array, base: jax.Array, spacing: Spacing = (1.0, 1.0)
) -> jax.Array:
    """Volume by the single-plane method of discs, in the cubed unit of `spacing`.

    The long axis is cut into 20 circular discs of equal height, as wide as the cavity across their
    middle: V = pi/4 sum_i d_i^2 L / 20 (Lang 2015, table 1; Schiller et al., J Am Soc Echocardiogr
    2:358, 1989). From mm to mL: / 1000.

    Args:
        ventricle: apical mask `[H, W]` of the cavity, 0 to 1.
        apex, base: ends of the long axis, `[2]` pixels.
        spacing: of a pixel.
    """
    spacing = np.asarray(spacing, np.float32)
    axis = (jnp.asarray(base) - apex) * spacing
    length = jnp.linalg.norm(axis)
    middles = (jnp.arange(_DISCS) + 0.5)[:, None] / _DISCS * axis
    # four samples per pixel across the axis, as far as any cavity reaches
    step, reach = spacing.min() / 4, np.linalg.norm(spacing * ventricle.shape)
    across = step * np.arange(-int(reach / step), int(reach / step) + 1, dtype=np.float32)
    places = middles[:, None] + across[:, None] * _quarter_turn(axis / length)
    inside = map_coordinates(
        jnp.asarray(ventricle, jnp.float32),
        list(jnp.moveaxis(apex + places / spacing, -1, 0)),
        order=1,
        mode="constant",
    )
    diameters = step * inside.sum(axis=1)
    return jnp.pi / 4 * jnp.sum(diameters**2) * length / _DISCS


# ---------------------------------------------------------------------------- helpers


def _quarter_turn(vectors):
    """From the row axis towards the column axis."""
    return jnp.stack([-vectors[..., 1], vectors[..., 0]], axis=-1)


def _moments(size, sigma):
    """`[3, size, size]`: Gaussian weights of every pixel around every pixel, times offset^0, 1, 2.

    Offsets are counted in pixels.
    """
    offset = np.arange(size)[None, :] - np.arange(size)[:, None]
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    return jnp.asarray(np.stack([weights, weights * offset, weights * offset**2]), jnp.float32)


def _inverse(rows):
    """Of small matrices, rows of arrays `[...]`: `[..., n, n]`, by their adjugates."""
    n, whole = len(rows), determinant(rows)

    def cofactor(i, j):
        minor = [[*row[:j], *row[j + 1 :]] for k, row in enumerate(rows) if k != i]
        return (-1) ** (i + j) * determinant(minor)

    columns = [jnp.stack([cofactor(i, j) for i in range(n)], -1) for j in range(n)]
    return jnp.stack(columns, -2) / whole[..., None, None]


def _check_field(u):
    """Components of a displacement `[..., *space, n]`."""
    n = u.shape[-1]
    if n not in (2, 3) or u.ndim <= n:
        raise ValueError(f"u: found shape {u.shape}, expected [..., H, W, 2] or [..., D, H, W, 3]")
    return n


def _check_contour(contour):
    if contour.ndim < 2 or contour.shape[-1] != 2:
        raise ValueError(f"contour: found shape {contour.shape}, expected [..., N, 2]")
    if contour.shape[-2] < 3:
        raise ValueError(f"contour: found {contour.shape[-2]} points, expected at least 3")
