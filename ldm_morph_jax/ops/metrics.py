"""Scores of one pair, on the host, in float64. Conventions: `ldm_morph_jax.ops`.

Masks are integer labels `[H, W]` or `[H, W, 1]`; a moving mask is warped with nearest-neighbour
interpolation before it is compared (eq. 17 counts hard labels). An undefined score, such as the
overlap of a structure that is in neither mask, is NaN; `summarise` excludes and counts NaN scores.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ldm_morph_jax.ops.checks import check_shape


class SdLogJacobian(NamedTuple):
    """`value` over the pixels with J > 0; `n_excluded` pixels with J <= 0 were left out."""

    value: float
    n_excluded: int


class EndpointError(NamedTuple):
    """`mean` error of the displacement and `initial` error of a zero displacement, in pixels."""

    mean: float
    initial: float


def dice(a: np.ndarray, b: np.ndarray, labels: Iterable[int]) -> dict[int, float]:
    """DSC = 2 |A n B| / (|A| + |B|) of each label (eq. 17).

    NaN for a label in neither mask; 0, by the formula, for a label in only one of them.
    """
    a, b = _label_planes(a, b)
    scores = {}
    for label in labels:
        in_a, in_b = a == label, b == label
        total = in_a.sum() + in_b.sum()
        scores[int(label)] = float(2 * (in_a & in_b).sum() / total) if total else float("nan")
    return scores


def hd95(
    a: np.ndarray,
    b: np.ndarray,
    labels: Iterable[int],
    spacing: tuple[float, float] = (1.0, 1.0),
) -> dict[int, float]:
    """95 % Hausdorff distance of each label, in the unit of `spacing` (row, column).

    The surface of a structure consists of its pixels with at least one of their four neighbours
    outside it (beyond the image counts as outside). For every surface pixel of A, take the distance
    to the nearest surface pixel of B, centre to centre, and vice versa. The result is the larger of
    the two directions' 95th percentiles (linear interpolation), or NaN if either structure is
    empty. (Pooling both directions before the percentile, as some tools do, gives a smaller
    number.)

    Raises:
        ValueError: on masks that do not fit, or a spacing that is not two positive numbers.
    """
    a, b = _label_planes(a, b)
    spacing = np.asarray(spacing, np.float64)
    if spacing.shape != (2,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing: found {spacing}, expected two positive numbers (row, column)")
    scores = {}
    for label in labels:
        surface_a, surface_b = _surface(a == label), _surface(b == label)
        if surface_a.any() and surface_b.any():
            a_to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing)[surface_a]
            b_to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing)[surface_b]
            scores[int(label)] = float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))
        else:
            scores[int(label)] = float("nan")
    return scores


def nonpositive_jacobian_percent(displacement: np.ndarray) -> float:
    """Percentage of all H*W pixels with J(x) <= 0 (eq. 18), of a displacement `[H, W, 2]`.

    J by central differences, one-sided at the border, as `geometry.jacobian_determinant` but in
    float64. Raises ValueError on NaN or infinity, which would otherwise count as "no folding".
    """
    return float(100 * np.mean(_jacobian_determinant(displacement) <= 0))


def sd_log_jacobian(displacement: np.ndarray) -> SdLogJacobian:
    """Standard deviation (population) of ln J(x) of a displacement `[H, W, 2]`.

    Computed over the pixels with J > 0. The others have no logarithm; they are counted. Some
    challenges clip them to a small positive number instead, but the score then depends on that
    number. NaN if no pixel is left.
    """
    determinant = _jacobian_determinant(displacement)
    positive = determinant[determinant > 0]
    value = float(np.std(np.log(positive))) if positive.size else float("nan")
    return SdLogJacobian(value, int(determinant.size - positive.size))


def endpoint_error(
    displacement: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None
) -> EndpointError:
    """Mean Euclidean distance in pixels between a displacement `[H, W, 2]` and the true one.

    Averaged over the pixels of the fixed image where `mask` (`[H, W]` or `[H, W, 1]`, any dtype) is
    non-zero; over all pixels without a mask. NaN for an empty mask.
    """
    displacement = _finite_displacement("displacement", displacement)
    reference = _finite_displacement("reference", reference)
    sizes = check_shape("reference", reference, "H W 2")
    check_shape("displacement", displacement, "H W 2", sizes)
    inside = np.ones((sizes["H"], sizes["W"]), bool)
    if mask is not None:
        inside = _plane("mask", mask) != 0
        check_shape("mask", inside, "H W", sizes)
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


def _plane(name, mask):
    """`[H, W]` of a mask `[H, W]` or `[H, W, 1]`."""
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    check_shape(name, mask, "H W")
    return mask


def _label_planes(a, b):
    a, b = _plane("a", a), _plane("b", b)
    check_shape("b", b, "H W", check_shape("a", a, "H W"))
    for name, mask in (("a", a), ("b", b)):
        if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == bool):
            raise ValueError(f"{name}: found dtype {mask.dtype}, expected integer labels")
    return a, b


def _surface(structure):
    return structure & ~ndimage.binary_erosion(structure)


def _finite_displacement(name, displacement):
    displacement = np.asarray(displacement, np.float64)
    check_shape(name, displacement, "H W 2")
    if not np.isfinite(displacement).all():
        raise ValueError(f"{name}: found NaN or infinity, expected finite pixels")
    return displacement


def _jacobian_determinant(displacement):
    displacement = _finite_displacement("displacement", displacement)
    by_row, by_column = np.gradient(displacement, axis=(0, 1))
    return (1 + by_row[..., 0]) * (1 + by_column[..., 1]) - by_column[..., 0] * by_row[..., 1]
