"""Transforms hold in other tools: SimpleITK, SciPy and, where installed, ANTs."""

import numpy as np
import pytest
import SimpleITK
from analytic_method import AnalyticMethod, heart
from scipy.ndimage import map_coordinates

from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import Image, read_image
from ldm_morph_jax.files.transforms import (
    Transform,
    TransformError,
    read_transform,
    sample,
    write_transform,
)
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.ops import geometry as ops_geometry
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.ops.jacobian import jacobian_determinant


def rotation(degrees, flip=1.0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]]) * [1.0, flip]


def place(shape, spacing, direction, middle=(0.0, 0.0)):
    """A geometry whose image has its centre at `middle`."""
    plain = Geometry(shape, spacing, np.zeros(len(shape)), np.asarray(direction, float))
    centre = plain.to_physical((np.array(shape) - 1) / 2)
    return Geometry(shape, spacing, np.asarray(middle) - centre, plain.direction)


# (moving, fixed): sizes, anisotropic spacing, flips, rotations, origins, and all of these different
PAIRS = {
    "same": (place((128, 128), (1.25, 1.25), np.eye(2)),) * 2,
    "anisotropic": (place((97, 141), (1.9, 1.1), np.eye(2), (40.0, -75.0)),) * 2,
    "flipped": (place((256, 216), (0.9, 0.8), np.diag([-1.0, 1.0]), (-31.0, 9.0)),) * 2,
    "rotated": (place((97, 141), (1.3, 1.0), rotation(35), (120.0, 66.0)),) * 2,
    "rotated and flipped": (place((128, 128), (1.5, 1.1), rotation(-100, -1), (5.0, 300.0)),) * 2,
    "different": (
        place((256, 216), (0.8, 0.7), rotation(-20, -1), (12.0, -38.0)),
        place((97, 141), (1.6, 1.1), rotation(35), (10.0, -40.0)),
    ),
    "different sizes": (
        place((128, 128), (1.25, 1.25), np.eye(2), (3.0, 4.0)),
        place((256, 216), (0.7, 0.9), np.diag([-1.0, -1.0]), (0.0, 0.0)),
    ),
}


def registered(moving, fixed, *, align="auto", **options):
    """Register two hearts placed so."""
    images = []
    for geometry, radius in ((moving, 0.5), (fixed, 0.4)):
        shape = geometry.shape
        array = heart(shape[-2:], radius=radius)
        if len(shape) == 3:
            array = np.stack([heart(shape[-2:], radius=radius, seed=k) for k in range(shape[0])])
        images.append(Image(array, geometry))
    return AnalyticMethod(**options).register_images([tuple(images)], align=align)[0]


def saved(folder, registration):
    """Write the pair, its warped image and its transforms as `register` does."""
    for name, image in (("moving", registration.moving), ("fixed", registration.fixed)):
        write_image(folder / f"{name}.nii.gz", image.array, image.geometry)
    write_image(folder / "warped.nii.gz", registration.warped, registration.fixed.geometry)
    write_transform(folder / "displacement.nii.gz", registration.transform)
    write_transform(folder / "displacement.npz", registration.transform)


def inside(registration):
    """Fixed pixels that fall inside the moving image; beyond it tools need not agree."""
    index = registration.transform.moving_indices()
    last = np.array(registration.moving.array.shape) - 1
    return ((index > 0) & (index < last)).all(axis=-1)


def assert_equal_inside(registration, found):
    mask, warped = inside(registration), registration.warped
    assert mask.mean() > 0.3
    moving = registration.moving.array
    error = np.abs(found - warped)[mask].max() / (moving.max() - moving.min())
    assert error < 1e-3, error


def by_simpleitk(folder):
    moving, fixed = (
        SimpleITK.ReadImage(folder / f"{name}.nii.gz", SimpleITK.sitkFloat64)
        for name in ("moving", "fixed")
    )
    field = SimpleITK.ReadImage(folder / "displacement.nii.gz", SimpleITK.sitkVectorFloat64)
    transform = SimpleITK.DisplacementFieldTransform(field)
    result = SimpleITK.Resample(moving, fixed, transform, SimpleITK.sitkLinear, 0.0)
    return SimpleITK.GetArrayFromImage(result)


@pytest.mark.parametrize("name", PAIRS)
def test_simpleitk_and_scipy_apply_the_transform(tmp_path, name):
    registration = registered(*PAIRS[name])
    saved(tmp_path, registration)
    # the displacement is no trifle: the images differ by it
    assert (
        np.abs(registration.warped - registration.start.warp(registration.moving.array)).max() > 50
    )
    assert_equal_inside(registration, by_simpleitk(tmp_path))
    warped = SimpleITK.ReadImage(tmp_path / "warped.nii.gz")
    fixed = SimpleITK.ReadImage(tmp_path / "fixed.nii.gz")
    np.testing.assert_allclose(warped.GetOrigin(), fixed.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(warped.GetDirection(), fixed.GetDirection(), atol=1e-6)
    assert warped.GetSize() == fixed.GetSize()

    u = np.load(tmp_path / "displacement.npz")["displacement"]
    assert u.shape == (*fixed.GetSize()[::-1], 2) and u.dtype == np.float32
    coordinates = np.indices(u.shape[:2]) + np.moveaxis(u, -1, 0)
    by_scipy = map_coordinates(registration.moving.array, coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(by_scipy, registration.warped, atol=0.05)  # of 1000, everywhere


@pytest.mark.parametrize("name", ["anisotropic", "rotated and flipped", "different"])
def test_ants_applies_the_transform(tmp_path, name):
    ants = pytest.importorskip("ants", reason="the extra `ants` is not installed")
    registration = registered(*PAIRS[name])
    saved(tmp_path, registration)
    moving, fixed = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("moving", "fixed"))
    field = str(tmp_path / "displacement.nii.gz")
    result = ants.apply_transforms(fixed, moving, [field], interpolator="linear")
    assert_equal_inside(registration, result.numpy().T)


def stack(direction, middle=(0.0, 0.0, 0.0), shape=(3, 64, 72)):
    return place(shape, (8.0, 1.5, 1.2), direction, middle)


def test_stack_in_space_also_oblique(tmp_path):
    x, y = np.array([0.6, 0.64, -0.48]), np.array([-0.8, 0.48, -0.36])
    oblique = np.stack([x, y, np.cross(x, y)], axis=1)
    for geometry in (stack(np.eye(3), (9.0, 8.0, 7.0)), stack(oblique, (30.0, -20.0, 55.0))):
        registration = registered(geometry, geometry)
        saved(tmp_path, registration)
        assert_equal_inside_slices(registration, by_simpleitk(tmp_path))
        again = read_transform(tmp_path / "displacement.nii.gz")
        np.testing.assert_allclose(
            again.displacement_mm, registration.transform.displacement_mm, atol=1e-5
        )


def assert_equal_inside_slices(registration, found):
    index = registration.transform.moving_indices()[..., -2:]
    last = np.array(registration.moving.array.shape[-2:]) - 1
    mask = ((index > 0) & (index < last)).all(axis=-1)
    error = np.abs(found - registration.warped)[mask].max() / np.ptp(registration.moving.array)
    assert error < 1e-3, error


def test_stacks_elsewhere_in_space(tmp_path):
    moving, fixed = stack(np.eye(3)), stack(np.eye(3), (40.0, -30.0, 100.0))
    with pytest.raises(ValueError, match="does not lie in the plane"):
        registered(moving, fixed)
    registration = registered(moving, fixed, align="centre")
    saved(tmp_path, registration)
    assert_equal_inside_slices(registration, by_simpleitk(tmp_path))


def volumes():
    """(moving image, transform): a motion across slices between two oblique, anisotropic grids."""
    x, y = np.array([0.6, 0.64, -0.48]), np.array([-0.8, 0.48, -0.36])
    oblique = np.stack([x, y, np.cross(x, y)], axis=1)
    fixed = place((9, 20, 24), (6.0, 2.0, 1.5), oblique, (30.0, -20.0, 55.0))
    turned = oblique @ np.diag([1.0, -1.0, -1.0])  # rows and slices stored in reverse
    moving = place((14, 28, 30), (5.0, 1.6, 1.4), turned, (32.0, -19.0, 53.0))
    position = fixed.to_physical(fixed.indices()) - [30.0, -20.0, 55.0]
    waves = np.sin(position / 12)[..., [1, 2, 0]] * [3.0, 2.0, 4.0]
    index = moving.indices()
    array = 500 + 200 * np.sin(index / [2.5, 4, 5]).sum(axis=-1)
    return Image(array, moving), Transform(waves, fixed, moving)


def test_simpleitk_and_scipy_apply_a_motion_of_volumes(tmp_path):
    moving, transform = volumes()
    warped = transform.warp(moving.array)
    u = transform.displacement
    assert u.shape == (9, 20, 24, 3) and np.ptp(transform.displacement_mm[..., 2]) > 4
    write_image(tmp_path / "moving.nii.gz", moving.array, moving.geometry)
    write_image(tmp_path / "fixed.nii.gz", warped, transform.fixed)
    write_transform(tmp_path / "displacement.nii.gz", transform)
    write_transform(tmp_path / "displacement.npz", transform)
    index = transform.moving_indices()
    mask = ((index > 0) & (index < np.array(moving.array.shape) - 1)).all(axis=-1)
    assert mask.mean() > 0.6
    np.testing.assert_allclose(by_simpleitk(tmp_path)[mask], warped[mask], atol=0.1)  # of 1000
    by_scipy = map_coordinates(
        moving.array, np.moveaxis(transform.fixed.indices() + u, -1, 0), order=1, mode="nearest"
    )
    np.testing.assert_allclose(by_scipy, warped, atol=1e-3)
    for name in ("displacement.nii.gz", "displacement.npz"):
        again = read_transform(tmp_path / name)
        np.testing.assert_allclose(again.displacement_mm, transform.displacement_mm, atol=1e-4)
        assert again.fixed.same_as(transform.fixed)
    field = SimpleITK.ReadImage(tmp_path / "displacement.nii.gz", SimpleITK.sitkVectorFloat64)
    itk = SimpleITK.DisplacementFieldTransform(field)
    points = transform.fixed.to_physical(np.array([[3.3, 7.9, 12.1], [5.0, 11.5, 4.2]]))
    expected = [itk.TransformPoint(p) for p in points]
    np.testing.assert_allclose(transform.map_points(points), expected, atol=1e-4)


def test_ants_applies_a_motion_of_volumes(tmp_path):
    ants = pytest.importorskip("ants", reason="the extra `ants` is not installed")
    moving, transform = volumes()
    warped = transform.warp(moving.array)
    write_image(tmp_path / "moving.nii.gz", moving.array, moving.geometry)
    write_image(tmp_path / "fixed.nii.gz", warped, transform.fixed)
    write_transform(tmp_path / "displacement.nii.gz", transform)
    images = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    field = str(tmp_path / "displacement.nii.gz")
    result = ants.apply_transforms(*images, [field], interpolator="linear").numpy().T
    index = transform.moving_indices()
    mask = ((index > 0) & (index < np.array(moving.array.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(result[mask], warped[mask], atol=0.1)


def test_inverse_and_jacobian_of_volumes():
    _, transform = volumes()
    inverse = transform.inverse()
    at = transform.fixed.to_physical(np.array([[3.3, 7.9, 12.1], [5.0, 11.5, 4.2]]))
    there = transform.map_points(at)
    np.testing.assert_allclose(transform.map_points_back(there)[0], at, atol=1e-4)
    assert inverse.converged.mean() > 0.99
    matrix = np.array([[1.2, 0.1, 0.05], [-0.05, 0.9, 0.1], [0.2, 0.0, 1.1]])
    positions = transform.fixed.to_physical(transform.fixed.indices())
    affine = Transform(positions @ matrix.T - positions, transform.fixed)
    np.testing.assert_allclose(affine.jacobian_determinant(), np.linalg.det(matrix), atol=1e-9)


def test_saved_transforms_read_back(tmp_path):
    registration = registered(*PAIRS["different"])
    saved(tmp_path, registration)
    expected = registration.transform
    for name in ("displacement.nii.gz", "displacement.npz"):
        found = read_transform(tmp_path / name)
        np.testing.assert_allclose(found.displacement_mm, expected.displacement_mm, atol=1e-3)
        assert found.fixed.same_as(expected.fixed)
    assert read_transform(tmp_path / "displacement.npz").moving.same_as(expected.moving)
    with pytest.raises(TransformError, match="moving image's geometry"):
        read_transform(tmp_path / "displacement.nii.gz").inverse()


def test_reads_what_simpleitk_writes(tmp_path):
    registration = registered(*PAIRS["rotated and flipped"])
    write_transform(tmp_path / "ours.nii.gz", registration.transform)
    SimpleITK.WriteImage(SimpleITK.ReadImage(tmp_path / "ours.nii.gz"), tmp_path / "itk.nii.gz")
    found = read_transform(tmp_path / "itk.nii.gz")
    np.testing.assert_allclose(
        found.displacement_mm, registration.transform.displacement_mm, atol=1e-4
    )
    assert found.fixed.same_as(registration.fixed.geometry)


def test_points_as_simpleitk(tmp_path):
    registration = registered(*PAIRS["different"])
    saved(tmp_path, registration)
    field = SimpleITK.ReadImage(tmp_path / "displacement.nii.gz", SimpleITK.sitkVectorFloat64)
    itk = SimpleITK.DisplacementFieldTransform(field)
    points = registration.fixed.geometry.to_physical(np.array([[40.3, 70.9], [52.0, 61.5]]))
    expected = [itk.TransformPoint(p) for p in points]
    np.testing.assert_allclose(registration.transform.map_points(points), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["same", "different"])
def test_inverse(name):
    registration = registered(*PAIRS[name])
    transform, inverted = registration.transform, registration.inverse
    assert inverted.residual_mm.max() < 1e-4 and inverted.missing == 0
    inverse = inverted.transform
    assert inverse.fixed is registration.moving.geometry
    # there and back again, through the sampled fields; a tenth of a millimetre for their sampling
    points = registration.fixed.geometry.to_physical(np.array([[40.0, 70.0], [55.5, 61.5]]))
    np.testing.assert_allclose(inverse.map_points(transform.map_points(points)), points, atol=0.1)
    back, residual = transform.map_points_back(transform.map_points(points))
    np.testing.assert_allclose(back, points, atol=1e-4)
    assert residual.max() < 1e-4


def test_inverse_where_the_map_stretches():
    """No fold, but changes of more than a pixel per pixel: a fixed-point iteration diverges."""
    geometry = PAIRS["same"][0]
    x = geometry.indices()[..., 1] - 60
    stretch = np.stack([8 * np.tanh(x / 2), 0 * x], axis=-1)
    transform = Transform(stretch, geometry, geometry)
    assert 0 < transform.jacobian_determinant().min() < transform.jacobian_determinant().max()
    assert transform.jacobian_determinant().max() > 3
    inverse = transform.inverse()
    assert inverse.missing == 0 and inverse.converged.all()
    positions = geometry.to_physical(geometry.indices()) + inverse.transform.displacement_mm
    there = transform.map_points(positions.reshape(-1, 2)).reshape(positions.shape)
    np.testing.assert_allclose(there, geometry.to_physical(geometry.indices()), atol=1e-3)


def test_an_inverse_that_is_missing_is_told():
    geometry = PAIRS["same"][0]
    noise = np.random.default_rng(0).normal(scale=15, size=(*geometry.shape, 2))  # folds all over
    inverse = Transform(noise, geometry, geometry).inverse()
    assert inverse.missing == np.count_nonzero(~inverse.converged) > 0
    assert inverse.residual_mm[~inverse.converged].min() > 1e-2


def test_agrees_with_ops_on_one_grid():
    """On one grid with unit spacing everything equals the JAX operations of `ops.geometry`."""
    geometry = Geometry((40, 50), (1.0, 1.0), np.zeros(2), np.eye(2))
    registration = registered(geometry, geometry, image_size=64, spacing_mm=1.0)
    transform = registration.transform
    u = transform.displacement.astype(np.float32)[None]
    image = registration.moving.array[None, ..., None]
    np.testing.assert_allclose(
        np.asarray(ops_geometry.warp(image, u))[0, ..., 0], registration.warped, atol=0.01
    )
    np.testing.assert_allclose(
        np.asarray(jacobian_determinant(u))[0],
        transform.jacobian_determinant(),
        atol=1e-4,
    )
    # away from the border, beyond which the two continue the displacement alike anyway
    np.testing.assert_allclose(
        np.asarray(invert(u).displacement)[0],
        registration.inverse.transform.displacement,
        atol=1e-3,
    )


def test_jacobian_is_of_millimetres():
    """An affine map has its determinant everywhere, whatever the grids of the images."""
    moving, fixed = PAIRS["different"]
    matrix = np.array([[1.2, 0.1], [-0.05, 0.9]])
    positions = fixed.to_physical(fixed.indices())
    transform = Transform(positions @ matrix.T - positions, fixed, moving)
    np.testing.assert_allclose(transform.jacobian_determinant(), np.linalg.det(matrix), atol=1e-9)


def test_labels_stay_labels():
    registration = registered(*PAIRS["same"])
    labels = (registration.moving.array > 300).astype(np.int16) * 7
    warped = registration.transform.warp(labels, "nearest")
    assert warped.dtype == np.int16 and set(np.unique(warped)) == {0, 7}
    with pytest.raises(ValueError, match="interpolation"):
        sample(labels, registration.transform.moving_indices(), "cubic")
    with pytest.raises(ValueError, match="found shape"):
        registration.transform.warp(labels[1:], "nearest")


def test_bad_transform_files(tmp_path):
    registration = registered(*PAIRS["same"])
    saved(tmp_path, registration)
    with np.load(tmp_path / "displacement.npz") as archive:
        entries = dict(archive)
    np.savez(tmp_path / "lacks.npz", **{k: v for k, v in entries.items() if k != "fixed_shape"})
    np.savez(tmp_path / "cut.npz", **entries | {"displacement": entries["displacement"][1:]})
    np.savez(tmp_path / "nan.npz", **entries | {"displacement": entries["displacement"] * np.nan})
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.nii.gz").write_text("hello")
    for name, message in {
        "lacks.npz": "fixed_shape",
        "cut.npz": "displacement has shape",
        "nan.npz": "NaN",
        "text.npz": "not a readable transform",
        "text.nii.gz": "not a readable NIfTI",
        "moving.nii.gz": "not a displacement field",
        "absent.npz": "no such file",
    }.items():
        with pytest.raises(TransformError, match=message) as caught:
            read_transform(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(TransformError, match="unknown suffix"):
        write_transform(tmp_path / "out.h5", registration.transform)


def test_image_written_by_us_reads_the_same(tmp_path):
    geometry = PAIRS["rotated and flipped"][0]
    write_image(tmp_path / "a.nii.gz", heart(geometry.shape), geometry)
    assert read_image(tmp_path / "a.nii.gz").geometry.same_as(geometry)
