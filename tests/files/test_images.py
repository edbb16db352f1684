"""Reading images: values, geometry as SimpleITK has it, and one line for everything unusable."""

import re

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from ldm_morph_jax.files.errors import FileError, ImageError
from ldm_morph_jax.files.geometry import Geometry, plain_geometry
from ldm_morph_jax.files.images import check_spacing, images_from_array, read_image
from ldm_morph_jax.files.writing import round_to, write_image


def picture(shape=(9, 8), dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def rotation(degrees, flip=1.0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]]) * [1.0, flip]


def agree(image, itk):
    """Array and geometry of ours and SimpleITK's."""
    np.testing.assert_array_equal(image.array, SimpleITK.GetArrayFromImage(itk))
    np.testing.assert_allclose(image.geometry.spacing, itk.GetSpacing()[::-1], rtol=1e-5)
    np.testing.assert_allclose(image.origin, itk.GetOrigin(), atol=1e-4)
    n = itk.GetDimension()
    direction = np.reshape(itk.GetDirection(), (n, n))
    np.testing.assert_allclose(image.direction, direction, atol=1e-5)
    index = np.array([3, 2, 1][:n])
    position = itk.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])
    np.testing.assert_allclose(image.geometry.to_physical(index[::-1]), position, atol=1e-4)
    np.testing.assert_allclose(image.geometry.to_index(np.array(position)), index[::-1], atol=1e-4)


@pytest.mark.parametrize("degrees,flip", [(0, 1), (30, 1), (90, -1), (180, 1), (-75, -1)])
def test_nifti_2d_as_simpleitk(tmp_path, degrees, flip):
    itk = SimpleITK.GetImageFromArray(picture())
    itk.SetSpacing((1.5, 2.5))
    itk.SetOrigin((-12.0, 34.5))
    itk.SetDirection(rotation(degrees, flip).ravel())
    path = tmp_path / "image.nii.gz"
    SimpleITK.WriteImage(itk, path)
    image = read_image(path)
    agree(image, itk)
    assert image.spacing == pytest.approx((2.5, 1.5)) and image.position_known
    ours = tmp_path / "ours.nii"
    write_image(ours, image.array, image.geometry)
    agree(image, SimpleITK.ReadImage(ours))


@pytest.mark.parametrize(
    "chosen,message",
    [
        ((2, 4), "found `slice` [2, 4], expected two or more of its slices 0 to 3"),
        ((0, 1, 3), "found `slice` [0, 1, 3], expected evenly spaced ones"),
        ((2, 1), "found `slice` [2, 1], expected evenly spaced ones, from the first"),
    ],
)
def test_slices_that_are_no_stack(tmp_path, chosen, message):
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(picture((4, 9, 8), np.int16)), tmp_path / "a.nii"
    )
    with pytest.raises(ImageError, match=re.escape(message)):
        read_image(tmp_path / "a.nii", chosen)


@pytest.mark.parametrize("k", [0, 3])
def test_slice_of_a_stack_is_simpleitks_slice(tmp_path, k):
    itk = SimpleITK.GetImageFromArray(picture((4, 9, 8), np.int16))
    itk.SetSpacing((1.5, 2.5, 8.0))
    itk.SetOrigin((-12.0, 34.5, 7.0))
    direction = np.eye(3)
    direction[:2, :2] = rotation(25, -1)
    direction[2, 2] = -1
    itk.SetDirection(direction.ravel())
    path = tmp_path / "image.nii.gz"
    SimpleITK.WriteImage(itk, path)
    agree(read_image(path, k), itk[:, :, k])
    agree(read_image(path, "all"), itk)
    agree(read_image(path, (1, 2)), itk[:, :, 1:3])
    agree(read_image(path, (1, 3)), itk[:, :, 1::2])
    assert read_image(path, k).array.dtype == np.int16
    ours = tmp_path / "ours.nii.gz"
    whole = read_image(path, "all")
    write_image(ours, whole.array, whole.geometry)
    agree(whole, SimpleITK.ReadImage(ours))


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1)])
def test_nifti_with_two_orientations_follows_itk(tmp_path, codes):
    file = nibabel.Nifti1Image(picture((8, 9)), None)
    for set_form, degrees, code in ((file.set_qform, 30, codes[0]), (file.set_sform, 60, codes[1])):
        affine = np.eye(4)
        affine[:2, :2] = rotation(degrees) * [1.5, 2.5]
        affine[:2, 3] = degrees, -degrees
        set_form(affine, code=code)
    path = tmp_path / "image.nii.gz"
    nibabel.save(file, path)
    agree(read_image(path), SimpleITK.ReadImage(path))


def test_nifti_without_orientation_and_with_units(tmp_path):
    file = nibabel.Nifti1Image(picture((8, 9)), None)
    file.header.set_zooms((1.5, 2.5))
    path = tmp_path / "plain.nii"
    nibabel.save(file, path)
    agree(read_image(path), SimpleITK.ReadImage(path))
    assert not read_image(path).position_known and read_image(path).spacing_known
    for unit, mm in (("meter", 1000), ("micron", 0.001)):
        file = nibabel.Nifti1Image(picture((8, 9)), np.diag([1.5 / mm, 2.5 / mm, 1, 1]))
        file.header.set_xyzt_units(unit)
        nibabel.save(file, path)
        agree(read_image(path), SimpleITK.ReadImage(path))


def test_nifti_scaled_and_single_slice(tmp_path):
    file = nibabel.Nifti1Image(picture((8, 9, 1), np.int16), np.eye(4))
    file.header.set_slope_inter(2.0, 5.0)
    path = tmp_path / "one.nii.gz"
    nibabel.save(file, path)
    image = read_image(path)  # one slice: nothing to choose
    np.testing.assert_allclose(image.array, picture((8, 9)).T * 2 + 5)


def tilted(tmp_path, shape=(8, 9, 4), degrees=20.0):
    affine = np.eye(4)
    affine[1:3, 1:3] = rotation(degrees)
    affine[:3, 3] = 10, 20, 30
    path = tmp_path / f"tilted{len(shape)}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(picture(shape), affine), path)
    return path


def test_oblique_slices(tmp_path):
    for path in (tilted(tmp_path), tilted(tmp_path, (8, 9))):
        with pytest.raises(ImageError, match=r"oblique direction .* 20\.0 degrees.*`oblique`"):
            read_image(path, 1)
    whole = read_image(tilted(tmp_path), "all")  # stays in space
    agree(whole, SimpleITK.ReadImage(tilted(tmp_path)))
    one = read_image(tilted(tmp_path), 1, oblique=True)
    np.testing.assert_array_equal(one.direction, np.eye(2))
    # the plane's own coordinates measure true distances
    a, b = one.geometry.to_physical(np.array([[0, 0], [3, 5]]))
    ends = whole.geometry.to_physical(np.array([[1, 0, 0], [1, 3, 5]]))
    assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(ends[0] - ends[1]))
    read_image(tilted(tmp_path, degrees=0.1), 1)  # rounding in a header is no tilt


@pytest.mark.parametrize(
    "mode,dtype", [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)]
)
def test_pictures(tmp_path, mode, dtype):
    array = picture(dtype=dtype) * (700 if dtype == np.uint16 else 1)
    path = tmp_path / f"image.{mode}"
    image = images_from_array(array)[0][0]
    write_image(path, array, image.geometry)
    read = read_image(path)
    np.testing.assert_array_equal(read.array, array)
    assert read.array.dtype == dtype
    assert not read.spacing_known and not read.position_known
    assert read_image(path, spacing=(2, 1.5)).spacing == (2, 1.5)
    assert read_image(path, spacing=2).spacing_known


def test_grey_pictures_in_colour_channels(tmp_path):
    grey = picture(dtype=np.uint8)
    for mode in ("RGB", "RGBA", "P", "LA"):
        path = tmp_path / f"{mode}.png"
        PIL.Image.fromarray(grey).convert(mode).save(path)
        np.testing.assert_array_equal(read_image(path).array, grey)


def test_tiff_pages_are_slices(tmp_path):
    path = tmp_path / "pages.tiff"
    pages = [PIL.Image.fromarray(picture(dtype=np.uint8) + k) for k in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert read_image(path, "all").array.shape == (3, 9, 8)
    np.testing.assert_array_equal(read_image(path, 2).array, picture(dtype=np.uint8) + 2)
    with pytest.raises(ImageError, match=r"3-D with 3 slices; choose one with `slice` 0 to 2"):
        read_image(path)


def test_npz(tmp_path):
    path = tmp_path / "image.npz"
    np.savez(path, picture())
    assert not read_image(path).spacing_known
    geometry = Geometry((9, 8), (2.5, 1.5), np.array([3.0, 4.0]), rotation(30))
    write_image(path, picture(), geometry)
    assert read_image(path).geometry.same_as(geometry)
    assert read_image(path).position_known


def dicom(path, array, **changes):
    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = MRImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, "1.2.3"
    file.Modality, file.PhotometricInterpretation, file.SamplesPerPixel = "MR", "MONOCHROME2", 1
    file.Rows, file.Columns = array.shape[:2]
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.PixelSpacing, file.SliceThickness = [2.5, 1.5], 8
    file.ImagePositionPatient = [-12, 34.5, 7]
    file.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    file.PixelData = array.astype("<u2").tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def test_dicom(tmp_path):
    path = dicom(tmp_path / "IM0001", picture(dtype=np.uint16))  # no suffix, as often
    image = read_image(path)
    agree(image, SimpleITK.ReadImage(path)[:, :, 0])
    no_place = dicom(
        tmp_path / "us.dcm", picture(dtype=np.uint16), PixelSpacing=None, ImagePositionPatient=None
    )
    assert not read_image(no_place).spacing_known and not read_image(no_place).position_known
    short_axis = [0.6, 0.64, -0.48, -0.8, 0.48, -0.36]
    path = dicom(tmp_path / "sa.dcm", picture(dtype=np.uint16), ImageOrientationPatient=short_axis)
    with pytest.raises(ImageError, match="oblique"):
        read_image(path)
    assert read_image(path, oblique=True).plane is not None


def test_dicom_refusals(tmp_path):
    array = picture(dtype=np.uint16)
    path = tmp_path / "bad.dcm"
    with pytest.raises(ImageError, match="3-D with 2 slices"):
        read_image(dicom(path, np.concatenate([array, array]), Rows=9, NumberOfFrames=2))
    with pytest.raises(ImageError, match="ends early: 144 bytes of pixels, expected 432"):
        read_image(dicom(path, array, PhotometricInterpretation="RGB", SamplesPerPixel=3))
    with pytest.raises(ImageError, match=r"spacing \(0, 1.5\) mm"):
        read_image(dicom(path, array, PixelSpacing=[0, 1.5]))
    with pytest.raises(ImageError, match="not a readable DICOM"):
        read_image(dicom(path, array, PixelData=b"\0\0"))


def bad_files(folder):
    """(file, what its message says) of everything that cannot be registered."""

    def nifti(name, array, affine=None, zoom=None):
        file = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
        nibabel.save(file, folder / name)
        if zoom is not None:  # nibabel would not write it
            with open(folder / name, "r+b") as raw:
                raw.seek(76 + 4)
                raw.write(np.float32(zoom).tobytes())
        return folder / name

    def png(name, array):
        PIL.Image.fromarray(array).save(folder / name)
        return folder / name

    def npz(name, **entries):
        np.savez(folder / name, **entries)
        return folder / name

    def text(name, content=b"hello"):
        (folder / name).write_bytes(content)
        return folder / name

    good = picture((8, 9))
    with_nan = good.copy()
    with_nan[2, 3] = np.nan
    colour = np.zeros((9, 8, 3), np.uint8)
    colour[..., 1] = picture(dtype=np.uint8)
    transparent = np.dstack([np.stack([picture(dtype=np.uint8)] * 3, -1), picture(dtype=np.uint8)])
    shear = np.eye(4)
    shear[0, 1] = 0.5
    rgb = np.zeros((8, 9, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"] = picture((8, 9, 1))
    cut = text("whole.png")
    PIL.Image.fromarray(picture((64, 64), np.uint8)).save(cut)
    return [
        (folder / "none.png", "no such file"),
        (folder, "not a readable image"),
        (text("notes.txt"), "not an image of a known kind"),
        (text("text.png"), "not a readable image"),
        (text("cut.png", cut.read_bytes()[:60]), "not a readable image"),
        (text("text.nii.gz"), "not a readable NIfTI"),
        (text("text.npz"), "not a readable NPZ"),
        (text("text.dcm"), "not a DICOM image"),
        (png("colour.png", colour), "colour image"),
        (png("clear.png", transparent), "transparent"),
        (png("constant.png", np.full((9, 8), 3, np.uint8)), "is constant"),
        (png("line.png", np.arange(9, dtype=np.uint8)[None]), "1 x 9 pixels, too few to register"),
        (nifti("3d.nii", picture((8, 9, 4))), "3-D with 4 slices; choose one with `slice` 0 to 3"),
        (nifti("4d.nii", picture((8, 9, 4, 2))), "has 2 frames; choose one with `frame` 0 to 1"),
        (nifti("5d.nii", picture((8, 9, 4, 2, 2))), "has 5 dimensions"),
        (nifti("nan.nii", with_nan), "holds NaN or infinite"),
        (nifti("rgb.nii", rgb), "colour image"),
        (nifti("complex.nii", good.astype(np.complex64)), "complex"),
        (nifti("zero.nii", good, zoom=0), r"spacing \(0, 1\) mm"),
        (nifti("negative.nii", good, zoom=-1.5), r"spacing \(-1.5, 1\) mm"),
        (nifti("shear.nii", good, shear), "not orthonormal"),
        (npz("zero.npz", image=good, spacing=[0, 1.0]), r"spacing \(0, 1\) mm"),
        (npz("inf.npz", image=good, spacing=[np.inf, 1.0]), r"spacing \(inf, 1\) mm"),
        (npz("shape.npz", image=good, spacing=[1.0]), "spacing has shape"),
        (npz("two.npz", a=good, b=good), 'expected an array "image"'),
        (npz("rgb.npz", image=picture((9, 8, 3))), "colour"),
        (npz("pickle.npz", image=np.array([{}])), "not a readable NPZ"),
        (npz("words.npz", image=np.array([["a", "b"], ["c", "d"]])), "expected numbers"),
    ]


def test_bad_input_gets_one_clear_line(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(ImageError, match=message) as caught:
            read_image(path)
        text = str(caught.value)
        assert text.startswith(str(path)) and "\n" not in text, text


def test_bad_choices(tmp_path):
    path = tmp_path / "stack.nii"
    nibabel.save(nibabel.Nifti1Image(picture((8, 9, 4)), np.eye(4)), path)
    for k in (4, -1):
        with pytest.raises(ImageError, match=rf"has no slice {k}; its slices are 0 to 3"):
            read_image(path, k)
    with pytest.raises(ImageError, match="not whole numbers"):
        write_image(path, picture() + 0.5, plain_geometry(picture().shape))
        read_image(path, labels=True)
    for spacing in (0, -1, (1, float("nan")), (1, 2, 3)):
        with pytest.raises(ImageError, match="spacing"):
            check_spacing(spacing, "image")
    with pytest.raises(ImageError, match=r"expected \[H, W\]"):
        images_from_array(picture((2, 3, 4)))[0][0]


def test_labels(tmp_path):
    path = tmp_path / "mask.nii.gz"
    labels = (picture() % 3).astype(np.float64)
    write_image(path, labels, plain_geometry(picture().shape))
    read = read_image(path, labels=True)
    assert read.array.dtype == np.int32
    np.testing.assert_array_equal(read.array, labels)


def test_writing_is_whole_or_not_at_all(tmp_path):
    geometry = plain_geometry(picture().shape)
    path = tmp_path / "image.png"
    path.write_text("earlier")
    with pytest.raises(ImageError, match="cannot hold"):
        write_image(path, picture(), geometry)
    with pytest.raises(ImageError, match="unknown suffix"):
        write_image(tmp_path / "image.jpg", picture(), geometry)
    with pytest.raises(FileError, match="cannot write there"):
        write_image(tmp_path / "absent" / "image.nii", picture(), geometry)
    with pytest.raises(AttributeError):  # something breaks in the middle of writing
        write_image(tmp_path / "image.npz", picture(), None)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["image.png"]


def test_round_to():
    values = np.array([-3.0, 0.6, 255.4, 300.0])
    np.testing.assert_array_equal(round_to(values, np.uint8), [0, 1, 255, 255])
    assert round_to(values, np.float32).dtype == np.float32
