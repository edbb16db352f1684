"""Segments of a stack: levels, means over slices, what they say together."""

import numpy as np
import pytest

from ldm_morph_jax.ops.segments import levels_of
from ldm_morph_jax.registering import segments
from ldm_morph_jax.registering.segments import Segments, merged, twist_of

TIMES = np.arange(5) / 10
CURVE = -np.array([0.0, 0.1, 0.2, 0.1, 0.0])


def record(sizes, **curves):
    """What a slice's summary.json has of it; names of curves are columns."""
    strain = {}
    for column in curves:
        direction, _, region = column.partition("_strain")
        strain[column] = {"direction": direction, "region": region.strip("_") or "wall"}
    return {
        "segment_pixels": sizes,
        "strain": strain,
        "curves": {name: list(values) for name, values in curves.items()},
    }


def test_levels_from_a_mask_either_way_up():
    labels = np.zeros((9, 20, 20), int)
    for k in range(6):  # base at slice 1, apex at slice 6, wall alone at slice 7
        size = 12 - 2 * k
        labels[k + 1, :14, :14] = 2
        labels[k + 1, :size, :size] = 1
    labels[7, :4, :4] = 2
    expected = [0, 1, 1, 2, 2, 3, 3, 4, 0]
    assert levels_of(labels, 1, 2).tolist() == expected
    assert levels_of(labels[::-1], 1, 2).tolist() == expected[::-1]
    assert not levels_of(np.zeros((3, 4, 4), int), 1, 2).any()


def test_a_segment_is_the_mean_over_its_pixels():
    name = "circumferential_strain_basal_anterior"
    slices = [
        record({"wall": 100, "basal_anterior": 20}, circumferential_strain=CURVE, **{name: CURVE}),
        {"curves": {}, "segment_pixels": {}, "strain": {}},  # a slice without a cavity
        record(
            {"wall": 50, "basal_anterior": 60},
            circumferential_strain=2 * CURVE,
            **{name: 2 * CURVE},
        ),
    ]
    found = merged(slices, TIMES, 0.2)
    assert found.pixels == {"wall": 150, "basal_anterior": 80}
    expected = (20 * CURVE + 120 * CURVE) / 80
    np.testing.assert_allclose(found.curves["circumferential", "basal_anterior"], expected)
    wall, row = found.rows()
    assert (wall["segment"], wall["number"]) == ("wall", None)
    assert (row["segment"], row["number"], row["trusted"]) == ("basal anterior", 1, True)
    assert row["circumferential_peak_percent"] == pytest.approx(-35)
    assert row["circumferential_time_to_peak"] == pytest.approx(0.2)
    assert row["circumferential_post_systolic_index_percent"] == 0
    assert list(found.table) == ["circumferential_strain", name]


def test_a_slice_without_a_pixel_of_a_segment_tells_nothing_of_it():
    name = "circumferential_strain_basal_anterior"
    known = record({"basal_anterior": 20}, **{name: CURVE})
    open_wall = record({"basal_anterior": 0}, **{name: [None] * len(TIMES)})
    both = merged([open_wall, known], TIMES, 0.2)
    np.testing.assert_allclose(both.curves["circumferential", "basal_anterior"], CURVE)
    alone = merged([open_wall], TIMES, 0.2).curves["circumferential", "basal_anterior"]
    assert np.isnan(alone).all()


def ring(level, peaks_at, pixels=30):
    """Six segments whose strain peaks at those times."""
    names = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral")
    regions = [f"{level}_{name}" for name in (*names, "anterolateral")]
    curves = {
        ("circumferential", region): -0.2 * np.exp(-(((TIMES - at) / 0.1) ** 2))
        for region, at in zip(regions, peaks_at, strict=True)
    }
    return curves, dict.fromkeys(regions, pixels)


def test_what_segments_say_together():
    curves, pixels = ring("basal", [0.2, 0.2, 0.2, 0.2, 0.3, 0.3])
    timing = Segments(curves, pixels, TIMES, 0.2).timing()["circumferential"]
    assert timing["mechanical_dispersion"] == pytest.approx(np.std([2] * 4 + [3] * 2, ddof=1) / 10)
    assert timing["earliest_to_latest"] == pytest.approx(0.1)
    assert 0.8 < timing["uniformity"] < 1
    alike, pixels = ring("mid", [0.2] * 6)
    assert Segments(alike, pixels, TIMES, 0.2).timing()["circumferential"] == {
        "mechanical_dispersion": pytest.approx(0, abs=1e-12),
        "earliest_to_latest": 0.0,
        "uniformity": pytest.approx(1),
    }


def test_a_segment_of_few_pixels_is_left_out():
    curves, pixels = ring("basal", [0.2, 0.2, 0.2, 0.2, 0.2, 0.4])
    pixels["basal_anterolateral"] = segments.MIN_PIXELS - 1
    found = Segments(curves, pixels, TIMES, 0.2)
    assert not found.trusted("basal_anterolateral")
    assert [row["trusted"] for row in found.rows()[1:]] == [True] * 5 + [False]
    timing = found.timing()["circumferential"]
    assert timing["earliest_to_latest"] == 0.0
    assert np.isnan(timing["uniformity"])  # it needs all six


def test_twist_is_between_the_outermost_slices():
    turned = np.array([0.0, 1.0, 2.0])
    slices = [{"curves": {"rotation_deg": list(a * turned)}} for a in (-2, -1, 0, 3, 5)]
    slices.append({"curves": {}})
    found = twist_of(slices, np.array([1, 1, 2, 3, 3, 4]), 8.0 * np.arange(6))
    assert found["slices"] == [0, 4]
    np.testing.assert_allclose(found["twist_deg"], 7 * turned)
    np.testing.assert_allclose(found["torsion_deg_per_mm"], 7 * turned / 32)
    assert twist_of(slices, np.array([1, 1, 2, 2, 2, 4]), 8.0 * np.arange(6)) is None
