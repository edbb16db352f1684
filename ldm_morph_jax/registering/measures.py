"""Measure how well a pair was registered: the numbers and notes of metrics.json.

A score that is not defined, such as the correlation of a constant image, is NaN.
"""

import numpy as np

from ldm_morph_jax.files.geometry import inside
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.ops.metrics import dice, surface_distance
from ldm_morph_jax.registering.affine import degrees_of
from ldm_morph_jax.registering.grid import Grid, middle_of
from ldm_morph_jax.registering.result import Registration
from ldm_morph_jax.runs.trained import TrainedMethod


def measure(
    registration: Registration,
    moving_mask: np.ndarray | None,
    fixed_mask: np.ndarray | None,
    *,
    steps: int,
    inverse: bool,
) -> dict:
    """The numbers of one pair.

    Args:
        registration: the pair.
        moving_mask, fixed_mask: labels on the grids of the images; with both, DSC per label.
        steps: of refinement there were.
        inverse: whether to compute the inverse and its residual.
    """
    transform = registration.transform
    model, whole = _model_grid(registration), registration.slices[0].whole.grid
    moved = np.linalg.norm(transform.displacement_mm - registration.start.displacement_mm, axis=-1)
    metrics = {
        "moving": image_facts(registration.moving),
        "fixed": image_facts(registration.fixed),
        "in_three_dimensions": registration.in_space,
        "model_grid": None
        if model is None
        else {
            "size": model.shape[0],
            "centre_on_fixed_pixel": list(model.centre),
            "fixed_pixels_per_model_pixel": list(model.scale),
        },
        "whole_grid": {
            "shape": list(whole.shape),
            "fixed_pixels_per_grid_pixel": list(whole.scale),
        },
        "shift_before_registration_mm": [s.shift.tolist() for s in registration.slices],
        **similarity(registration),
        "jacobian": jacobian_numbers(transform.jacobian_determinant()),
        "displacement_mm": {"mean": float(moved.mean()), "largest": float(moved.max())},
        "diffeomorphic": registration.diffeomorphic,
        "refinement": {"steps": steps},
    }
    if registration.diffeomorphic:
        metrics["scale"] = [motion.scale for motion in registration.motions]
        metrics["local_correlation"] = [
            dict(zip(("before", "after"), motion.correlation, strict=True))
            for motion in registration.motions
        ]
    if registration.alignment is not None:
        metrics["affine"] = affine_numbers(registration)
    if moving_mask is not None and fixed_mask is not None:
        metrics["dice"] = overlap(registration, moving_mask, fixed_mask)
    if inverse:
        metrics["inverse"] = inverse_numbers(registration)
    return metrics


def _model_grid(registration: Registration) -> Grid | None:
    """Of slices; None where volumes were registered in three dimensions."""
    return None if registration.in_space else registration.slices[0].model.grid


def affine_numbers(registration: Registration) -> dict:
    """The rigid or affine map that came before the deformation.

    "shift_mm" moves the fixed image's centre, beyond what `align` does; "degrees" is the angle of
    the nearest rotation; "scales" are the singular values of the matrix, 1 in a rigid map. "matrix"
    and "offset_mm" are those of affine.tfm: from the fixed to the moving image, (x, y[, z]), LPS.
    """
    alignment, geometry = registration.alignment, registration.fixed.geometry
    whole, centre = alignment.whole, middle_of(geometry)
    u, scales, v = np.linalg.svd(whole.matrix)
    shift = whole(centre) - centre - registration.slices[0].shift
    degrees = degrees_of(u @ v)
    positions = geometry.to_physical(geometry.indices())
    moved = np.linalg.norm(whole(positions) - positions - registration.slices[0].shift, axis=-1)
    unit = "mm" if registration.fixed.spacing_known else "pixels"
    sentence = f"shifted by {np.linalg.norm(shift):.1f} {unit}, turned by {degrees:.1f} degrees"
    if alignment.kind == "affine":
        sentence += f", scaled by {scales.min():.2f} to {scales.max():.2f}"
    return {
        "kind": alignment.kind,
        "sentence": sentence,
        "shift_mm": shift.tolist(),
        "degrees": degrees,
        "scales": scales.tolist(),
        "moved_mm": {"mean": float(moved.mean()), "largest": float(moved.max())},
        "local_correlation": dict(zip(("before", "after"), alignment.correlation, strict=True)),
        "matrix": whole.matrix.tolist(),
        "offset_mm": whole.offset.tolist(),
    }


def image_facts(image: Image) -> dict:
    """File, shape, spacing and axes of an image."""
    return {
        "file": image.source,
        "shape": list(image.array.shape),
        "spacing_mm": list(image.spacing) if image.spacing_known else None,
        "axes": image.axis_letters,
    }


def similarity(registration: Registration) -> dict[str, dict[str, float]]:
    """Before and after: correlation on the model grid (volumes have none: everywhere), differences
    on and beyond it.

    "correlation": coefficient of fixed and warped image; "rms_difference" and
    "rms_difference_beyond_grid": root of the mean squared difference, as a share of the fixed
    image's range. All over pixels of the fixed image that both the start and the result find inside
    the moving one.
    """
    moving, fixed = registration.moving.array, registration.fixed.array
    transforms = {"before": registration.start, "after": registration.transform}
    seen = np.ones(fixed.shape, bool)
    for transform in transforms.values():
        seen &= inside(transform.moving_indices(), moving.shape)
    model = _model_grid(registration)
    on_grid = np.broadcast_to(True if model is None else model.covers(fixed.shape[-2:]), seen.shape)
    extent = float(fixed.max()) - float(fixed.min())
    table: dict[str, dict[str, float]] = {
        "correlation": {},
        "rms_difference": {},
        "rms_difference_beyond_grid": {},
    }
    for when, transform in transforms.items():
        warped = registration.warped if when == "after" else transform.warp(moving)
        squared = ((warped - fixed.astype(np.float64)) / extent) ** 2
        table["correlation"][when] = correlation(fixed[seen & on_grid], warped[seen & on_grid])
        for name, where in (
            ("rms_difference", seen),
            ("rms_difference_beyond_grid", seen & ~on_grid),
        ):
            table[name][when] = (
                float(np.sqrt(squared[where].mean())) if where.any() else float("nan")
            )
    return table


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation coefficient of the values of two images, NaN where there is none."""
    if len(a) < 2:
        return float("nan")
    pair = np.stack([a, b]).astype(np.float64)
    pair -= pair.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(pair, axis=1).prod()
    return float(pair[0] @ pair[1] / scale) if scale else float("nan")


def overlap(
    registration: Registration, moving_mask: np.ndarray, fixed_mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """DSC of every label, before and after; a stack's is its volume's.

    A label of one mask alone has DSC 0, and "lacking" says which of them lacks it. "hd95_mm" and
    "mean_surface_distance_mm" are distances of the surfaces, in "_px" where spacing is unknown.
    """
    before = registration.start.warp(moving_mask, "nearest")
    after = registration.transform.warp(moving_mask, "nearest")
    masks = {"the moving mask": moving_mask, "the fixed mask": fixed_mask}
    present = {name: {int(k) for k in np.unique(mask) if k != 0} for name, mask in masks.items()}
    labels = sorted(set.union(*present.values()))
    warped = {"before": before, "after": after}
    scores = {when: dice(mask, fixed_mask, labels) for when, mask in warped.items()}
    spacing, unit = registration.fixed.geometry.spacing, "mm"
    if not registration.fixed.spacing_known:
        spacing, unit = None, "px"
    distances = {
        when: surface_distance(mask, fixed_mask, labels, spacing) for when, mask in warped.items()
    }
    table = {}
    for k in labels:
        table[str(k)] = {when: score[k] for when, score in scores.items()}
        for name, kind in (("hd95", "hd95"), ("mean_surface_distance", "mean")):
            table[str(k)][f"{name}_{unit}"] = {w: getattr(d[k], kind) for w, d in distances.items()}
        for name in masks:
            if k not in present[name]:
                table[str(k)]["lacking"] = name
    return table


def jacobian_numbers(determinant: np.ndarray) -> dict[str, float]:
    """Folds, range and spread of Jacobian determinants of any shape; the spread is over J > 0."""
    positive = determinant[determinant > 0]
    nonpositive = determinant.size - positive.size
    return {
        "pixels": determinant.size,
        "nonpositive_pixels": nonpositive,
        "nonpositive_percent": 100 * nonpositive / determinant.size,
        "smallest": float(determinant.min()),
        "largest": float(determinant.max()),
        "mean": float(determinant.mean()),
        "sd_log": float(np.std(np.log(positive))) if positive.size else float("nan"),
    }


def inverse_numbers(registration: Registration) -> dict[str, float]:
    """The residual of the inverse, and at how many pixels there is none.

    Counts pixels of the moving image that come from within the fixed one.
    """
    inverse = registration.inverse
    index = inverse.transform.moving_indices()
    last = np.array(inverse.transform.moving.shape) - 1
    within = ((index >= 0) & (index <= last)).all(axis=-1)
    residual = inverse.residual_mm[within]
    return {
        "residual_mm_mean": float(residual.mean()) if residual.size else float("nan"),
        "residual_mm_largest": float(residual.max()) if residual.size else float("nan"),
        "missing_pixels": int(np.count_nonzero(within & ~inverse.converged)),
    }


def _planes_apart(moving: Image, fixed: Image) -> float | None:
    """mm between two single slices across the fixed one's plane, if half a slice or more."""
    known = moving.position_known and fixed.position_known
    if not known or moving.space is None or fixed.space is None:
        return None
    apart = abs((middle_of(moving.space) - middle_of(fixed.space)) @ fixed.space.direction[:, 2])
    return float(apart) if apart >= 0.5 * fixed.space.spacing[0] else None


def notes(registration: Registration, method: TrainedMethod) -> list[str]:
    """Notes on this result for the user."""
    sentences = [
        f"{image.source}: {note}"
        for image in (registration.moving, registration.fixed)
        for note in image.notes
    ]
    sentences += registration.notes
    beyond = "" if registration.alignment is None else " or beyond the moving image"
    sentences += [
        f"slice {k} is blank{beyond}: left as it is"
        for k, part in enumerate(registration.slices)
        if part.blank
    ]
    empty = []
    if registration.in_space:
        empty = np.flatnonzero(~registration.slices[0].whole.valid.any(axis=(1, 2))).tolist()
    if empty:
        sentences.append(
            f"one of the volumes shows nothing in slice {', '.join(map(str, empty))} of the fixed "
            "one: that moves with its neighbours"
        )
    if registration.in_space and not registration.fixed.spacing_known:
        sentences.append(
            f"{registration.fixed.source} does not tell its spacing: slices were taken to be as "
            "far apart as pixels"
        )
    elif method.spacing_mm is not None and not registration.fixed.spacing_known:
        sentences.append(
            f"{registration.fixed.source} does not tell its pixel spacing: the longer side was "
            "fitted to the model's grid, so the heart may not have the size that the network "
            "knows; its spacing, where you know it, helps"
        )
    apart = _planes_apart(registration.moving, registration.fixed)
    if apart is not None:
        sentences.append(f"the two slices lie {apart:.3g} mm apart, across their plane")
    if registration.fixed.plane is not None:
        sentences.append("oblique slice: x and y in the results are axes of the slice's own plane")
    return sentences
