"""How far measured numbers may be off: 90 % intervals by split-conformal prediction.

Half the width of an interval is the quantile of the errors that `track` made on beats of the
phantom which were not used for anything else, and whose truth is known (Lei et al., J Am Stat Assoc
113:1094, 2018, sec. 2.2). An unseen beat is covered with that probability where it is like the
phantom's. Intervals know nothing of masks that are wrong, of motion through the plane, nor of a
bias that real hearts may have. Widths that follow what can be seen of a region (residual, contrast,
spread of its strain) were not narrower on the same beats.

`HALF_WIDTHS` has the numbers whose intervals covered 85 to 95 % of unseen beats;
docs/results/tracking has all, and how they were made.
"""

import math

import numpy as np

from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.heart import Curve
from ldm_morph_jax.registering.result import Tracked

COVERAGE = 0.9
FRACTIONS = {"area": "fractional_area_change", "volume": "ejection_fraction"}  # of the cavity
CALIBRATED_ON = "calibrated on beats of the phantom, not on patients"
# (view, what) -> half the width, a fraction. Printed by `python tests/interval_accuracy.py
# calibrate`, which says which ones do not hold.
HALF_WIDTHS = {
    ("sax", "radial segment"): 0.0892,
    ("sax", "circumferential segment"): 0.023,
    ("apical", "area of cavity"): 0.00889,
    ("apical", "volume of cavity"): 0.00846,
    ("apical", "longitudinal wall"): 0.00808,
}


def conformal_quantile(scores: np.ndarray, coverage: float = COVERAGE) -> float:
    """What an unseen score is at most, with probability `coverage` or more; infinite if too few.

    The ceil((n + 1) coverage)-th smallest of n exchangeable scores (Lei et al., eq. 2.6).
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")


def kind(curve: Curve) -> str:
    """What is calibrated together: "area of cavity", "radial wall"; segments of a direction are."""
    if curve.quantity != "strain":
        return f"{curve.quantity} of {curve.region}"
    return f"{curve.direction} {'segment' if curve.of_sector else curve.region}"


def with_intervals(
    numbers: dict, tracked: Tracked, anatomy: Anatomy, curves: tuple[Curve, ...]
) -> dict:
    """A summary (`heart.summary`) with intervals beside its numbers.

    Returns:
        `numbers` and "intervals", their "coverage" and what they are "calibrated_on", and beside
        them those that hold, (low, high): "peak_interval" of a strain,
        "fractional_area_change_interval" and "ejection_fraction_interval". "intervals" is None, and
        there are none, for what was not calibrated: another method than the search, volumes, a cine
        whose spacing or period is not known, no wall.
    """
    known = tracked.cine.first.spacing_known and tracked.period is not None and anatomy.has_wall
    if tracked.method != "search" or tracked.geometry.dimension == 3 or not known:
        return numbers | {"intervals": None}
    found = dict(numbers)
    for curve in curves:
        half = HALF_WIDTHS.get((anatomy.view, kind(curve)))
        if half is None:
            continue
        if curve.quantity == "strain":
            of_curve = found["strain"][curve.column]
            interval = _around(of_curve["peak"], half)
            found["strain"] = found["strain"] | {
                curve.column: of_curve | {"peak_interval": interval}
            }
        elif curve.region == "cavity":
            name = FRACTIONS[curve.quantity]
            found[f"{name}_interval"] = _around(found[name], half)
    return found | {"intervals": {"coverage": COVERAGE, "calibrated_on": CALIBRATED_ON}}


def _around(value: float, half: float) -> list[float]:
    return [value - half, value + half]
