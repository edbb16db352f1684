"""Anatomy and measures of a heart whose motion is known exactly; memory over many frames."""

import functools
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.errors import FileError, ImageError
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.ops import strain
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.registering.anatomy import (
    Anatomy,
    anatomy_of,
    anatomy_of_contours,
    anatomy_of_mask,
    structures,
)
from ldm_morph_jax.registering.heart import measure, strain_maps, summary
from ldm_morph_jax.registering.result import Series, Tracked

T, SPACING = 7, 1.6
LABELS = {"cavity": 1, "wall": 2}


@functools.cache
def known(look):
    """(beat, tracked with its true motion, anatomy)."""
    beat = phantom_cine((5, 2), look=look, image_size=100, frames=T)
    cine = cine_from_arrays(beat.frames, spacing=SPACING, times=beat.times)
    u = beat.displacement
    back = np.asarray(invert(jnp.asarray(u)).displacement)
    tracked = Tracked(cine, 0, beat.times, u, back, beat.times[-1], u[-1] + 0.5, "true")
    view = {"sax": "sax", "echo": "apical"}[look]
    return beat, tracked, anatomy_of_mask(beat.masks[0], view, "mask")


def test_a_series_computes_every_block_once():
    whole, computed = np.random.default_rng(0).normal(size=(7, 2, 3)), []

    def compute(rows):
        computed.append(rows.start)
        return whole[rows]

    series = Series(compute, whole.shape, 3)
    for t, frame in enumerate(whole):
        np.testing.assert_array_equal(series[t], frame)
    assert computed == [0, 3, 6] and len(series) == 7 and series.ndim == 3
    for index in (-1, np.s_[2:5], np.s_[5:], np.s_[7:], np.s_[:, 1], whole[:, 0, 0] > 0):
        np.testing.assert_array_equal(series[index], whole[index])
    np.testing.assert_array_equal(series - whole, 0 * whole)
    with pytest.raises(ValueError, match="read-only"):
        series[0][...] = 1


@pytest.mark.parametrize("look", ["sax", "echo"])
def test_areas_and_end_systole(look):
    beat, tracked, anatomy = known(look)
    measures = measure(tracked, anatomy)
    areas = (beat.masks == 1).sum(axis=(1, 2)) * SPACING**2
    np.testing.assert_allclose(measures.table["cavity_area_mm2"], areas, rtol=0.025)
    assert measures.end_systole == beat.end_systole
    numbers = summary(tracked, anatomy, measures)
    shift = np.sqrt(0.5)
    assert numbers["drift_px"]["registered_alone"] == pytest.approx(shift, abs=1e-3)
    assert numbers["drift_px"]["tracked"] < 1e-3
    contrast = np.array(numbers["mask_contrast"])  # the mask fits its frame, and the beat's end
    assert contrast.max() < 1.1 * contrast[0] and contrast[beat.end_systole] < 0.7 * contrast[0]
    other = replace(anatomy, **{k: beat.masks[beat.end_systole] == n for k, n in LABELS.items()})
    contrast = np.array(summary(tracked, other, measures)["mask_contrast"])
    assert contrast.argmax() == beat.end_systole and contrast.max() > 1.2 * contrast[0]


@pytest.mark.parametrize("look", ["sax", "echo"])
def test_strain_of_the_wall_is_that_of_the_exact_gradient(look):
    beat, tracked, anatomy = known(look)
    curves = measure(tracked, anatomy).table
    tensor = strain.green_lagrange(jnp.asarray(beat.deformation))
    points = jnp.stack(jnp.indices(beat.masks[0].shape), axis=-1).astype(jnp.float32)
    if look == "sax":
        centre = np.argwhere(beat.masks[0] == 1).mean(axis=0)
        normal, tangent = strain.polar_directions(points, centre)
    else:
        endo = jnp.asarray(anatomy.contours["endo"])
        normal, tangent = strain.contour_directions(points, endo)
    wall = (beat.masks[0] == 2).astype(np.int32)
    kind = {"sax": "circumferential", "echo": "longitudinal"}[look]
    directions = {"radial": normal, kind: tangent}
    if look == "echo":  # not measured there
        assert "radial_strain" not in curves and directions.pop("radial") is normal
    for name, direction in directions.items():
        true = strain.regional_mean(strain.normal_strain(tensor, direction), wall, 1)[:, 0]
        np.testing.assert_allclose(curves[f"{name}_strain"], true, rtol=0.06, atol=0.01)
    sectors = [c for n, c in curves.items() if n.startswith(f"{kind}_strain_") and "rate" not in n]
    assert len(sectors) == 6
    peaks = [s[np.abs(s).argmax()] for s in sectors]
    assert max(peaks) < 0 and min(peaks) < curves[f"{kind}_strain"].min() < max(peaks)
    rate = curves[f"{kind}_strain_rate"]
    np.testing.assert_allclose(
        rate, np.gradient(curves[f"{kind}_strain"], beat.times), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("look", "axis"), [("sax", 0), ("sax", 1), ("echo", 1)])
def test_names_of_sectors_do_not_depend_on_how_the_image_is_stored(look, axis):
    beat, tracked, anatomy = known(look)
    view, kind = {"sax": ("sax", "circumferential"), "echo": ("apical", "longitudinal")}[look]
    peaks = {}
    for stored in ("as displayed", "reversed"):
        frames, u, mask = beat.frames[:4], beat.displacement[:4], beat.masks[0]
        direction = np.eye(2)
        if stored == "reversed":
            frames, u, mask = (np.flip(a, a.ndim - back) for a, back in
                               ((frames, 2 - axis), (u, 3 - axis), (mask, 2 - axis)))  # fmt: skip
            u = u * np.where(np.arange(2) == axis, -1, 1)
            direction[1 - axis, 1 - axis] = -1  # x is the last axis of an array
        cine = cine_from_arrays(frames, spacing=SPACING, times=beat.times[:4])
        geometry = replace(cine.first.geometry, direction=direction)
        first = replace(cine.first, geometry=geometry, orientation_known=True)
        one = replace(tracked, cine=replace(cine, first=first), times=beat.times[:4],
                      displacement=u, inverse=-u, period=None)  # fmt: skip
        measures = measure(one, anatomy_of_mask(mask, view, "mask"))
        curves = {c.region: c.values for c in measures.curves if c.of_sector and not c.unit}
        peaks[stored] = {name: values[3] for name, values in curves.items()}
        if look == "sax":
            peaks[stored]["rotation"] = measures.table["rotation_deg"]
        side = "patient's directions" if look == "sax" else "towards R in the patient"
        assert any(side in note for note in measures.notes)
    if look == "sax":  # turns the same way, seen from the apex; it would change its sign
        turned = [peaks[stored].pop("rotation") for stored in ("as displayed", "reversed")]
        assert np.abs(turned[0]).max() > 0.06
        np.testing.assert_allclose(turned[1], turned[0], atol=0.02)
    assert len(peaks["reversed"]) == 6
    assert peaks["reversed"] == pytest.approx(peaks["as displayed"], abs=4e-3)
    opposite = dict(zip(reversed(peaks["reversed"]), peaks["reversed"].values(), strict=True))
    assert opposite != pytest.approx(peaks["as displayed"], abs=4e-3)


def test_a_cavity_that_exceeds_its_reference_is_doubted():
    beat, tracked, _ = known("sax")
    mask = beat.masks[0]
    assert not any("doubtful" in note for note in measure(tracked, known("sax")[2]).notes)
    late = replace(tracked, reference=1, displacement=-np.asarray(tracked.displacement))
    notes = measure(late, anatomy_of_mask(mask, "sax", "mask")).notes
    assert any("larger than in the reference, frame 1" in note for note in notes)


@pytest.mark.parametrize(
    "case", ["ring and blood pool exchanged", "right ventricle", "stray pixel"]
)
def test_a_wall_that_surrounds_no_cavity_is_refused(case):
    row, column = np.indices((64, 64)) - 32
    r = np.hypot(row, column)
    wall, blood, right = (r >= 10) & (r < 16), r < 10, np.hypot(row, column + 21) < 8
    labels = {
        "ring and blood pool exchanged": np.select([blood, wall], [2, 1]),
        "right ventricle": np.select([wall, right], [2, 1]),
        "stray pixel": np.select([r == 0, blood & (column > 2)], [2, 3]),
    }[case]
    with pytest.raises(ImageError, match=r"surrounds no other label .* `labels`"):
        structures(labels, "mask.nii.gz")
    assert structures(labels, "mask.nii.gz", (1, 2) if case != "stray pixel" else (3, 2))
    heart = np.select([blood, wall, right], [3, 2, 1])
    assert structures(heart, "mask.nii.gz") == (3, 2)
    stack = np.stack([heart, 0 * heart, np.where(wall, 2, 0)])  # slices beyond the ventricle
    assert structures(stack, "mask.nii.gz") == (3, 2)


def test_sectors_say_what_they_assume():
    _, tracked, anatomy = known("sax")
    assert any("does not tell its orientation" in note for note in measure(tracked, anatomy).notes)
    rows, columns = np.array([-1, 1, 1]) / np.sqrt(3), np.array([1, 1, 0]) / np.sqrt(2)
    four_chambers = np.stack([columns, rows, np.cross(columns, rows)], axis=1)
    geometry = Geometry((1, 100, 100), (1.0, 1.6, 1.6), np.zeros(3), four_chambers)
    first = replace(tracked.cine.first, space=geometry, orientation_known=True)
    along_the_axis = replace(tracked, cine=replace(tracked.cine, first=first))
    assert any(
        "is it a short-axis view?" in note for note in measure(along_the_axis, anatomy).notes
    )


def test_maps_are_on_the_wall_of_every_frame():
    beat, tracked, anatomy = known("sax")
    maps = np.stack(list(strain_maps(tracked, anatomy)))
    assert maps.shape == beat.masks.shape
    for t in range(T):
        shown, wall = np.isfinite(maps[t]), beat.masks[t] == 2
        assert 2 * (shown & wall).sum() / (shown.sum() + wall.sum()) > 0.95
    curve = measure(tracked, anatomy).table["circumferential_strain"]
    assert np.nanmean(maps[beat.end_systole]) == pytest.approx(curve.min(), abs=0.03)


def test_an_apical_contour_runs_from_base_over_apex_to_base():
    beat, tracked, anatomy = known("echo")
    endo = anatomy.contours["endo"]
    atrium = np.argwhere(beat.masks[0] == 3).mean(axis=0)
    base = (endo[0] + endo[-1]) / 2
    far = np.linalg.norm(endo - base, axis=1)
    assert np.abs(far.argmax() - 60) < 20  # the apex is in the middle
    assert np.linalg.norm(base - atrium) < np.linalg.norm(endo.mean(axis=0) - atrium)
    curves = measure(tracked, anatomy).table
    length = curves["long_axis_mm"]
    assert length[0] == pytest.approx(SPACING * far.max(), rel=0.05)
    volume = curves["volume_ml"]
    # a half ellipsoid of that length and area: V = 8 A^2 / (3 pi L)
    area = curves["cavity_area_mm2"]
    np.testing.assert_allclose(volume, 8e-3 * area**2 / (3 * np.pi * length), rtol=0.15)


def test_the_view_is_seen_in_the_mask_or_doubted():
    for look, view in (("sax", "sax"), ("echo", "apical")):
        masks = [
            getattr(phantom_pair(1, look=look), f"{name}_mask") for name in ("moving", "fixed")
        ]
        for mask in masks:
            cine = cine_from_arrays(np.stack([mask, mask]).astype("f4"))
            seen = anatomy_of(cine, mask=mask)
            assert (seen.view, seen.view_by) == (view, "mask")
            assert [note for note in seen.notes if "overrules" in note] == list(seen.notes)
            assert bool(seen.notes) == (view == "apical")  # short-axis is what is expected
            told = anatomy_of(cine, mask=mask, view=view)
            assert (told.view, told.view_by, told.notes) == (view, "user", ())
        if look == "echo":
            doubted = anatomy_of(cine, mask=mask, view="sax")
            assert doubted.view == "sax" and "check `view`" in doubted.notes[0]
        else:
            with pytest.raises(ImageError, match="is it an apical view"):
                anatomy_of(cine, mask=mask, view="apical")
    # the cavity alone does not show it
    alone = anatomy_of(cine, mask=(masks[0] == 1).astype(np.uint8))
    assert (alone.view, alone.view_by) == ("sax", "default")
    assert "the view was not checked" in alone.notes[0]
    assert not anatomy_of(cine).notes  # nothing is measured


def test_structures_are_told_apart():
    labels = np.zeros((20, 20), np.uint8)
    labels[3:15, 3:15] = 2
    labels[5:12, 5:12] = 3  # ACDC: 1 is the right ventricle
    labels[3:15, 1:3] = 1
    assert structures(labels, "mask") == (3, 2)
    swapped = np.array([0, 3, 2, 1])[labels]  # M&Ms and CAMUS: 1 is the cavity
    assert structures(swapped, "mask") == (1, 2)
    assert structures((labels == 3) * 5, "mask") == (5, 2)
    anatomy = anatomy_of_mask(labels, "sax", "mask")
    assert anatomy.septum == pytest.approx((8.5, 1.5))
    for bad, message in (
        (0 * labels, "mask is empty"),
        (np.where(labels == 2, 2, 0), "cannot tell the cavity"),
        (np.where(labels == 2, 4, labels), "cannot tell the cavity"),
    ):
        with pytest.raises(ImageError, match=message):
            structures(bad, "mask")
    ring = np.where(labels == 2, 1, 0)
    for rings in (ring, np.stack([0 * ring, ring, ring])):
        with pytest.raises(ImageError, match="only label 1 is a ring, as the wall is, .*`labels`"):
            structures(rings, "mask")
    assert structures(rings, "mask", (1, 2)) == (1, 2)
    muscles = (labels == 3) & ~((np.indices(labels.shape) == 8).all(axis=0))  # 1 of 49 pixels
    assert structures(muscles * 1, "mask") == (1, 2)
    with pytest.raises(
        ImageError, match=r"`labels` is \(2, 2\), expected that of the cavity and another"
    ):
        structures(labels, "mask", (2, 2))
    with pytest.raises(ImageError, match="does not tell where its base is"):
        anatomy_of_mask((labels == 3).astype(np.uint8), "apical", "mask")


def test_contours_enclose_cavity_and_wall(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 40)
    lines = ["contour,row,column"]
    for name, radius in (("endo", 8.3), ("epi", 12.3)):
        lines += [f"{name},{20 + radius * np.sin(a)},{22 + radius * np.cos(a)}" for a in angle]
    path = tmp_path / "contours.csv"
    path.write_text("\n".join(lines))
    anatomy = anatomy_of_contours(path, (40, 44), "sax")
    assert anatomy.cavity.sum() == pytest.approx(np.pi * 8.3**2, rel=0.03)
    assert anatomy.wall.sum() == pytest.approx(np.pi * (12.3**2 - 8.3**2), rel=0.03)
    np.testing.assert_allclose(anatomy.centre, (20, 22), atol=0.1)
    row, column = anatomy.contours["endo"].T
    assert (row * np.roll(column, -1) - column * np.roll(row, -1)).sum() > 0


def test_contours_that_enclose_no_ventricle_are_refused():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    endo, epi = 20 + 8 * circle, 20 + 12 * circle
    assert anatomy_of_contours({"endo": endo, "epi": epi}, (40, 40), "sax").has_wall
    assert anatomy_of_contours({"endo": endo[::10]}, (40, 40), "sax").has_cavity  # a square
    eight = np.array([[5, 5], [35, 35], [5, 35], [35, 5]])
    for contours, message in (
        ({"endo": epi, "epi": endo}, "% of endo lies outside epi, expected endo within epi"),
        ({"endo": endo, "epi": epi + (0, 7)}, "% of endo lies outside epi"),
        ({"endo": eight}, "contours: endo crosses itself, expected its points in order"),
        ({"endo": endo[np.random.default_rng(0).permutation(40)]}, "endo crosses itself"),
        ({"endo": np.repeat(np.arange(9.0, 14)[:, None], 2, axis=1)}, "endo encloses no pixel"),
        ({"endo": endo[:1]}, "endo has 1 points, expected at least 3"),
    ):
        with pytest.raises(FileError, match=message):
            anatomy_of_contours(contours, (40, 40), "sax")


def test_without_anatomy_nothing_is_measured_and_said_so():
    _, tracked, _ = known("sax")
    measures = measure(tracked, Anatomy("sax"))
    assert measures.curves == () and measures.end_systole is None
    assert "neither a mask nor a contour" in measures.notes[0]


@pytest.mark.integration
def test_memory_grows_only_by_the_frames():
    """Ten times as many frames: motion is kept as a few curves, the device has one chunk."""
    grown = {}
    for frames in (30, 300):
        program = f"""
            import resource, numpy as np
            from ldm_morph_jax.files.movies import cine_from_arrays
            from ldm_morph_jax.registering import tracking
            from ldm_morph_jax.registering.search import Refinement
            tracking.SEARCH = tracking.IMPROVE = Refinement(levels=(1,), steps=(1,))
            rng = np.random.default_rng(0)
            frames = rng.standard_normal(({frames}, 96, 96), np.float32)
            found = tracking.track_cine(cine_from_arrays(frames))
            for t in range(len(frames)):
                found.displacement[t], found.inverse[t]
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        grown[frames] = int(done.stdout) * 1024
    # frames as they were given, checked and scaled, and passing copies; a displacement for each
    # frame, there and back, would be four times as large as the frames
    assert grown[300] - grown[30] < 7 * 270 * 96 * 96 * 4


@pytest.mark.integration
def test_devices_share_the_frames(tmp_path):
    """On two devices as on one."""
    beat, _, _ = known("sax")
    np.save(tmp_path / "frames.npy", beat.frames[:5, 20:68, 20:68])
    program = f"""
        import sys, jax, numpy as np
        from ldm_morph_jax.files import movies
        from ldm_morph_jax.registering import tracking
        from ldm_morph_jax.registering.search import Refinement
        assert len(jax.devices()) == int(sys.argv[1])
        tracking.SEARCH = tracking.IMPROVE = Refinement(levels=(1,), steps=(4,))
        cine = movies.cine_from_arrays(np.load({str(tmp_path / "frames.npy")!r}))
        np.save(sys.argv[2], tracking.track_cine(cine).displacement)
    """
    found = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.npy"
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(devices), str(out)],
            env=os.environ | {"XLA_FLAGS": flags},
            check=True,
        )
        found.append(np.load(out))
    assert np.abs(found[0]).max() > 0.3
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
