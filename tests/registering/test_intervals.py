"""Intervals: the quantile, where they stand, what has none."""

import csv
import re

import numpy as np
import pytest
from interval_accuracy import conformal_ends

from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.registering.anatomy import anatomy_of_mask
from ldm_morph_jax.registering.heart_result import TrackedHeart
from ldm_morph_jax.registering.intervals import ERRORS, with_intervals
from ldm_morph_jax.report.tracked import _tiles


def test_the_ends_cover_an_unseen_error():
    assert conformal_ends(np.arange(-9, 10), 0.9) == (-9, 9)  # ceil(0.9 * 20) = 18 of 19
    assert conformal_ends(np.arange(-19, 20), 0.9) == (-18, 18)  # 36 of 39
    assert conformal_ends(np.arange(8), 0.9) == (-np.inf, np.inf)  # too few to say anything
    errors = np.random.default_rng(0).gamma(1.0, size=(4000, 80))
    ends = [conformal_ends(row[:-1], 0.9) for row in errors]
    covered = [low <= row[-1] <= high for row, (low, high) in zip(errors, ends, strict=True)]
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
        errors = ERRORS.get(
            ("sax", f"{curve.direction} {'segment' if curve.of_sector else curve.region}")
        )
        assert ("peak_interval" in numbers) == (errors is not None), column
        if errors is not None:
            seen += 1
            ends = np.array(numbers["peak_interval"])
            np.testing.assert_allclose(ends - numbers["peak"], errors)
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
    change, ends = summary["fractional_area_change"], summary["fractional_area_change_interval"]
    np.testing.assert_allclose(np.array(ends) - change, ERRORS["sax", "area of cavity"])
    titles = [title for title, _ in _tiles(summary, found.measures.curves)]
    assert any(re.fullmatch(r"fractional area change \(\S+ to \S+\)", title) for title in titles)
    assert "strain on beats of the phantom" in summary["intervals"]["sentence"]
    assert "area change on patients of ACDC" in summary["intervals"]["sentence"]


@pytest.mark.parametrize("options", ({"method": "syn"}, {"spacing": None}))
def test_what_was_not_calibrated_has_no_interval(beats, options):
    summary = heart(beats["sax"], **options).summary
    assert summary["intervals"] is None
    assert "fractional_area_change_interval" not in summary
    assert not any("peak_interval" in one for one in summary["strain"].values())


def test_strain_without_a_period_and_a_found_cavity_have_none(beats):
    summary = heart(beats["sax"], period=False).summary
    assert not any("peak_interval" in one for one in summary["strain"].values())
    assert "strain" not in summary["intervals"]["sentence"]
    measured = heart(beats["sax"])
    numbers = measured.summary | {"strain": measured.summary["strain"]}
    numbers.pop("fractional_area_change_interval")
    found = with_intervals(
        numbers, measured, measured.anatomy, measured.measures.curves, told=False
    )
    assert "fractional_area_change_interval" not in found
    assert "area" not in found["intervals"]["sentence"]


def test_radial_strain_of_an_apical_view_is_not_a_number(beats):
    found = heart(beats["apical"], "apical")
    assert not any(curve.direction == "radial" for curve in found.measures.curves)
    assert any(note.startswith("radial strain: not measured") for note in found.notes)
    assert {"longitudinal_strain", "endocardial_longitudinal_strain"} < set(found.curves)
    low, high = found.summary["ejection_fraction_interval"]
    assert low < found.summary["ejection_fraction"] < high <= 1
