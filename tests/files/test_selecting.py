"""Frames, slices, planes, spacing by hand, and masks that are stored unlike their images."""

import os
import re
from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import nibabel
import numpy as np
import pytest
import SimpleITK
from files import samples

from ldm_morph_jax.files.errors import ImageError, as_flags
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import (
    Image,
    check_cover,
    images_from_array,
    images_of,
    read_image,
    read_mask,
    resample_image,
    resample_labels,
)
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.files.writing import write_image

CINE = np.stack(
    [np.stack([samples.picture(np.int16, seed=10 * t + k) for k in range(3)]) for t in range(4)]
)
UINT8 = samples.picture(np.uint8)


def random(shape):
    return np.random.default_rng(1).random(shape)


def written(path, write):
    write(path)
    return path


def test_frames_and_slices_of_a_cine(tmp_path):
    path = written(tmp_path / "cine.nii.gz", samples.nifti(CINE.T))
    np.testing.assert_array_equal(read_image(path, 1, frame=2).array, CINE[2, 1])
    np.testing.assert_array_equal(read_image(path, "all", frame=3).array, CINE[3])
    first = read_image(path, 1)
    np.testing.assert_array_equal(first.array, CINE[0, 1])
    assert first.notes == ("the first of 4 frames",) and read_image(path, 1, frame=0).notes == ()
    with pytest.raises(ImageError, match="has 4 frames; choose one with `frame` 0 to 3"):
        read_image(path)
    with pytest.raises(ImageError, match="has no frame 4; its frames are 0 to 3"):
        read_image(path, 0, frame=4)
    with pytest.raises(ImageError, match="3-D with 3 slices; choose one with `slice` 0 to 2"):
        read_image(path, frame=1)


ULTRASOUND = samples.dicom(
    np.stack([UINT8 // (k + 1) for k in range(4)]),
    samples.UltrasoundMultiFrameImageStorage,
    FrameTime=40,
)


@pytest.mark.parametrize(
    "name, write",
    [("cine.nii", samples.nifti(CINE[:, :1].T)), ("cine.dcm", ULTRASOUND)],  # (W, H, 1, T)
)
def test_a_slice_of_frames_is_a_frame_as_itk_counts(tmp_path, name, write):
    path = written(tmp_path / name, write)
    for k in range(4):
        np.testing.assert_array_equal(read_image(path, k).array, read_image(path, frame=k).array)
    assert read_image(path, "all").array.shape == (4, *samples.SHAPE)


@pytest.mark.parametrize("axis", [0, 1])
def test_nifti_of_one_column_or_row_is_a_slice(tmp_path, axis):
    """(1, H, W) and (H, 1, W): the other two axes are the picture's, as numpy.squeeze has it."""
    array = samples.picture(np.float32)
    path = written(tmp_path / "one.nii", samples.nifti(np.expand_dims(array, axis), np.eye(4)))
    image = read_image(path)
    np.testing.assert_array_equal(image.array, array.T)
    # where it lies: a pixel's position in the file's own terms, RAS turned to LPS
    index = np.insert([3.0, 2.0], axis, 0.0)  # (i, j, k) of the file
    position = image.space.to_physical(np.array([0.0, 2.0, 3.0]))
    np.testing.assert_allclose(position, index * [-1, -1, 1])
    assert image.plane is not None  # sagittal or coronal, but not oblique: needs no --oblique


def test_spacing_by_hand(tmp_path):
    picture = written(tmp_path / "a.png", samples.pillow(UINT8))
    identity = written(tmp_path / "identity.nii", samples.nifti(UINT8.T, np.eye(4), codes=(0, 2)))
    none = written(tmp_path / "none.nii", samples.nifti(UINT8.T, None))
    own = written(tmp_path / "own.mha", samples.itk(UINT8))
    for path in (picture, identity, none):
        image = read_image(path, spacing=(2.0, 1.25))
        assert image.spacing == (2.0, 1.25) and image.spacing_known
    assert not read_image(none).spacing_known and read_image(identity).spacing_known
    assert read_image(own, spacing=(2.5, 1.5)).spacing == (2.5, 1.5)  # says the same
    with pytest.raises(ImageError, match=r"own.mha: its spacing is 2.5 x 1.5 mm, 1 x 1 mm was"):
        read_image(own, spacing=1)


@pytest.mark.parametrize("spacing", [125, 0.00125, (1.25, 0), (1.25, -1), np.nan])
def test_spacing_that_no_heart_has(tmp_path, spacing):
    """Metres, centimetres times hundred, nonsense: by hand and in files, where a hand may help."""
    both = np.broadcast_to(spacing, 2)
    message = "spacing .* mm, expected"
    with pytest.raises(ImageError, match=message):
        images_from_array(UINT8, spacing)[0][0]
    path = written(tmp_path / "a.png", samples.pillow(UINT8))
    with pytest.raises(ImageError, match=f"a.png: {message}"):
        read_image(path, spacing=spacing)
    np.savez(tmp_path / "a.npz", image=UINT8, spacing=both)
    with pytest.raises(ImageError, match=f"a.npz: {message}"):
        read_image(tmp_path / "a.npz")
    if np.min(both) > 0:
        with pytest.raises(ImageError, match="in another unit.*give its `spacing`"):
            read_image(tmp_path / "a.npz")
        assert read_image(tmp_path / "a.npz", spacing=1.25).spacing == (1.25, 1.25)


def test_images_too_small_to_register(tmp_path):
    np.savez(tmp_path / "a.npz", image=random((4, 4)))
    message = "has 4 x 4 pixels, too few to register; expected at least 8 x 8"
    with pytest.raises(ImageError, match=f"a.npz: {message}"):
        read_image(tmp_path / "a.npz")
    with pytest.raises(ImageError, match=f"image: {message}"):
        images_from_array(random((4, 4)))[0][0]
    with pytest.raises(ImageError, match="16 x 4000 pixels, too narrow to register; expected at"):
        images_from_array(random((16, 4000)))[0][0]


def test_masked_pixels_are_refused(tmp_path):
    filled = random((12, 10))
    filled[:6] = 1e20
    masked = np.ma.masked_greater(filled, 1e19)
    with pytest.raises(ImageError, match=r"image: 50 % of its pixels are masked.*filled\(0\)"):
        images_from_array(masked)[0][0]
    with pytest.raises(ImageError, match="frames: 50 % of its pixels are masked"):
        cine_from_arrays(np.ma.stack([masked, masked]))
    whole = np.ma.masked_array(random((12, 10)))  # nothing masked
    assert type(images_from_array(whole)[0][0].array) is np.ndarray


def test_images_of_anything(tmp_path):
    path = written(tmp_path / "a.mha", samples.itk(UINT8))
    file = read_image(path)
    for value in (path, str(path), SimpleITK.ReadImage(path), file):
        [image], batch = images_of(value)
        np.testing.assert_array_equal(image.array, UINT8)
        assert not batch and image.geometry.same_as(file.geometry)
        assert images_of(value, spacing=(2.5, 1.5))[0][0].spacing == (2.5, 1.5)
        with pytest.raises(ImageError, match="its spacing is 2.5 x 1.5 mm, 1 x 1 mm was given"):
            images_of(value, spacing=1)
    for value in (UINT8, jnp.asarray(UINT8), UINT8.tolist()):
        [image], batch = images_of(value, spacing=1.25)
        np.testing.assert_array_equal(image.array, UINT8)
        assert not batch and image.spacing == (1.25, 1.25)
    assert images_of(images_from_array(UINT8)[0][0], spacing=2)[0][0].spacing == (2, 2)
    images, batch = images_of(np.stack([UINT8, UINT8]))
    assert batch and len(images) == 2
    stack = written(tmp_path / "b.nii", samples.nifti(CINE.T))
    [image], _ = images_of(stack, slice=1, frame=2)
    np.testing.assert_array_equal(image.array, CINE[2, 1])
    in_colour = SimpleITK.GetImageFromArray(np.stack([UINT8, UINT8, UINT8 // 2], -1), isVector=True)
    with pytest.raises(ImageError, match="moving: colour image, expected grey values"):
        images_of(in_colour, source="moving")
    for slice in ("first", 1.5):
        with pytest.raises(ImageError, match=f"found `slice` {slice!r}, expected a whole number"):
            images_of(stack, slice=slice, frame=2)
    with pytest.raises(ImageError, match="none.nii: no such file"):
        images_of(tmp_path / "none.nii")


def test_messages_name_options_as_python_and_the_command_line_have_them(tmp_path):
    path = written(tmp_path / "cine.nii.gz", samples.nifti(CINE.T))
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "choose one with `frame` 0 to 3" in str(caught.value)
    assert as_flags(str(caught.value)).endswith("choose one with --frame 0 to 3")
    assert as_flags("give `fps` or `frame_times`") == "give --fps or --frame-times"


def heart(shape=(4, 12, 10)):
    geometry = Geometry(
        shape, (8.0, 1.5, 1.25), np.array([5.0, -7.0, 30.0]), np.diag([-1, -1, 1.0])
    )
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    return labels, geometry


def stored_otherwise(array, geometry, axis, path):
    """The same values at the same positions, one axis the other way round."""
    index = np.zeros(geometry.dimension)
    index[axis] = geometry.shape[axis] - 1
    direction = geometry.direction.copy()
    direction[:, geometry.dimension - 1 - axis] *= -1
    other = replace(geometry, origin=geometry.to_physical(index), direction=direction)
    write_image(path, np.flip(array, axis), other)
    return path


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slice", [0, 3, "all", (1, 2)])
def test_mask_stored_otherwise_than_its_image(tmp_path, axis, slice):
    labels, geometry = heart()
    write_image(tmp_path / "image.nii.gz", random(labels.shape), geometry)
    mask = stored_otherwise(labels, geometry, axis, tmp_path / "mask.nii.gz")
    image = read_image(tmp_path / "image.nii.gz", slice)
    read = read_mask(mask, image, slice)
    np.testing.assert_array_equal(read.array, labels if slice == "all" else labels[np.array(slice)])
    assert read.geometry is image.geometry and read.source == str(mask)
    # and a mask of the right slice alone
    if isinstance(slice, int):
        one = replace(geometry, shape=(1, 12, 10), origin=image.space.origin)
        write_image(tmp_path / "one.nii.gz", labels[slice : slice + 1], one)
        np.testing.assert_array_equal(
            read_mask(tmp_path / "one.nii.gz", image).array, labels[slice]
        )


def test_mask_on_a_finer_grid(tmp_path):
    labels, geometry = heart((1, 12, 10))
    fine = replace(geometry, shape=(1, 36, 30), spacing=(8.0, 0.5, 1.25 / 3))
    fine = replace(fine, origin=geometry.to_physical(np.array([0, -1 / 3, -1 / 3])))
    write_image(tmp_path / "mask.nii.gz", np.kron(labels, np.ones((1, 3, 3), np.uint8)), fine)
    image = Image(random((12, 10)), *_sliced(geometry))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", image).array, labels[0])


def _sliced(geometry):
    flat = Geometry(
        geometry.shape[1:], geometry.spacing[1:], geometry.origin[:2], geometry.direction[:2, :2]
    )
    return flat, True, True, None, "image", geometry


@pytest.mark.parametrize("move, share", [((0, 0, 2), 80), ((0, 30, 0), 0), ((1, 0, 0), 0)])
def test_mask_that_does_not_cover_its_image(tmp_path, move, share):
    labels, geometry = heart((1, 12, 10))
    image = Image(random((12, 10)), *_sliced(geometry))
    moved = replace(geometry, origin=geometry.to_physical(np.array(move, float)))
    write_image(tmp_path / "mask.nii.gz", labels, moved)
    with pytest.raises(ImageError, match=rf"mask.nii.gz: covers {share} % of image, expected all"):
        read_mask(tmp_path / "mask.nii.gz", image)


def test_mask_without_a_place_must_have_its_images_shape(tmp_path):
    labels, geometry = heart((1, 12, 10))
    image = Image(random((12, 10)), *_sliced(geometry))
    path = written(tmp_path / "mask.png", samples.pillow(labels[0]))
    np.testing.assert_array_equal(read_mask(path, image).array, labels[0])
    path = written(tmp_path / "mask.png", samples.pillow(labels[0].T))
    with pytest.raises(ImageError, match=r"mask is \(10, 12\), its image image \(12, 10\); they"):
        read_mask(path, image)
    np.savez(tmp_path / "mask.npz", image=labels[0], spacing=[3.0, 3.0])
    with pytest.raises(ImageError, match=r"has spacing 3 x 3 mm, its image image 1.5 x 1.25 mm"):
        read_mask(tmp_path / "mask.npz", image)


def test_resampling_an_image(tmp_path):
    labels, geometry = heart()
    image = Image(random(labels.shape), geometry)
    path = stored_otherwise(image.array, geometry, 2, tmp_path / "other.nii.gz")
    other = read_image(path, "all")
    np.testing.assert_allclose(resample_image(other, image).array, image.array, atol=1e-6)
    assert resample_image(image, image).array.dtype == np.float64  # not interpolated
    with pytest.raises(ImageError, match="one is a stack of slices"):
        resample_labels(
            Image(labels[0], Geometry((12, 10), (1.5, 1.25), np.zeros(2), np.eye(2))), image
        )
    check_cover(image, geometry, "the transform")
    with pytest.raises(ImageError, match="covers 75 % of the transform"):
        far = replace(geometry, origin=geometry.to_physical(np.array([1.0, 0, 0])))
        check_cover(image, far, "the transform")


COLOURS, GREYS = [[0, 0, 0], [255, 0, 0], [0, 255, 0]], [[0, 0, 0], [128] * 3, [255] * 3]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "lzw.tif"])
@pytest.mark.parametrize("colours", [COLOURS, GREYS])
def test_labels_of_a_palette_are_its_indices(tmp_path, suffix, colours):
    path = tmp_path / f"mask.{suffix}"
    if suffix == "lzw.tif":
        samples.palette(samples.labels(), colours, compression="tiff_lzw")(path)
    elif suffix == "tif":
        table = np.zeros((3, 256), np.uint16)
        table[:, :3] = np.transpose(colours) * 257
        samples.tiff(samples.labels(), photometric="palette", colormap=table)(path)
    else:
        samples.palette(samples.labels(), colours)(path)
    np.testing.assert_array_equal(read_image(path, labels=True).array, samples.labels())
    if colours is GREYS:
        grey = read_image(path).array
        assert np.unique(grey // (256 if "tif" in suffix else 1)).tolist() == [0, 128, 255]
    else:
        with pytest.raises(ImageError, match="colour image"):
            read_image(path)


@pytest.mark.parametrize(
    "name, write",
    {
        "bits1.png": samples.png(samples.labels() > 0, 0, bits=1),
        "bits2.png": samples.png(samples.labels(), 0, bits=2),
        "bits4.png": samples.png(samples.labels(), 0, bits=4),
        "bilevel.tif": samples.tiff(samples.labels() > 0, photometric="minisblack"),
        "bilevel fax.tif": samples.pillow(samples.labels() > 0, compression="group4"),
        "0 is white.tif": samples.tiff(samples.labels(), photometric="miniswhite"),
    }.items(),
)
def test_labels_keep_their_numbers(tmp_path, name, write):
    path = written(tmp_path / name, write)
    two = "1" in name or "bilevel" in name
    expected = samples.labels() > 0 if two else samples.labels()
    np.testing.assert_array_equal(read_image(path, labels=True).array, expected)


def test_arrays_of_every_shape():
    grey = samples.picture(np.float32)
    np.testing.assert_array_equal(images_from_array(grey)[0][0].array, grey)
    images, batched = images_from_array(np.stack([grey, grey + 1]), (2.0, 1.0))
    assert batched and len(images) == 2 and images[1].spacing == (2.0, 1.0)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        image = images_from_array(grey.astype(dtype))[0][0]
        assert image.array.dtype == np.float32
        np.testing.assert_array_equal(image.array, grey.astype(dtype).astype(np.float32))
    channels = [np.stack([grey] * n, -1) for n in (1, 2, 3, 4)]
    for array in (*channels, grey[None, None], grey[None, ..., None], grey[0]):
        shape = re.escape(str(array.shape))
        message = (
            rf"moving: found shape {shape}, expected \[H, W\] or \[B, H, W\] .*image\[..., 0\]"
        )
        with pytest.raises(ImageError, match=message):
            images_from_array(array, source="moving")
    with pytest.raises(ImageError, match="expected numbers"):
        images_from_array(np.array([["a", "b"], ["c", "d"]]))[0][0]
    with pytest.raises(ImageError, match=r"image\[1\]: holds NaN"):
        images_from_array(np.stack([grey, grey * np.nan]))


def test_numpy_files(tmp_path):
    grey = samples.picture(np.float32)
    np.save(tmp_path / "a.npy", grey)
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    np.savez(tmp_path / "half.npz", image=grey.astype(np.float16)[..., None])
    opaque = np.ones_like(grey)
    for file, planes in {"1": [grey], "2": [grey, opaque], "3": [grey] * 3}.items():
        np.save(tmp_path / f"{file}.npy", np.stack(planes, -1))
    np.save(tmp_path / "4.npy", np.stack([grey] * 3 + [opaque], -1))
    for name in ("a.npy", "renamed.npz", "1.npy", "2.npy", "3.npy", "4.npy"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array, grey)
    assert read_image(tmp_path / "half.npz").array.dtype == np.float32
    np.savez(tmp_path / "words.npz", image=grey, spacing=["a", "b"])
    with pytest.raises(ImageError, match=r"words.npz: spacing has shape \(2,\) of <U1, expected"):
        read_image(tmp_path / "words.npz")


@pytest.mark.parametrize("name", [b"J\xe9r\xf4me.nii.gz", rb"a$\frac{$b.nii.gz", "é 心 x.nii.gz"])
def test_any_file_name(tmp_path, name):
    folder = tmp_path / os.fsdecode(b"fold\xe9r")
    folder.mkdir()
    for path in (tmp_path / os.fsdecode(name), folder / os.fsdecode(name)):
        _, geometry = heart()
        array = random(geometry.shape)
        write_image(path, array, geometry)
        np.testing.assert_array_equal(read_image(path, "all").array, array)
        assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]


def test_mhd_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / os.fsdecode(b"fold\xe9r")
    folder.mkdir()
    samples.itk(UINT8)(tmp_path / "image.mhd")
    for file in tmp_path.glob("image.*"):
        file.rename(folder / file.name)
    np.testing.assert_array_equal(read_image(folder / "image.mhd").array, UINT8)


def test_enhanced_cine(tmp_path):
    """Frames by position and trigger delay, in whatever order they are stored; ITK refuses them."""
    frames = np.stack([samples.picture(np.uint16, seed=k) for k in range(6)])
    path = written(
        tmp_path / "cine.dcm",
        samples.dicom(
            frames,
            samples.EnhancedMRImageStorage,
            **samples.functional_groups([7, 15, 7, 15, 7, 15], delays=[80, 80, 0, 0, 40, 40]),
        ),
    )
    scaled = frames * 2.0 - 100
    for t, stored in enumerate((2, 4, 0)):
        image = read_image(path, "all", frame=t)
        np.testing.assert_array_equal(image.array, scaled[stored : stored + 2])
    assert image.geometry.spacing == (8.0, 2.5, 1.5) and image.spacing_known
    np.testing.assert_allclose(image.origin, [-12, 34.5, 7])
    uneven = samples.functional_groups([7, 15, 30])
    written(path, samples.dicom(frames[:3], samples.EnhancedMRImageStorage, **uneven))
    with pytest.raises(ImageError, match="its slices are not evenly spaced"):
        read_image(path, 0)


def test_nifti_2_is_refused_in_plain_words(tmp_path):
    path = tmp_path / "two.nii"
    nibabel.save(nibabel.Nifti2Image(UINT8.T, np.eye(4)), path)
    with pytest.raises(ImageError, match="two.nii: NIfTI-2, which ITK does not read; convert"):
        read_image(path)


def test_compression_that_needs_a_package(tmp_path):
    path = tmp_path / "image.tif"
    samples.tiff(samples.picture(np.uint16))(path)
    data = path.read_bytes()
    tag = b"\x03\x01\x03\x00\x01\x00\x00\x00"  # compression, one short number
    at = data.index(tag) + len(tag)
    path.write_bytes(data[:at] + (34712).to_bytes(2, "little") + data[at + 2 :])  # JPEG 2000
    with pytest.raises(ImageError, match=r"compressed by JPEG2000, which needs: pip install 'ldm_"):
        read_image(path)
