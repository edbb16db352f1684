"""Where the axes of an array run in the patient, however the file stores it."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from files import samples

from ldm_morph_jax.files.geometry import patient_letters
from ldm_morph_jax.files.images import images_from_array, images_of, read_image

IMAGE = samples.picture(np.int16)
# a short-axis plane as scanners have it: its normal points to the left, the front and below
ROW = np.array([0.5, 0.75, -0.43]) / np.linalg.norm([0.5, 0.75, -0.43])
NORMAL = np.array([-0.6, 0.65, 0.46]) - ROW * (ROW @ [-0.6, 0.65, 0.46])
NORMAL /= np.linalg.norm(NORMAL)
OBLIQUE = np.stack([ROW, np.cross(NORMAL, ROW), NORMAL], axis=1)  # columns x, y, z of the array
PLAIN = np.eye(3)
REVERSED = {
    "as displayed": (1, 1),
    "rows reversed": (-1, 1),
    "columns reversed": (1, -1),
    "both": (-1, -1),
}


def stored(plane, flips):
    """(pixels, direction, origin in LPS) of one picture stored in one of four ways."""
    rows, columns = flips
    direction = plane * [columns, rows, 1]
    far = plane[:, 0] * 1.5 * (SHAPE[1] - 1) * (columns < 0)
    far = far + plane[:, 1] * 2.5 * (SHAPE[0] - 1) * (rows < 0)
    return IMAGE[::rows, ::columns], direction, np.array([-60.0, -50.0, 20.0]) + far


SHAPE = IMAGE.shape


def itk_image(pixels, direction, origin):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(pixels)[None])
    image.SetSpacing((1.5, 2.5, 8))
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    return image


def nifti(path, *place):
    SimpleITK.WriteImage(itk_image(*place), path / "a.nii.gz")
    return path / "a.nii.gz"


def nifti_2d(path, pixels, direction, origin):
    to_ras = np.diag([-1.0, -1, 1])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = to_ras @ direction * [1.5, 2.5, 1], to_ras @ origin
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(pixels.T), affine), path / "b.nii")
    return path / "b.nii"


def dicom(path, pixels, direction, origin):
    orientation = [*direction[:, 0], *direction[:, 1]]
    tags = {"ImageOrientationPatient": [round(float(v), 9) for v in orientation]}
    tags["ImagePositionPatient"] = [round(float(v), 6) for v in origin]
    samples.dicom(np.ascontiguousarray(pixels), **tags)(path / "c.dcm")
    return path / "c.dcm"


@pytest.mark.parametrize("write", [nifti, nifti_2d, dicom])
@pytest.mark.parametrize("plane", [PLAIN, OBLIQUE], ids=["in x-y", "oblique"])
@pytest.mark.parametrize("flips", REVERSED.values(), ids=REVERSED)
def test_rows_and_columns_in_the_patient(tmp_path, write, plane, flips):
    pixels, direction, origin = stored(plane, flips)
    image = read_image(write(tmp_path, pixels, direction, origin), oblique=True)
    np.testing.assert_array_equal(image.array, pixels)
    assert image.orientation_known
    # what is stored in reverse runs the other way: the same heart either way
    expected = np.stack([flips[0] * plane[:, 1], flips[1] * plane[:, 0]])
    np.testing.assert_allclose(image.axis_directions, expected, atol=1e-6)
    if plane is PLAIN:
        letters = [patient_letters(vector) for vector in image.axis_directions]
        assert letters == ["P" if flips[0] > 0 else "A", "L" if flips[1] > 0 else "R"]


def test_stacks_and_images_in_memory():
    image = itk_image(*stored(OBLIQUE, (1, 1)))
    stack = SimpleITK.JoinSeries([image[:, :, 0]] * 3)
    stack.SetDirection(OBLIQUE.ravel().tolist())
    stack.SetOrigin((1.0, 2.0, 3.0))
    [read], batch = images_of(stack, slice="all", oblique=True)
    assert not batch and read.orientation_known and read.array.shape == (3, *SHAPE)
    np.testing.assert_allclose(read.axis_directions, OBLIQUE.T[::-1], atol=1e-6)


def test_what_tells_no_orientation(tmp_path):
    assert not images_from_array(IMAGE, 1.25)[0][0].orientation_known
    assert images_from_array(IMAGE, 1.25)[0][0].axis_directions is None
    samples.pillow(samples.picture(np.uint8))(tmp_path / "a.png")
    np.savez(tmp_path / "b.npz", image=IMAGE, spacing=[1.5, 2.5], origin=[1.0, 2.0])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(IMAGE), tmp_path / "c.mha")  # two axes
    in_space = SimpleITK.GetImageFromArray(IMAGE[None])  # the default place, another spacing
    in_space.SetSpacing((1.5, 1.5, 8))
    SimpleITK.WriteImage(in_space, tmp_path / "d.mha")
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.diag([-1.5, -1.5, 8, 1])), tmp_path / "e.nii")
    samples.dicom(
        IMAGE, ImageOrientationPatient=None, ImagePositionPatient=None, PixelSpacing=[1, 1]
    )(tmp_path / "f.dcm")
    for path in sorted(tmp_path.iterdir()):
        assert not read_image(path).orientation_known, path.name
    direction = np.eye(3)
    np.savez(tmp_path / "g.npz", image=IMAGE[None], spacing=[8, 2, 2], direction=direction)
    assert read_image(tmp_path / "g.npz").orientation_known


@pytest.mark.parametrize(
    "vector, letters",
    [
        ((0, 0, 1), "H"),
        ((0, 0, -2), "F"),
        ((-1, 0.05, 0), "R"),
        ((0.5, -0.8, 0.3), "ALH"),
        ((-0.7, 0.7, 0), "RP"),
    ],
)
def test_letters(vector, letters):
    assert patient_letters(np.array(vector, float)) == letters
    assert patient_letters(np.array(vector, float), at_most=1) == letters[0]
