"""Volumes registered in three dimensions: known motion, laws, files that other tools apply."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from analytic_method import AnalyticMethod
from scipy.ndimage import map_coordinates
from threshold_anatomy import Threshold

from ldm_morph_jax import register
from ldm_morph_jax.data.ventricle import ventricle
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, plain_geometry
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import read_transform
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.registering import pairs
from ldm_morph_jax.registering.grid import THICK_MM, place_volume_grid, prepare_volume

pytestmark = pytest.mark.integration

SPACING = (10.0, 3.5, 3.5)
STEPS = 40  # half of the usual: enough for one heart


@pytest.fixture(scope="module")
def registrar():
    return AnalyticMethod(amplitude=0.0)


@pytest.fixture(scope="module")
def heart():
    return ventricle(2, shape=(9, 48, 48), spacing=SPACING)


@pytest.fixture(scope="module")
def result(registrar, heart):
    return registrar(heart.moving, heart.fixed, spacing=SPACING, refine=STEPS)


def tilted(array, degrees=25.0):
    """A volume whose slices are tilted, as short-axis stacks are, in millimetres of a patient."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    geometry = Geometry(array.shape, SPACING, np.array([-80.0, 30.0, 12.0]), direction)
    return Image(array, geometry)


def error(u, heart):
    """Mean end-point error and motion in the wall, in millimetres."""
    wall = heart.fixed_mask == 2
    difference = np.linalg.norm((u - heart.displacement)[wall] * SPACING, axis=-1).mean()
    motion = np.linalg.norm(heart.displacement[wall] * SPACING, axis=-1).mean()
    return difference, motion


def test_the_motion_of_the_phantom_is_found(result, heart):
    assert result.displacement.shape == (*heart.fixed.shape, 3)
    difference, motion = error(result.displacement, heart)
    assert difference < 0.6 * motion
    assert result.jacobian_determinant.min() > 0
    warped = result.warp(heart.moving_mask, "nearest")
    before = dice(heart.moving_mask, heart.fixed_mask, (1, 2, 3))
    after = dice(warped, heart.fixed_mask, (1, 2, 3))
    assert all(after[k] > before[k] for k in after)
    assert np.mean(list(after.values())) > 0.85
    np.testing.assert_allclose(result.warp(heart.moving), result.warped, atol=1e-5)
    assert result.inverse_residual.max() < 0.05 * 3.5
    back = result.warp(heart.fixed_mask, "nearest", inverse=True)
    there = dice(back, heart.moving_mask, (1, 2, 3))
    assert np.mean(list(there.values())) > 0.85


def test_same_volume_twice_does_not_move_and_exchanged_ones_are_inverse(registrar, heart, result):
    still = registrar(heart.fixed, heart.fixed, spacing=SPACING, refine=STEPS)
    assert np.abs(still.displacement).max() < 1e-4
    exchanged = registrar(heart.fixed, heart.moving, spacing=SPACING, refine=STEPS)
    at = np.moveaxis(np.indices(heart.fixed.shape), 0, -1) + exchanged.displacement
    there = np.stack(
        [
            map_coordinates(
                result.displacement[..., k], np.moveaxis(at, -1, 0), order=1, mode="nearest"
            )
            for k in range(3)
        ],
        axis=-1,
    )
    last = np.array(heart.fixed.shape) - 1
    known = ((at >= 0) & (at <= last)).all(axis=-1)[1:-1, 4:-4, 4:-4]  # beyond, it is not
    assert known.mean() > 0.9
    away = np.abs(exchanged.displacement + there)[1:-1, 4:-4, 4:-4]
    assert away[known].max() < 0.1 and away.max() < 0.25


def test_anatomy_guides_a_volume(registrar, heart):
    images = [Image(a, plain_geometry(a.shape, SPACING)) for a in (heart.moving, heart.fixed)]
    anatomy = Threshold(least_confidence=0.0)
    plain, guided, exchanged = (
        registrar.register_images([pair], volume=True, refine=6, anatomy=network)[0]
        for pair, network in ((images, "none"), (images, anatomy), (images[::-1], anatomy))
    )
    assert plain.motions[0].anatomy is None
    network, used, confidence = guided.motions[0].anatomy
    assert network == "threshold" and used and min(confidence) > 0
    assert exchanged.motions[0].anatomy.confidence == pytest.approx(confidence[::-1], abs=1e-5)
    assert guided.in_space
    difference = guided.transform.displacement - plain.transform.displacement
    assert np.abs(difference).max() > 0.05


def test_volumes_of_thick_slices_are_guided_unless_told_otherwise(registrar, heart, monkeypatch):
    monkeypatch.setattr(pairs, "anatomy_network", {"anatomy": Threshold()}.__getitem__)

    def guidance(thickness, **options):
        geometry = plain_geometry(heart.fixed.shape, (thickness, *SPACING[1:]))
        images = Image(heart.moving, geometry), Image(heart.fixed, geometry)
        options = {"volume": True, "refine": 1} | options
        [found] = registrar.register_images([images], **options)
        return found.motions[0].anatomy

    assert guidance(THICK_MM).network == "threshold"
    assert guidance(THICK_MM - 0.1) is None
    assert guidance(THICK_MM, anatomy="none") is None
    assert guidance(THICK_MM, volume=False) is None


def test_files_that_simpleitk_and_ants_apply(registrar, heart, tmp_path, monkeypatch, capsys):
    import SimpleITK

    monkeypatch.setattr(register, "load_model", lambda name, calls="often": registrar)
    monkeypatch.setattr(register, "drawing_apart", lambda wanted: contextlib.nullcontext())
    for name in ("moving", "fixed"):
        for suffix in ("", "_mask"):
            image = tilted(getattr(heart, name + suffix))
            write_image(tmp_path / f"{name}{suffix}.nii.gz", image.array, image.geometry)
    files = [f"--{n.replace('_', '-')}={tmp_path / n}.nii.gz" for n in ("moving", "fixed")]
    files += [f"--{n}-mask={tmp_path / n}_mask.nii.gz" for n in ("moving", "fixed")]
    out = tmp_path / "out"
    register.main([*files, "--out", str(out), "--refine", str(STEPS), "--slice", "volume"])
    told = capsys.readouterr().out
    assert "DSC label 3" in told and "slice by slice" not in told

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["in_three_dimensions"] and metrics["model_grid"] is None
    assert metrics["fixed"]["shape"] == list(heart.fixed.shape)
    for label in "123":
        score = metrics["dice"][label]
        assert score["after"] > score["before"]
        assert (
            score["mean_surface_distance_mm"]["after"] < score["mean_surface_distance_mm"]["before"]
        )
        assert score["hd95_mm"]["after"] <= score["hd95_mm"]["before"]
    assert metrics["jacobian"]["nonpositive_pixels"] == 0
    assert metrics["rms_difference"]["after"] < metrics["rms_difference"]["before"]
    assert {"overview.png", "report.html", "warped_mask.nii.gz"} <= {p.name for p in out.iterdir()}
    assert "in three dimensions" in (out / "report.html").read_text()

    transform = read_transform(out / "displacement.nii.gz")
    assert transform.displacement_mm.shape == (*heart.fixed.shape, 3)
    ours = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "warped.nii.gz")))
    inside = (transform.moving_indices(tilted(heart.moving).geometry) >= 0).all(-1)
    last = np.array(heart.fixed.shape) - 1
    inside &= (transform.moving_indices(tilted(heart.moving).geometry) <= last).all(-1)
    assert inside.mean() > 0.8
    moving, fixed = (
        SimpleITK.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("moving", "fixed")
    )
    field = SimpleITK.ReadImage(str(out / "displacement.nii.gz"), SimpleITK.sitkVectorFloat64)
    field = SimpleITK.DisplacementFieldTransform(field)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, field))
    np.testing.assert_allclose(theirs[inside], ours[inside], atol=2e-4)

    ants = pytest.importorskip("ants")
    images = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    theirs = ants.apply_transforms(*images, [str(out / "displacement.nii.gz")]).numpy()
    np.testing.assert_allclose(theirs.transpose(2, 1, 0)[inside], ours[inside], atol=2e-4)


def test_few_slices_and_networks_alone_are_registered_slice_by_slice(heart):
    method = AnalyticMethod()
    pair = [tilted(getattr(heart, n)[3:6]) for n in ("moving", "fixed")]
    [thin] = method.register_images([pair], refine=0, volume=True)
    assert not thin.in_space and "3 slices, fewer than 4" in thin.notes[0]
    assert len(thin.motions) == 3
    assert np.abs(thin.transform.displacement[..., 0]).max() < 1e-6
    pair = [tilted(getattr(heart, n)) for n in ("moving", "fixed")]
    [flat] = method.register_images([pair], refine=0, volume=True)
    assert not flat.in_space and "no refinement was asked for" in flat.notes[0]
    [asked] = method.register_images([pair], refine=0)
    assert not asked.in_space and not asked.notes


class Shift(AnalyticMethod):
    """A network that predicts a shift of four pixels along the rows."""

    def velocity(self, moving, fixed):
        return np.broadcast_to(np.float32([-4, 0]), (len(moving), *moving.shape[1:3], 2))


@pytest.mark.parametrize(("distance", "started"), [(10.0, True), (5.0, True), (4.9, False)])
def test_thick_slices_start_from_what_the_network_predicts(heart, distance, started, monkeypatch):
    """A body that moves by eight pixels, the last slice blank: it does not count."""
    images = []
    for first in (8, 0):
        array = np.pad(heart.fixed[2:6], [(0, 1), (0, 0), (0, 0)])[:, first : 40 + first]
        images.append(Image(array, plain_geometry(array.shape, (distance, 3.5, 3.5))))
    method = Shift(spacing_mm=7.0)
    [part] = prepare_volume(method, *images)
    assert len(part.slices) == (5 if started else 0)
    assert [plane.blank for plane in part.slices] == [False] * 4 * started + [True] * started
    assert part.whole.valid[:4].all() and not part.whole.valid[4].any()
    monkeypatch.setattr(pairs, "_RELAXATION", 1.0)  # the start is looked at, not the step
    result = method(*images, refine=1)
    [registered] = result.registrations
    assert registered.in_space
    moved = result.displacement[:4, 8:-8, 12:-12]
    assert np.abs(moved[..., 0]).max() < 0.1
    assert (moved[..., 1].mean() < -7) == started
    assert (
        sum("shows nothing" in note and "slice 4 of" in note for note in result.metrics["notes"])
        == 1
    )


def test_volumes_may_lie_in_any_direction(registrar, heart):
    """The same volume, stored with other axes, other spacing and by another centre."""
    fixed = tilted(heart.fixed)
    turned = replace(
        fixed,
        array=np.ascontiguousarray(fixed.array.transpose(1, 2, 0)[:, ::-1]),
        geometry=Geometry(
            (48, 48, 9),
            (3.5, 3.5, 10.0),
            fixed.geometry.to_physical(np.array([0.0, 0.0, 47.0])),
            fixed.direction[:, [2, 0, 1]] * [1, -1, 1],
        ),
    )
    [pair] = prepare_volume(registrar, turned, fixed)
    np.testing.assert_allclose(pair.whole.moving, pair.whole.fixed, atol=1e-5)
    assert pair.whole.valid.all()
    away = replace(turned, geometry=replace(turned.geometry, origin=turned.origin + 400))
    with pytest.raises(ImageError, match="covers 0 %"):
        prepare_volume(registrar, away, fixed)
    [centred] = prepare_volume(registrar, away, fixed, align="centre")
    np.testing.assert_allclose(centred.whole.moving, pair.whole.moving, atol=1e-5)
    np.testing.assert_allclose(centred.shift, 400, atol=1e-6)


@pytest.mark.parametrize(
    "shape, spacing, expected",
    [
        ((10, 256, 216), (10.0, 1.25, 1.25), ((10, 214, 180), (10.0, 1.5, 1.5))),
        ((12, 100, 90), (8.0, 1.8, 1.8), ((12, 100, 90), (8.0, 1.8, 1.8))),
        ((256, 256, 128), (1.0, 1.0, 1.0), None),
    ],
)
def test_the_grid_of_a_volume(shape, spacing, expected):
    grid = place_volume_grid(Image(np.zeros(shape, np.int8), plain_geometry(shape, spacing)))
    size = np.array(grid.scale) * spacing
    if expected is None:  # bounded, with cubes for voxels
        assert 2**20 < np.prod(grid.shape) <= 2**21 and np.ptp(size) < 1e-6
    else:
        assert grid.shape == expected[0]
        np.testing.assert_allclose(size, expected[1])
    np.testing.assert_allclose(
        grid.pixels_at(grid.fixed_pixels()[-1, -1, -1]), np.array(grid.shape) - 1
    )


def test_arrays_that_are_no_volumes_are_refused(registrar):
    with pytest.raises(ImageError, match=r"moving: found shape \(64, 64\), expected a volume"):
        registrar(*np.random.default_rng(0).random((2, 64, 64)), volume=True)
    volumes = np.random.default_rng(0).random((2, 5, 64, 64))
    with pytest.raises(ImageError, match="expected one number or"):
        registrar(*volumes, spacing=(1.0, 2.0), volume=True)
