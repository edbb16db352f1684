"""Whether a result can be believed, from what can be seen without labels.

Thresholds were chosen on training and validation patients of Sunnybrook, ACDC and CAMUS, each
registered in both directions, and with the images of another patient; docs/registering.md has the
table. A verdict is no proof: it finds what goes wrong visibly.
"""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.ops.appearance import distance
from ldm_morph_jax.registering.grid import Slice, prepare
from ldm_morph_jax.registering.result import Registration
from ldm_morph_jax.runs.weights import shipped

PLAUSIBLE, UNCERTAIN, IMPLAUSIBLE = "plausible", "uncertain", "implausible"

LEAST_CORRELATION = 0.9  # of two images of one heart, after registration, on the model grid
LARGEST_SPREAD = 0.45  # of log J; hearts of two patients made alike take more
LEAST_LOCAL_CORRELATION = 0.6
LARGEST_DISTANCE = 3.2  # from the training images, see `ops.appearance.distance`


def judge(registration: Registration, metrics: Mapping, described: Mapping | None) -> dict:
    """The verdict on a pair.

    Args:
        registration: the pair.
        metrics: its numbers, see `measures.measure`.
        described: the training images of the network (`ops.appearance.describe`), where known.

    Returns:
        {"level": one of the three, "sentence": it in words, "distance_from_training": or None}.
    """
    far = None if described is None else _distance(registration.slices, described)
    reasons = _against(metrics)
    doubts = _doubts(metrics)
    if far is not None and far > LARGEST_DISTANCE:
        doubts.append(_unlike(registration, far))
    level = IMPLAUSIBLE if reasons else UNCERTAIN if doubts else PLAUSIBLE
    opening = {
        PLAUSIBLE: "Plausible: the images agree, and no area changes more than it does in a heart.",
        UNCERTAIN: "Uncertain, have a look: ",
        IMPLAUSIBLE: "Implausible, do not use it unseen: ",
    }[level]
    objections = reasons + doubts
    sentence = opening + ("; ".join(objections) + "." if objections else "")
    return {"level": level, "sentence": sentence, "distance_from_training": far}


def _against(metrics: Mapping) -> list[str]:
    """What speaks against a result."""
    reasons = []
    jacobian, correlation = metrics["jacobian"], metrics["correlation"]["after"]
    if jacobian["nonpositive_pixels"]:
        reasons.append(f"the transform folds at {jacobian['nonpositive_pixels']} pixels")
    if max(metrics.get("scale", [1.0])) == 0:
        reasons.append("no deformation improved the match")
    elif not correlation >= LEAST_CORRELATION:
        reasons.append(
            f"the images still differ (correlation {correlation:.2f}, of one heart at least "
            f"{LEAST_CORRELATION})"
        )
    if jacobian["sd_log"] > LARGEST_SPREAD:
        reasons.append(
            f"areas change more than in one heart (SD of log J {jacobian['sd_log']:.2f}, at most "
            f"{LARGEST_SPREAD})"
        )
    missing = metrics.get("inverse", {}).get("missing_pixels", 0)
    if missing:
        reasons.append(f"{missing} pixels have no inverse")
    return reasons


def _doubts(metrics: Mapping) -> list[str]:
    """What makes a result uncertain."""
    doubts = []
    scales = metrics.get("scale", [1.0])
    if 0 < max(scales) and min(scales) < 1:
        doubts.append(
            f"only {min(scales):.2f} of the motion that was found was kept: more of it makes the "
            "match worse"
        )
    local = [correlation["after"] for correlation in metrics.get("local_correlation", [])]
    if local and min(local) < LEAST_LOCAL_CORRELATION:
        doubts.append(
            f"small structures agree little (local correlation {min(local):.2f}, usually above "
            f"{LEAST_LOCAL_CORRELATION}), as in ultrasound and noise"
        )
    return doubts


def _distance(slices: Sequence[Slice], described: Mapping) -> float | None:
    """Of the image, as the network sees it, that is furthest from the training images.

    None where images are too small to describe, or no network saw them.
    """
    if slices[0].model is None or min(slices[0].model.grid.shape) < 32:
        return None
    images = [getattr(plane.model, name) for plane in slices for name in ("moving", "fixed")]
    return float(np.max(distance(np.stack(images), described)))


def _unlike(registration: Registration, far: float) -> str:
    """That the network knows other images, and which shipped weights know such as these."""
    text = (
        f"the network was trained on other images (distance {far:.1f}, usually below "
        f"{LARGEST_DISTANCE})"
    )
    others = {}
    for name, known in shipped().items():
        with contextlib.suppress(ImageError):  # on that grid the two may not overlap
            slices = prepare(known, registration.moving, registration.fixed)
            others[name] = _distance(slices, known.appearance)
    closest = min(others, key=others.get, default=None)
    if closest is not None and others[closest] <= LARGEST_DISTANCE:
        text += f"; the weights {closest} know such images"
    return text
