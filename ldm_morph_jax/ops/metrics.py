"""Scores of one pair, on the host, in float64. Conventions: `ldm_morph_jax.ops`.

Masks are integer labels `[*space]` or `[*space, 1]`; a moving mask is warped with nearest-neighbour
interpolation before it is compared (eq. 17 counts hard labels). An undefined score, such as the
overlap of a structure that is in neither mask, is NaN; `summarise` excludes and counts NaN scores.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.jacobian import jacobian_determinant


class SdLogJacobian(NamedTuple):
    """`value` over the pixels with J > 0; `n_excluded` pixels with J <= 0 were left out."""

    value: float
    n_excluded: int


class SurfaceDistance(NamedTuple):
    """Distances between two surfaces.

    hd95: the 95 % Hausdorff distance, the larger of the two directions' 95th percentiles (linear
        interpolation). Pooling both directions first, as some tools do, gives a smaller number.
    mean: of the distances of both directions together.
    """

    hd95: float
    mean: float


class EndpointError(NamedTuple):
    """`mean` error of the displacement and `initial` error of a zero displacement, in pixels."""

    mean: float
    initial: float


def dice(a: np.ndarray, b: np.ndarray, labels: Iterable[int]) -> dict[int, float]:
    """DSC = 2 |A n B| / (|A| + |B|) of each label (eq. 17).

    NaN for a label in neither mask; 0, by the formula, for a label in only one of them.
    """
    a, b = _label_masks(a, b)
    scores = {}
    for label in labels:
        in_a, in_b = a == label, b == label
        total = in_a.sum() + in_b.sum()
        scores[int(label)] = float(2 * (in_a & in_b).sum() / total) if total else float("nan")
    return scores


def surface_distance(
    a: np.ndarray,
    b: np.ndarray,
    labels: Iterable[int],
    spacing: Sequence[float] | None = None,
) -> dict[int, SurfaceDistance]:
    """How far the surfaces of each label lie apart, in the unit of `spacing` (axis order; else 1).

    The surface of a structure consists of its pixels with at least one of their four (in a volume
    six) neighbours outside it (beyond the image counts as outside). For every surface pixel of A,
    take the distance to the nearest surface pixel of B, centre to centre, and vice versa; see
    `SurfaceDistance`. NaN if either structure is empty.

    Raises:
        ValueError: on masks that do not fit, or a spacing that is not a positive number per axis.
    """
    a, b = _label_masks(a, b)
    spacing = np.asarray((1.0,) * a.ndim if spacing is None else spacing, np.float64)
    if spacing.shape != (a.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(
            f"spacing: found {spacing}, expected {a.ndim} positive numbers (axis order)"
        )
    scores = {}
    for label in labels:
        in_a, in_b = a == label, b == label
        if not (in_a.any() and in_b.any()):
            scores[int(label)] = SurfaceDistance(float("nan"), float("nan"))
            continue
        # all that matters lies within the box around both
        (box,) = ndimage.find_objects((in_a | in_b).astype(np.uint8))
        surface_a, surface_b = _surface(in_a[box]), _surface(in_b[box])
        a_to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing)[surface_a]
        b_to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing)[surface_b]
        scores[int(label)] = SurfaceDistance(
            float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))),
            float(np.concatenate([a_to_b, b_to_a]).mean()),
        )
    return scores


def hd95(
    a: np.ndarray,
    b: np.ndarray,
    labels: Iterable[int],
    spacing: Sequence[float] | None = None,
) -> dict[int, float]:
    """`SurfaceDistance.hd95` of each label, see `surface_distance`."""
    distances = surface_distance(a, b, labels, spacing)
    return {label: distance.hd95 for label, distance in distances.items()}


def nonpositive_jacobian_percent(displacement: np.ndarray) -> float:
    """Percentage of all pixels with J(x) <= 0 (eq. 18), of a displacement `[*space, rank]`.

    J as in `jacobian`, in float64. Raises ValueError on NaN or infinity, which would otherwise
    count as "no folding".
    """
    displacement = _finite_displacement("displacement", displacement)
    return float(100 * np.mean(jacobian_determinant(displacement) <= 0))


def sd_log_jacobian(displacement: np.ndarray) -> SdLogJacobian:
    """Standard deviation (population) of ln J(x) of a displacement `[*space, rank]`.

    Computed over the pixels with J > 0. The others have no logarithm; they are counted. Some
    challenges clip them to a small positive number instead, but the score then depends on that
    number. NaN if no pixel is left.
    """
    determinant = jacobian_determinant(_finite_displacement("displacement", displacement))
    positive = determinant[determinant > 0]
    value = float(np.std(np.log(positive))) if positive.size else float("nan")
    return SdLogJacobian(value, int(determinant.size - positive.size))


def endpoint_error(
    displacement: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None
) -> EndpointError:
    """Mean Euclidean distance in pixels between a displacement `[*space, rank]` and the truth.

    Averaged over the pixels of the fixed image where `mask` (`[*space]` or `[*space, 1]`, any
    dtype) is non-zero; over all pixels without a mask. NaN for an empty mask.
    """
    displacement = _finite_displacement("displacement", displacement)
    reference = _finite_displacement("reference", reference)
    sizes = check_shape("reference", reference, "*space rank")
    check_shape("displacement", displacement, "*space rank", sizes)
    inside = np.ones(sizes["space"], bool)
    if mask is not None:
        inside = _without_channel("mask", mask) != 0
        check_shape("mask", inside, "*space", sizes)
    if not inside.any():
        return EndpointError(float("nan"), float("nan"))
    error = np.linalg.norm(displacement - reference, axis=-1)
    initial = np.linalg.norm(reference, axis=-1)
    return EndpointError(float(error[inside].mean()), float(initial[inside].mean()))


def summarise(values: Iterable[float]) -> dict[str, float | int]:
    """{"mean", "std" (population), "median", "n", "n_excluded"} of scores, without NaN.

    `n` scores were used, `n_excluded` were NaN. Without any score the statistics are NaN.
    """
    values = np.asarray(list(values), np.float64)
    used = values[~np.isnan(values)]
    counts = {"n": int(used.size), "n_excluded": int(values.size - used.size)}
    if not used.size:
        nan = float("nan")
        return {"mean": nan, "std": nan, "median": nan, **counts}
    return {
        "mean": float(used.mean()),
        "std": float(used.std()),
        "median": float(np.median(used)),
        **counts,
    }


def _without_channel(name, mask):
    """`[*space]` of a mask `[*space]` or `[*space, 1]`."""
    mask = np.asarray(mask)
    if mask.ndim in (3, 4) and mask.shape[-1] == 1:
        mask = mask[..., 0]
    check_shape(name, mask, "*space")
    return mask


def _label_masks(a, b):
    a, b = _without_channel("a", a), _without_channel("b", b)
    check_shape("b", b, "*space", check_shape("a", a, "*space"))
    for name, mask in (("a", a), ("b", b)):
        if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == bool):
            raise ValueError(f"{name}: found dtype {mask.dtype}, expected integer labels")
    return a, b


def _surface(structure):
    return structure & ~ndimage.binary_erosion(structure)


def _finite_displacement(name, displacement):
    displacement = np.asarray(displacement, np.float64)
    check_shape(name, displacement, "*space rank")
    if not np.isfinite(displacement).all():
        raise ValueError(f"{name}: found NaN or infinity, expected finite pixels")
    return displacement
