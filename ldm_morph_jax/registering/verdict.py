"""Judge whether a result is plausible, by the images and, where there are any, the masks.

Thresholds for pairs were chosen on training and validation patients of Sunnybrook, ACDC and CAMUS,
each registered in both directions, and with the images of another patient; docs/registering.md has
the table. Those for tracked hearts were chosen on development beats of the phantom and on
validation patients of ACDC (docs/tracking.md). A verdict is no proof: it finds visible failures.
"""

import math
from collections.abc import Mapping

from ldm_morph_jax.ops.appearance import distance
from ldm_morph_jax.registering.result import Registration
from ldm_morph_jax.runs.weights import shipped

PLAUSIBLE, UNCERTAIN, IMPLAUSIBLE = "plausible", "uncertain", "implausible"

LEAST_CORRELATION = 0.9  # of two images of one heart, after registration, on the model grid
EQUAL = 1e-3  # RMS difference of two images that are the same, as a share of their range
LARGEST_SPREAD = 0.45  # of log J; hearts of two patients made alike take more
LEAST_LOCAL_CORRELATION = 0.6
LEAST_OVERLAP = 0.7  # DSC of a label, where both images have masks
LARGEST_LOSS = 0.005  # of DSC
LARGEST_DISTANCE = 2.2  # from the training images, see `ops.appearance.distance`

# Of tracked hearts: above the first number a result is doubted, above the second implausible.
WALL_GROWTH = 0.35, 0.5  # of the wall's area in a slice, to end-systole: the ventricle shortens
WALL_LOSS = 0.08, 0.35  # of the same; a slice of a heart has none, a mask that is too small has
VOLUME_CHANGE = 0.2, 0.3  # of the wall in a stack or a volume
LENGTHENING = 0.0, 0.03  # strain of the whole wall along itself, at end-systole
SECTOR_LENGTHENING = 0.05, 0.15  # of one sector; an infarct may lengthen a little
THICKENING = 1.1, 1.5  # radial strain of the whole wall
BETTER_FIT = 1.2  # contrast of cavity and wall in another frame, over that in the reference frame
LARGEST_DRIFT = 1.0  # pixels between the ends of a whole beat, the last frame registered by itself


def judge(registration: Registration, metrics: Mapping, described: Mapping | None) -> dict:
    """The verdict on a pair.

    Args:
        registration: the pair.
        metrics: its numbers, see `measures.measure`.
        described: the training images of the network (`ops.appearance.describe`), where known.

    Returns:
        {"level": one of the three, "sentence": it in words, "distance_from_training": or None}.
    """
    far = None if described is None else _distance(registration, described)
    reasons = _against(metrics)
    doubts = [*_doubts(metrics), *doubts_by_masks(metrics)]
    if far is not None and far > LARGEST_DISTANCE:
        doubts.append(_unlike(registration, far))
    agreed = "the images agree, and no area changes more than it does in a heart"
    return _verdict(reasons, doubts, agreed) | {"distance_from_training": far}


def _verdict(reasons: list[str], doubts: list[str], agreed: str) -> dict:
    """Level and sentence, from what speaks against a result and what makes it uncertain."""
    level = IMPLAUSIBLE if reasons else UNCERTAIN if doubts else PLAUSIBLE
    opening = {
        PLAUSIBLE: "Plausible",
        UNCERTAIN: "Uncertain, have a look",
        IMPLAUSIBLE: "Implausible, do not use it unseen",
    }[level]
    return {"level": level, "sentence": f"{opening}: {'; '.join(reasons + doubts) or agreed}."}


def judge_heart(numbers: Mapping) -> dict | None:
    """The verdict on a tracked heart.

    Heart muscle hardly changes its volume, shortens along the wall in systole and thickens by less
    than its own thickness; a whole beat ends where it began. In one slice tissue also moves through
    the plane, so that the limits are wider than for a volume.

    Args:
        numbers: the summary of its curves, see `heart.summary`, with "curves" by column.

    Returns:
        {"level": one of the three, "sentence": it in words}; None where nothing was measured.
    """
    reference, end_systole = numbers["reference"], numbers["end_systole"]
    if end_systole is None:
        return None
    reasons, doubts = [], []

    def object_to(value: float, doubtful: float, wrong: float, text: str) -> None:
        """`text` with the value in place of {}, where the value's size is beyond a limit."""
        if abs(value) > wrong:
            shown, limit = _percents(value, wrong)
            reasons.append(f"{text.format(shown)}, at most {limit} in a heart")
        elif abs(value) > doubtful:
            shown, limit = _percents(value, doubtful)
            doubts.append(f"{text.format(shown)}, usually at most {limit}")

    folded = numbers["jacobian"]["nonpositive_percent"]
    if folded:
        reasons.append(f"the motion folds at {folded:.2g} % of the pixels")
    for column, curve in numbers["curves"].items():
        if column.startswith("wall_area"):
            change = curve[end_systole] / curve[reference] - 1
            limits = WALL_GROWTH if change > 0 else WALL_LOSS
            way = "grows" if change > 0 else "shrinks"
            object_to(abs(change), *limits, f"the wall's area {way} by {{}} to end-systole")
        if column.startswith("wall_volume"):
            change = curve[end_systole] / curve[reference] - 1
            object_to(change, *VOLUME_CHANGE, "the wall's volume changes by {} to end-systole")
    for strain in numbers["strain"].values():
        along_wall = strain["direction"] != "radial"
        if strain["region"] == "wall" and along_wall:
            value = max(strain["end_systolic"], 0)
            object_to(value, *LENGTHENING, f"the wall lengthens: {strain['direction']} strain {{}}")
        elif strain["region"] == "wall":
            value = strain["end_systolic"]
            object_to(max(value, 0), *THICKENING, "radial strain is {}")
            if value < 0:
                doubts.append(f"the wall becomes thinner: radial strain {100 * value:.0f} %")
    of_sectors = [
        (strain["end_systolic"], strain["region"].replace("_", " "))
        for strain in numbers["strain"].values()
        if strain["region"] not in ("wall", "endocardium") and strain["direction"] != "radial"
    ]
    if of_sectors:
        value, region = max(of_sectors)
        object_to(max(value, 0), *SECTOR_LENGTHENING, f"the {region} sector lengthens by {{}}")
    drift = numbers.get("drift_px", {}).get("registered_alone", 0.0)
    if drift > LARGEST_DRIFT:
        doubts.append(
            f"the last frame lies {drift:.1f} pixels from the first, of a whole beat at most "
            f"{LARGEST_DRIFT:g}"
        )
    fits = numbers.get("mask_contrast", [])
    if fits and max(fits) > BETTER_FIT * fits[reference]:
        best = fits.index(max(fits))
        doubts.append(
            f"the mask fits frame {best} better than the reference, frame {reference} (contrast of "
            f"cavity and wall {fits[best]:.1f} and {fits[reference]:.1f})"
        )
    agreed = "the wall changes as it does in a heart"
    return _verdict(reasons, doubts, agreed)


def judge_stack(of_slices: Mapping[str, Mapping | None], wall_change: float | None) -> dict:
    """The verdict on a stack of tracked slices.

    Args:
        of_slices: name -> verdict of a slice, see `judge_heart`.
        wall_change: of the wall's volume, to end-systole over the reference, as a fraction; None
            where there is no wall.
    """
    reasons, doubts = [], []
    if wall_change is not None and abs(wall_change) > VOLUME_CHANGE[0]:
        wrong = abs(wall_change) > VOLUME_CHANGE[1]
        change, limit = _percents(wall_change, VOLUME_CHANGE[wrong])
        text = f"the wall's volume changes by {change} to end-systole, in a heart at most {limit}"
        (reasons if wrong else doubts).append(text)
    doubts += [
        f"{name} is {verdict['level']}"
        for name, verdict in of_slices.items()
        if verdict is not None and verdict["level"] != PLAUSIBLE
    ]
    return _verdict(reasons, doubts, "every slice is plausible, and the wall keeps its volume")


def _percents(value: float, limit: float) -> tuple[str, str]:
    """A value and the limit it exceeds, with enough digits to tell them apart."""
    for digits in range(4):
        shown, allowed = (f"{100 * x:.{digits}f}" for x in (value, limit))
        if shown.lstrip("-") != allowed:
            break
    return f"{shown} %", f"{allowed} %"


def _against(metrics: Mapping) -> list[str]:
    """What speaks against a result."""
    reasons = []
    jacobian, correlation = metrics["jacobian"], metrics["correlation"]["after"]
    if jacobian["nonpositive_pixels"]:
        reasons.append(f"the transform folds at {jacobian['nonpositive_pixels']} pixels")
    equal = metrics["rms_difference"]["before"] < EQUAL
    if max(metrics.get("scale", [1.0])) == 0 and "affine" not in metrics and not equal:
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
    local = [value for value in local if not math.isnan(value)]  # a blank slice has none
    if local and min(local) < LEAST_LOCAL_CORRELATION:
        doubts.append(
            f"small structures agree little (local correlation {min(local):.2f}, usually above "
            f"{LEAST_LOCAL_CORRELATION}), as in ultrasound and noise"
        )
    return doubts


def doubts_by_masks(metrics: Mapping) -> list[str]:
    """Labels that overlap little after registration, or less than before; none without masks."""
    doubts = []
    for label, score in metrics.get("dice", {}).items():
        before, after = score["before"], score["after"]
        if after < before - LARGEST_LOSS:
            doubts.append(
                f"label {label} overlaps less than before (DSC {before:.2f} → {after:.2f})"
            )
        elif after < LEAST_OVERLAP:
            doubts.append(
                f"label {label} overlaps little (DSC {after:.2f}, usually above {LEAST_OVERLAP})"
            )
    return doubts


def _distance(registration: Registration, described: Mapping) -> float | None:
    """The larger distance of the two images, as they are in their files, from the training images.

    None for images that are too small to describe, and for volumes, which no network sees.
    """
    arrays = [image.array for image in (registration.moving, registration.fixed)]
    if registration.in_space or min(n for array in arrays for n in array.shape[-2:]) < 32:
        return None
    stacks = [array.reshape(-1, *array.shape[-2:]) for array in arrays]
    blank = [[plane.blank for plane in registration.slices]] * 2
    if registration.alignment is not None:  # those of the other stack are not these
        blank = [[plane.min() == plane.max() for plane in stack] for stack in stacks]
    images = [
        plane
        for stack, empty in zip(stacks, blank, strict=True)
        for plane, leave in zip(stack, empty, strict=True)
        if not leave
    ]
    return float(distance(images, described).max())


def _unlike(registration: Registration, far: float) -> str:
    """Says that the network knows other images, and names shipped weights that know these."""
    text = (
        f"the network was trained on other images (distance {far:.1f}, usually below "
        f"{LARGEST_DISTANCE})"
    )
    others = {name: _distance(registration, known) for name, known in shipped().items()}
    closest = min(others, key=others.get)
    if others[closest] <= LARGEST_DISTANCE:
        text += f"; the weights {closest} know such images"
    return text
