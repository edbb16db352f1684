"""Intervals: the quantile, where they stand, what has none."""

import csv

import numpy as np
import pytest

from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.registering.anatomy import anatomy_of_mask
from ldm_morph_jax.registering.heart_result import TrackedHeart
from ldm_morph_jax.registering.intervals import HALF_WIDTHS, conformal_quantile
from ldm_morph_jax.report.tracked import _tiles


def test_the_quantile_covers_an_unseen_score():
    assert conformal_quantile(np.arange(1, 20), 0.9) == 18  # ceil(0.9 * 20)
    assert conformal_quantile(np.arange(1, 10), 0.9) == 9
    assert conformal_quantile(np.arange(1, 9), 0.9) == np.inf  # too few to say anything
    scores = np.random.default_rng(0).gamma(1.0, size=(4000, 20))
    covered = [row[-1] <= conformal_quantile(row[:-1], 0.9) for row in scores]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


@pytest.fixture(scope="module")
def beats():
    looks = {"sax": "sax", "apical": "echo"}
    return {
        view: phantom_cine((7, 1), look=look, image_size=48, frames=5)
        for view, look in looks.items()
    }


def heart(beat, view="sax", *, spacing=3.5, method="search", period=True):
    cine = cine_from_arrays(beat.frames, spacing=spacing, times=beat.times)
    anatomy = anatomy_of_mask(beat.masks[0], view, "phantom", cavity_and_wall=(1, 2))
    period = float(beat.times[-1]) if period else None
    motion = beat.displacement, beat.inverse
    return TrackedHeart(cine, 0, beat.times, *motion, period, None, method, anatomy=anatomy)


def test_intervals_stand_beside_their_numbers(beats, tmp_path):
    found = heart(beats["sax"])
    summary = found.summary
    assert summary["intervals"]["coverage"] == 0.9
    seen = 0
    for column, numbers in summary["strain"].items():
        curve = found.curves[column]
        half = HALF_WIDTHS.get(
            ("sax", f"{curve.direction} {'segment' if curve.of_sector else curve.region}")
        )
        assert ("peak_interval" in numbers) == (half is not None), column
        if half is not None:
            seen += 1
            low, high = numbers["peak_interval"]
            assert (low + high) / 2 == pytest.approx(numbers["peak"])
            assert high - low == pytest.approx(2 * half)
    assert seen
    found.write(tmp_path)
    with (tmp_path / "segments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for numbers in summary["strain"].values():
        region, direction = numbers["region"].replace("_", " "), numbers["direction"]
        row = [one for one in rows if one["segment"] == region]
        if row and "peak_interval" in numbers:
            ends = [float(row[0][f"{direction}_peak_{end}_percent"]) for end in ("low", "high")]
            np.testing.assert_allclose(ends, 100 * np.array(numbers["peak_interval"]), rtol=1e-3)
    tiles = dict(_tiles(summary, found.measures.curves))
    change = tiles["fractional area change"]
    assert (" to " in change) == ("fractional_area_change_interval" in summary)


def test_what_was_not_calibrated_has_no_interval(beats):
    for options in ({"method": "syn"}, {"spacing": None}, {"period": False}):
        summary = heart(beats["sax"], **options).summary
        assert summary["intervals"] is None, options
        assert not any("peak_interval" in one for one in summary["strain"].values())


def test_radial_strain_of_an_apical_view_is_not_a_number(beats):
    found = heart(beats["apical"], "apical")
    assert not any(curve.direction == "radial" for curve in found.measures.curves)
    assert any(note.startswith("radial strain: not measured") for note in found.notes)
    assert {"longitudinal_strain", "endocardial_longitudinal_strain"} < set(found.curves)
    assert ("ejection_fraction_interval" in found.summary) == (
        ("apical", "volume of cavity") in HALF_WIDTHS
    )
