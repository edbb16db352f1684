"""How far measured numbers may be off: 90 % intervals by split-conformal prediction.

An interval is a number plus the median error (true minus found) of `track` on hearts whose truth is
known, minus and plus the 90 % quantile of the distance from it (Lei et al., J Am Stat Assoc
113:1094, 2018, sec. 2.2). An unseen heart is covered with that probability where it is like those.
Strain is calibrated on beats of the phantom, since nobody knows that of a patient; area change and
ejection fraction on annotated patients, with end-diastole's mask given. Widths that follow what can
be seen of a region (residual, contrast, spread of its strain) were not narrower.

`ERRORS` has the numbers whose intervals covered at least 85 % of unseen hearts;
docs/results/tracking has all, and how they were made.
"""

from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.heart import FRACTIONS, Curve
from ldm_morph_jax.registering.result import Tracked

COVERAGE = 0.9
CALIBRATED_ON = {
    "strain": "beats of the phantom, not patients",
    "sax": "patients of ACDC, mask of end-diastole given",
    "apical": "patients of CAMUS, mask of end-diastole given",
}
# (view, what) -> ends of true minus found, fractions. Printed by
# `python tests/interval_accuracy.py calibrate`, which says which ones do not hold.
ERRORS = {
    ("sax", "circumferential endocardium"): (-0.0131, 0.0064),
    ("sax", "radial wall"): (-0.0526, 0.0649),
    ("sax", "circumferential wall"): (-0.00671, 0.00264),
    ("sax", "radial segment"): (-0.0951, 0.0808),
    ("sax", "circumferential segment"): (-0.0227, 0.023),
    ("apical", "longitudinal endocardium"): (-0.00852, 0.00542),
    ("apical", "longitudinal segment"): (-0.011, 0.0223),
    ("sax", "area of cavity"): (-0.133, 0.156),
    ("apical", "area of cavity"): (-0.159, 0.278),
    ("apical", "volume of cavity"): (-0.159, 0.254),
}


def kind(curve: Curve) -> str:
    """What is calibrated together: "area of cavity", "radial wall"; segments of a direction are."""
    if curve.quantity != "strain":
        return f"{curve.quantity} of {curve.region}"
    return f"{curve.direction} {'segment' if curve.of_sector else curve.region}"


def with_intervals(
    numbers: dict, tracked: Tracked, anatomy: Anatomy, curves: tuple[Curve, ...], *, told: bool
) -> dict:
    """A summary (`heart.summary`) with intervals beside its numbers.

    Args:
        told: whether the mask is a reader's, not a network's.

    Returns:
        `numbers` and "intervals", their "coverage" and a "sentence" on them, and beside them
        those that hold, (low, high): "peak_interval" of a strain,
        "fractional_area_change_interval" and "ejection_fraction_interval". "intervals" is None, and
        there are none, for what was not calibrated: another method than the search, volumes, a
        cine whose spacing is not known; of strain, without a period or a wall; of the cavity, with
        a mask that a network found.
    """
    in_plane = tracked.geometry.dimension == 2
    known = in_plane and tracked.method == "search" and tracked.cine.first.spacing_known
    strains = known and tracked.period is not None and anatomy.has_wall
    found, calibrated_on = dict(numbers), {}
    for curve in curves:
        errors = ERRORS.get((anatomy.view, kind(curve)))
        if errors is None:
            continue
        if curve.quantity == "strain" and strains:
            of_curve = found["strain"][curve.column]
            interval = _plus(of_curve["peak"], errors)
            found["strain"] = found["strain"] | {
                curve.column: of_curve | {"peak_interval": interval}
            }
            calibrated_on["strain"] = CALIBRATED_ON["strain"]
        elif curve.region == "cavity" and known and told:
            name = FRACTIONS[curve.quantity]
            low, high = _plus(found[name], errors)
            found[f"{name}_interval"] = [low, min(high, 1.0)]
            calibrated_on[name.replace("_", " ")] = CALIBRATED_ON[anatomy.view]
    given = None
    if calibrated_on:
        about = "; ".join(f"{name} on {hearts}" for name, hearts in calibrated_on.items())
        sentence = f"{100 * COVERAGE:.0f} % intervals, calibrated: {about}"
        given = {"coverage": COVERAGE, "sentence": sentence}
    return found | {"intervals": given}


def _plus(value: float, errors: tuple[float, float]) -> list[float]:
    return [value + error for error in errors]
