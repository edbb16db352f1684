"""Peaks, timing, uniformity, rates and twist against values by hand."""

import numpy as np
import pytest

from ldm_morph_jax.ops import beat

TIMES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
CURVES = -0.01 * np.array(
    [
        [0, 5, 10, 20, 15, 10, 5, 0],  # peak at end-systole
        [0, 4, 8, 12, 16, 10, 5, 0],  # after it: a quarter of the peak comes late
        [0, 10, 16, 8, 6, 4, 2, 0],  # before it
        [0, -2, -4, -2, -2, -1, 0, 0],  # stretched: never shorter than at the start
    ]
)


def test_peaks():
    found = beat.peaks(CURVES.T, TIMES, 0.3, beat.SHORTENING)
    assert np.allclose(found.value, [-0.20, -0.16, -0.16, 0])
    assert np.allclose(found.time, [0.3, 0.4, 0.2, 0])
    assert np.allclose(found.end_systolic, [-0.20, -0.12, -0.08, 0.02])
    assert np.allclose(found.post_systolic_index, [0, 0.25, 0, np.nan], equal_nan=True)
    one = beat.peaks(-CURVES[1], TIMES, 0.3, beat.THICKENING)
    assert (one.value, one.time, one.post_systolic_index) == pytest.approx((0.16, 0.4, 0.25))


def test_end_systole_between_two_frames():
    found = beat.peaks(CURVES.T, TIMES, 0.25, beat.SHORTENING)
    assert np.allclose(found.value, [-0.20, -0.16, -0.16, 0])
    assert np.allclose(found.end_systolic, [-0.15, -0.10, -0.12, 0.03])
    assert np.allclose(found.post_systolic_index, [0.25, 0.375, 0, np.nan], equal_nan=True)
    last = beat.peaks(CURVES.T, TIMES, 0.7, beat.SHORTENING)
    assert np.allclose(last.end_systolic, CURVES[:, -1])
    assert beat.peaks(CURVES[0, :1], TIMES[:1], 0.0, beat.SHORTENING).end_systolic == 0
    assert beat.peak_rates(CURVES[0], TIMES, 0.25, beat.SHORTENING).systolic == pytest.approx(-0.75)


@pytest.mark.parametrize(
    ("valves", "message"),
    [
        ({"AVR": 350}, "has 'AVR', expected MVC, AVO, AVC, MVO"),
        ({"AVC": -1}, "AVC at -1 ms, expected 0, the reference frame, to 800, the last one"),
        ({"AVC": 350, "MVO": 900}, "MVO at 900 ms, expected 0, the reference frame, to 800"),
        ({"MVO": 350, "AVC": 350}, "AVC at 350 ms and MVO at 350 ms, expected AVC to come first"),
    ],
)
def test_times_of_valves_follow_each_other_within_the_beat(valves, message):
    with pytest.raises(ValueError, match=message):
        beat.check_valves(valves, 800)
    beat.check_valves({"MVO": 800, "MVC": 0, "AVC": 350}, 800)
    beat.check_valves({"MVO": 900})


def test_a_segment_that_is_not_measured_is_nan_and_left_out():
    curves = CURVES.T.copy()
    curves[2, 0] = np.nan
    found = beat.peaks(curves, TIMES, 0.3, beat.SHORTENING)
    assert [np.isnan(part[0]) for part in found] == [True] * 4
    assert np.allclose(found.time[1:], [0.4, 0.2, 0])
    assert beat.mechanical_dispersion(found.time) == pytest.approx(0.2)  # of 0.4, 0.2, 0
    assert beat.earliest_to_latest(found.time) == pytest.approx(0.4)


def test_dispersion_is_the_standard_deviation_of_a_sample():
    times = [0.30, 0.34, 0.38]
    assert beat.mechanical_dispersion(times) == pytest.approx(0.04)
    assert beat.earliest_to_latest(times) == pytest.approx(0.08)
    assert np.isnan(beat.mechanical_dispersion([0.3, np.nan]))
    assert np.isnan(beat.earliest_to_latest([0.3]))


def test_uniformity():
    angle = 2 * np.pi * np.arange(6) / 6
    assert beat.uniformity(np.full((5, 6), -0.2)) == pytest.approx(1)
    assert beat.uniformity(np.cos(angle)) == pytest.approx(0, abs=1e-7)
    # mean m, amplitude a: sqrt(m^2 / (m^2 + a^2 / 2))
    mixed = -0.2 + 0.1 * np.cos(angle + 0.3)
    assert beat.uniformity(mixed) == pytest.approx(np.sqrt(0.04 / 0.045))
    # twice around does not count, and slices with a gap are left out
    assert beat.uniformity(-0.2 + 0.1 * np.cos(2 * angle)) == pytest.approx(1)
    gap = np.stack([mixed, np.where(np.arange(6) == 2, np.nan, 0.0)])
    assert beat.uniformity(gap) == pytest.approx(np.sqrt(0.04 / 0.045))
    assert np.isnan(beat.uniformity(np.zeros((3, 6))))
    with pytest.raises(ValueError, match="K >= 3"):
        beat.uniformity(np.zeros((3, 2)))


def test_rates():
    # shortens by 1 per s, rests, lengthens by 2 per s early and by 0.5 per s late
    times = np.arange(0, 1.01, 0.05)
    points = [0, 0.3, 0.4, 0.5, 0.75, 0.95, 1.0]
    curve = np.interp(times, points, [0, -0.3, -0.3, -0.1, -0.1, 0.0, 0.0])
    found = beat.peak_rates(curve, times, times[7], beat.SHORTENING)
    assert (found.systolic, found.early, found.late) == pytest.approx((-1.0, 2.0, 0.5))
    other = beat.peak_rates(-curve, times, times[7], beat.THICKENING)
    assert (other.systolic, other.early, other.late) == pytest.approx((1.0, -2.0, -0.5))
    short = beat.peak_rates(curve[:9], times[:9], times[7], beat.SHORTENING)
    assert short.systolic == pytest.approx(-1.0)
    assert np.isnan([short.early, short.late]).all()


def test_rotation_twist_and_torsion():
    rng = np.random.default_rng(0)
    points, spacing = rng.normal(20, 5, (40, 2)), np.array([2.0, 1.0])
    moved = []
    for degrees in (0.0, 10.0, -30.0):
        angle = np.radians(degrees)
        x, up = (points[:, 1] - 20) * spacing[1], -(points[:, 0] - 20) * spacing[0]
        turned = np.stack(
            [x * np.cos(angle) - up * np.sin(angle), x * np.sin(angle) + up * np.cos(angle)]
        )
        # shrinks to 0.8 and moves away, too
        moved.append(np.stack([-0.8 * turned[1] / 2 + 27, 0.8 * turned[0] + 15], axis=1))
    found = beat.rotation(points, np.array(moved), spacing)
    assert np.allclose(found, [0, 10, -30])
    twisted = beat.twist(np.array([0.0, -4.0]), np.array([0.0, 9.0]))
    assert np.allclose(twisted, [0, 13])
    assert np.allclose(beat.torsion(twisted, 26.0), [0, 0.5])
    with pytest.raises(ValueError, match="distance"):
        beat.torsion(twisted, 0.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="times: found shape"):
        beat.peaks(CURVES.T, TIMES[:3], 0.2, beat.SHORTENING)
    with pytest.raises(ValueError, match="end_systole: found 0.8, expected 0 to 0.7"):
        beat.peak_rates(CURVES.T, TIMES, 0.8, beat.SHORTENING)
