"""Rigid and affine maps before the deformation: known ones are found, other tools apply them."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from analytic_method import AnalyticMethod
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from ldm_morph_jax import register
from ldm_morph_jax.data.ventricle import ventricle
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, plain_geometry
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import Affine, read_transform
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.registering.affine import degrees_of, find_affine
from ldm_morph_jax.registering.grid import middle_of

pytestmark = pytest.mark.integration

STEPS = 4  # what is left after the affine map is hardly a motion


@pytest.fixture(scope="module")
def slice_2d():
    """A slice of a heart, wider than what is registered, so that a moved copy has no empty side."""
    array = ventricle(2, shape=(12, 128, 128), spacing=(8.0, 1.5, 1.5)).fixed[6]
    return Image(array, replace(plain_geometry(array.shape, (1.5, 1.5)), origin=np.array([9, -4])))


@pytest.fixture(scope="module")
def volume():
    """The same in three dimensions, in a tilted stack."""
    array = ventricle(3, shape=(44, 84, 84), spacing=(3.0, 2.5, 2.5)).fixed
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return Image(array, Geometry(array.shape, (3.0, 2.5, 2.5), np.array([-80, 30, 12]), direction))


@pytest.fixture(scope="module")
def registrar():
    return AnalyticMethod(amplitude=0.0)


def map_of(image, turn, shift):
    """Positions of the fixed image -> the moving one, about the image's centre."""
    centre = middle_of(image.geometry)
    return Affine(turn, centre + shift - turn @ centre)


def turn_of(degrees):
    """2-D: one angle; 3-D: a vector along the axis."""
    if np.size(degrees) == 1:
        return Rotation.from_rotvec([0, 0, degrees], degrees=True).as_matrix()[:2, :2]
    return Rotation.from_rotvec(degrees, degrees=True).as_matrix()


def moved(image, way):
    """moving(way(p)) = image(p), on the image's own grid."""
    geometry = image.geometry
    at = geometry.to_index(way.inverse()(geometry.to_physical(geometry.indices())))
    array = map_coordinates(image.array.astype(float), np.moveaxis(at, -1, 0), order=3)
    return replace(image, array=array.astype(np.float32))


def cut(image, border):
    """Without so many pixels on every side."""
    inside = tuple(slice(k, n - k) for k, n in zip(border, image.array.shape, strict=True))
    array = np.ascontiguousarray(image.array[inside])
    origin = image.geometry.to_physical(np.array(border, float))
    return replace(
        image, array=array, geometry=replace(image.geometry, shape=array.shape, origin=origin)
    )


def pair_of(image, way):
    border = (16, 16) if image.array.ndim == 2 else (6, 10, 10)
    return cut(moved(image, way), border), cut(image, border)


def error(found, true, geometry):
    """(largest error in pixels, error of the rotation in degrees)."""
    positions = geometry.to_physical(geometry.indices())
    away = geometry.vectors_to_index(found(positions) - true(positions))
    u, _, v = np.linalg.svd(found.matrix @ np.linalg.inv(true.matrix))
    return np.linalg.norm(away, axis=-1).max(), degrees_of(u @ v)


@pytest.mark.parametrize("kind", ["rigid", "affine"])
@pytest.mark.parametrize(
    ("degrees", "shift"), [(5, (3, -4)), (-35, (5, 12)), ((2, -3, 6), (4, -3, 5))]
)
def test_a_moved_copy_is_found(slice_2d, volume, kind, degrees, shift):
    image = slice_2d if np.size(degrees) == 1 else volume
    true = map_of(image, turn_of(degrees), np.array(shift, float))
    moving, fixed = pair_of(image, true)
    found = find_affine(moving, fixed, kind)
    pixels, turned = error(found.whole, true, fixed.geometry)
    assert pixels < 0.1 and turned < 0.1
    assert found.correlation[1] > found.correlation[0] + 0.2
    back = find_affine(fixed, moving, kind).whole
    positions = fixed.geometry.to_physical(fixed.geometry.indices())
    np.testing.assert_allclose(back(found.whole(positions)), positions, atol=1e-3)
    if kind == "rigid":
        np.testing.assert_allclose(
            found.whole.matrix @ found.whole.matrix.T, np.eye(len(shift)), atol=1e-9
        )


def test_scales_and_shear_are_found_where_they_are_asked_for(slice_2d):
    true = map_of(slice_2d, np.array([[1.08, 0.05], [-0.02, 0.94]]), np.array([2.0, 3.0]))
    moving, fixed = pair_of(slice_2d, true)
    assert error(find_affine(moving, fixed, "affine").whole, true, fixed.geometry)[0] < 0.1
    assert error(find_affine(moving, fixed, "rigid").whole, true, fixed.geometry)[0] > 1


def test_the_same_image_twice_does_not_move(slice_2d, registrar):
    image = cut(slice_2d, (16, 16))
    found = find_affine(image, image, "affine").whole
    np.testing.assert_array_equal(found.matrix, np.eye(2))
    np.testing.assert_allclose(found.offset, 0, atol=1e-9)
    result = registrar(image, image, affine="rigid", refine=STEPS)
    assert np.abs(result.displacement).max() < 1e-4
    assert result.metrics["affine"]["moved_mm"]["largest"] < 1e-6


def test_images_that_lie_apart_are_put_on_each_other(slice_2d):
    """One of another size and place, as two visits have it; the overlap is small at first."""
    true = map_of(slice_2d, turn_of(8.0), np.array([30.0, -24.0]))
    moving, fixed = pair_of(slice_2d, true)
    placed = replace(
        moving, geometry=replace(moving.geometry, origin=moving.geometry.origin + [30, -20])
    )
    whole = find_affine(cut(placed, (0, 7)), fixed, "rigid", align="centre").whole
    there = Affine(true.matrix, true.offset + [30, -20])
    assert error(whole, there, fixed.geometry)[0] < 0.15


def run(registrar, moving, fixed, folder, monkeypatch, *options):
    monkeypatch.setattr(register, "load_model", lambda name, calls="often": registrar)
    monkeypatch.setattr(register, "drawing_apart", lambda wanted: contextlib.nullcontext())
    for name, image in (("moving", moving), ("fixed", fixed)):
        write_image(folder / f"{name}.nii.gz", image.array, image.geometry)
    files = [f"--{name}={folder / name}.nii.gz" for name in ("moving", "fixed")]
    register.main([*files, "--out", str(folder / "out"), "--refine", str(STEPS), *options])
    return folder / "out"


@pytest.mark.parametrize(
    ("degrees", "shift", "options"),
    [
        (5, (3, -4), []),
        ((2, -3, 6), (4, -3, 5), ["--slice", "volume"]),
    ],
)
def test_files_that_simpleitk_applies(
    registrar, slice_2d, volume, degrees, shift, options, tmp_path, monkeypatch, capsys
):
    image = slice_2d if np.size(degrees) == 1 else volume
    true = map_of(image, turn_of(degrees), np.array(shift, float))
    moving, fixed = pair_of(image, true)
    out = run(registrar, moving, fixed, tmp_path, monkeypatch, "--affine", "rigid", *options)
    assert "turned by" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    numbers = metrics["affine"]
    assert numbers["kind"] == "rigid"
    assert abs(numbers["degrees"] - np.linalg.norm(degrees)) < 0.1
    assert abs(np.linalg.norm(numbers["shift_mm"]) - np.linalg.norm(shift)) < 0.25
    assert metrics["correlation"]["after"] > 0.97 > metrics["correlation"]["before"]
    assert metrics["jacobian"]["nonpositive_pixels"] == 0
    assert metrics["in_three_dimensions"] == ("volume" in options)
    page = (out / "report.html").read_text()
    assert numbers["sentence"] in page

    affine = SimpleITK.ReadTransform(str(out / "affine.tfm"))
    whole = Affine(np.array(numbers["matrix"]), np.array(numbers["offset_mm"]))
    geometry = fixed.geometry
    for point in geometry.to_physical(np.array([np.zeros(image.array.ndim), geometry.shape])):
        np.testing.assert_allclose(affine.TransformPoint(point.tolist()), whole(point), atol=1e-6)
        assert np.linalg.norm(whole(point) - true(point)) < 0.3
    # the displacement contains it: inside both images, to what the search adds
    transform = read_transform(out / "displacement.nii.gz")
    index = transform.moving_indices(moving.geometry)
    inside = ((index >= 1) & (index <= np.array(geometry.shape) - 2)).all(axis=-1)
    assert inside.mean() > 0.6
    positions = geometry.to_physical(geometry.indices())
    apart = transform.displacement_mm + positions - whole(positions)
    assert np.linalg.norm(apart[inside], axis=-1).max() < 2.5

    ours = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "warped.nii.gz")))
    files = [SimpleITK.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("moving", "fixed")]
    field = SimpleITK.ReadImage(str(out / "displacement.nii.gz"), SimpleITK.sitkVectorFloat64)
    theirs = SimpleITK.Resample(*files, SimpleITK.DisplacementFieldTransform(field))
    theirs = SimpleITK.GetArrayFromImage(theirs)
    np.testing.assert_allclose(theirs[inside], ours[inside], atol=2e-4)
    aligned = SimpleITK.GetArrayFromImage(SimpleITK.Resample(*files, affine))
    assert np.sqrt(np.mean((aligned - fixed.array)[inside] ** 2)) < 0.05


def test_exchanged_images_give_the_inverse(registrar, slice_2d):
    true = map_of(slice_2d, turn_of(5.0), np.array([3.0, -4.0]))
    moving, fixed = pair_of(slice_2d, true)
    there = registrar(moving, fixed, affine="rigid", refine=STEPS)
    back = registrar(fixed, moving, affine="rigid", refine=STEPS).displacement
    assert (there.registrations[0].inverse.converged[8:-8, 8:-8]).all()
    assert np.abs(there.inverse - back)[8:-8, 8:-8].max() < 0.1
    assert there.registrations[0].alignment.kind == "rigid"


def test_stacks_of_two_visits_with_other_slices(registrar, volume):
    """Another number of slices, turned out of their planes: aligned, then slice by slice."""
    true = map_of(volume, turn_of((2, -3, 6)), np.array([4.0, -3, 5]))
    moving, fixed = pair_of(volume, true)
    moving = cut(moving, (7, 0, 0))
    with pytest.raises(ImageError, match="the same number"):
        registrar(moving, fixed, slice="all", refine=STEPS)
    result = registrar(moving, fixed, slice="all", affine="rigid", refine=STEPS)
    [registration] = result.registrations
    assert not registration.in_space and len(registration.motions) == len(fixed.array)
    assert any("beyond the moving image: left as it is" in note for note in result.metrics["notes"])
    seen = np.s_[10:-10, 8:-8, 8:-8]
    assert np.corrcoef(result.warped[seen].ravel(), fixed.array[seen].ravel())[0, 1] > 0.97


def test_without_it_nothing_is_said(registrar, slice_2d, tmp_path, monkeypatch):
    image = cut(slice_2d, (16, 16))
    out = run(registrar, image, image, tmp_path, monkeypatch)
    assert not (out / "affine.tfm").exists()
    assert "affine" not in json.loads((out / "metrics.json").read_text())


def test_what_cannot_be_aligned_is_refused(registrar, volume, slice_2d):
    thin = cut(volume, (20, 0, 0))
    with pytest.raises(ImageError, match="expected 4 or more slices, found 3"):
        find_affine(replace(thin, array=thin.array[:3]), thin, "rigid")
    with pytest.raises(ImageError, match="one is a stack of slices"):
        find_affine(volume, slice_2d, "rigid")
    with pytest.raises(ValueError, match="expected one of none, rigid, affine"):
        registrar(slice_2d, slice_2d, affine="similarity")
