"""How well a pair was registered: the numbers of metrics.json, and what should be said with them.

A score that does not exist, such as the correlation of a constant image, is NaN.
"""

import numpy as np

from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import Transform
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.registering.method import Method
from ldm_morph_jax.registering.result import Registration

NOT_TRAINED_FOR_VELOCITY = (
    "--diffeomorphic: the network was trained to predict a displacement, not a velocity. Its "
    "prediction was integrated as if it were one (scaling and squaring): folds vanish, up to the "
    "grid's resolution; where motion is large the result departs from what the network meant"
)


def measure(
    registration: Registration,
    *,
    moving_mask: np.ndarray | None = None,
    fixed_mask: np.ndarray | None = None,
    refine: int = 0,
    inverse: bool = False,
) -> dict:
    """The numbers of one pair.

    Args:
        registration: the pair.
        moving_mask, fixed_mask: labels on the grids of the images; with both, DSC per label.
        refine: how many steps of refinement there were.
        inverse: whether to compute the inverse and its residual.
    """
    grid, transform = registration.prepared.grid, registration.transform
    moved = np.linalg.norm(transform.displacement_mm - registration.start.displacement_mm, axis=-1)
    metrics = {
        "moving": image_facts(registration.moving),
        "fixed": image_facts(registration.fixed),
        "model_grid": {
            "size": grid.size,
            "centre_on_fixed_pixel": list(grid.centre),
            "fixed_pixels_per_model_pixel": list(grid.scale),
        },
        "shift_before_registration_mm": registration.prepared.shift.tolist(),
        "correlation": {
            "before": correlation(registration, registration.start),
            "network": correlation(registration, registration.network_transform),
            "after": correlation(registration, transform),
        },
        "jacobian": jacobian_numbers(transform.jacobian_determinant()),
        "displacement_mm": {"mean": float(moved.mean()), "largest": float(moved.max())},
        "diffeomorphic": registration.diffeomorphic,
    }
    if moving_mask is not None and fixed_mask is not None:
        metrics["dice"] = overlap(registration, moving_mask, fixed_mask)
    if refine:
        objective = registration.prediction.dissimilarity
        network = registration.network_transform.jacobian_determinant()
        metrics["refinement"] = {
            "steps": refine,
            "objective_before": objective[:, 0].tolist(),
            "objective_after": objective[:, 1].tolist(),
            "nonpositive_percent_before": jacobian_numbers(network)["nonpositive_percent"],
            "nonpositive_percent_after": metrics["jacobian"]["nonpositive_percent"],
        }
    if inverse:
        metrics["inverse"] = inverse_residual(registration)
    return metrics


def image_facts(image: Image) -> dict:
    """Which image it was."""
    return {
        "file": image.source,
        "shape": list(image.array.shape),
        "spacing_mm": list(image.spacing) if image.spacing_known else None,
    }


def correlation(registration: Registration, transform: Transform) -> float:
    """Correlation coefficient of fixed and warped image, where both are seen by the method."""
    moving, fixed = registration.moving.array, registration.fixed.array
    grid = registration.prepared.grid
    on_grid = grid.model_pixels(fixed.shape[-2:])
    seen = ((on_grid >= 0) & (on_grid <= grid.size - 1)).all(axis=-1)
    for one in (registration.start, transform):
        index = one.moving_indices()
        seen = seen & ((index >= -0.5) & (index <= np.array(moving.shape) - 0.5)).all(axis=-1)
    if seen.sum() < 2:
        return float("nan")
    pair = np.stack([fixed[seen], transform.warp(moving)[seen]]).astype(np.float64)
    pair -= pair.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(pair, axis=1).prod()
    return float(pair[0] @ pair[1] / scale) if scale else float("nan")


def overlap(
    registration: Registration, moving_mask: np.ndarray, fixed_mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """DSC of every label, before and after; a stack's is its volume's.

    A label of one mask alone has DSC 0, and "lacking" says which of them lacks it.
    """
    before = registration.start.warp(moving_mask, "nearest")
    after = registration.transform.warp(moving_mask, "nearest")
    masks = {"the moving mask": moving_mask, "the fixed mask": fixed_mask}
    found = {name: {int(k) for k in np.unique(mask) if k != 0} for name, mask in masks.items()}
    labels = sorted(set.union(*found.values()))
    # dice counts pixels, however they are arranged
    before, after, fixed = (a.reshape(-1, a.shape[-1]) for a in (before, after, fixed_mask))
    scores = {"before": dice(before, fixed, labels), "after": dice(after, fixed, labels)}
    table = {}
    for k in labels:
        table[str(k)] = {when: score[k] for when, score in scores.items()}
        for name in masks:
            if k not in found[name]:
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


def inverse_residual(registration: Registration) -> dict[str, float]:
    """How far there and back leads from where it began, over pixels that are in both images."""
    inverse, residual = registration.inverse
    index = inverse.moving_indices()
    last = np.array(inverse.moving.shape) - 1
    seen = residual[((index >= 0) & (index <= last)).all(axis=-1)]
    return {
        "residual_mm_mean": float(seen.mean()) if seen.size else float("nan"),
        "residual_mm_largest": float(seen.max()) if seen.size else float("nan"),
    }


def notes(registration: Registration, method: Method, *, diffeomorphic: bool) -> list[str]:
    """What the user should know about this result; `diffeomorphic`: whether it was asked for."""
    found = [
        f"{image.source}: {note}"
        for image in (registration.moving, registration.fixed)
        for note in image.notes
    ]
    if diffeomorphic and not method.predicts_velocity:
        found.append(NOT_TRAINED_FOR_VELOCITY)
    if method.spacing_mm is not None and not registration.fixed.spacing_known:
        found.append(
            f"{registration.fixed.source} does not tell its pixel spacing: the longer side was "
            "fitted to the model's grid, so the heart may not have the size that the network "
            "knows; --spacing helps"
        )
    if registration.fixed.plane is not None:
        found.append("oblique slice: x and y in the results are axes of the slice's own plane")
    return found
