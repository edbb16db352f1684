"""Every kind of file against SimpleITK's reading: the array and the geometry, or why not."""

import locale

import numpy as np
import pytest
import SimpleITK
from files.samples import (
    AS_ITK,
    EnhancedMRImageStorage,
    UltrasoundImageStorage,
    dicom,
    functional_groups,
    labels,
    picture,
    pillow,
    png,
    tiff,
    ultrasound_regions,
    with_opacity,
)

from ldm_morph_jax.files.reading import read_stored


@pytest.mark.parametrize("name", AS_ITK)
def test_as_simpleitk(tmp_path, name):
    path = tmp_path / name
    AS_ITK[name](path)
    before = locale.setlocale(locale.LC_ALL)
    stored = read_stored(path)
    assert locale.setlocale(locale.LC_ALL) == before  # ITK's VTK reader changes it
    itk = SimpleITK.ReadImage(path)
    locale.setlocale(locale.LC_ALL, before)
    array = SimpleITK.GetArrayFromImage(itk)
    if itk.GetNumberOfComponentsPerPixel() > 1:
        array = array[..., 0]  # grey in channels
    assert stored.array.dtype == array.dtype
    np.testing.assert_array_equal(stored.array.reshape(array.shape), array)
    n = stored.geometry.dimension
    m = itk.GetDimension()
    assert n == min(m, 3)
    np.testing.assert_allclose(stored.geometry.spacing[::-1], itk.GetSpacing()[:n], rtol=1e-6)
    np.testing.assert_allclose(stored.geometry.origin, itk.GetOrigin()[:n], atol=1e-5)
    direction = np.reshape(itk.GetDirection(), (m, m))[:n, :n]
    np.testing.assert_allclose(stored.geometry.direction, direction, atol=1e-6)


# name -> (writer, what we read, what SimpleITK makes of it); the reasons are in docs/files.md
GREY16, GREY8, TREES = picture(np.uint16), picture(np.uint8), labels()
COLOURS = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
THREE = np.stack([GREY16] * 3, axis=-1)
PLANAR = np.moveaxis(THREE, -1, 0)
DIFFERENT = {
    "grey and opacity 8.png": (png(with_opacity(GREY8), 4, bits=8), GREY8, "refused"),
    "grey and opacity 16.png": (png(with_opacity(GREY16), 4), GREY16, "refused"),
    "int64.tif": (tiff(picture(np.int64)), picture(np.int64), "refused"),
    "float64.tif": (tiff(picture(np.float64)), picture(np.float64), "refused"),
    "float16.tif": (tiff(picture(np.float16)), picture(np.float16), "other values"),
    "planar.tif": (
        tiff(PLANAR, photometric="rgb", planarconfig="separate"),
        GREY16,
        "other values",
    ),
    "tiled.tif": (tiff(GREY16, tile=(16, 16)), GREY16, "other values"),
    "bilevel.tif": (tiff(TREES > 0, photometric="minisblack"), TREES > 0, "other values"),
    "grey and opacity.tif": (
        tiff(with_opacity(GREY16), photometric="minisblack", extrasamples=[2]),
        GREY16,
        "other values",
    ),
    "0 is white.tif": (tiff(GREY16, photometric="miniswhite"), 65535 - GREY16, "other values"),
    "dots per inch.tif": (pillow(GREY16, dpi=(300, 300)), GREY16, "other geometry"),
    "dots per inch.png": (pillow(GREY8, dpi=(300, 300)), GREY8, "same"),
    "scaled frame by frame.dcm": (
        dicom(
            np.stack([GREY16, GREY16]),
            EnhancedMRImageStorage,
            **functional_groups([7, 15], slopes=[2.0, 3.0]),
        ),
        np.stack([GREY16 * 2.0, GREY16 * 3.0]),
        "other values",
    ),
    "regions.dcm": (
        dicom(GREY8, UltrasoundImageStorage, SequenceOfUltrasoundRegions=ultrasound_regions()),
        GREY8,
        "other geometry",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_where_we_differ(tmp_path, name):
    write, expected, itk = DIFFERENT[name]
    path = tmp_path / name
    write(path)
    stored = read_stored(path)
    np.testing.assert_array_equal(np.squeeze(stored.array), expected)
    try:
        image = SimpleITK.ReadImage(path)
    except RuntimeError:
        assert itk == "refused"
        return
    array = np.squeeze(SimpleITK.GetArrayFromImage(image))
    same_values = array.shape == expected.shape and np.array_equal(array, expected)
    n = stored.geometry.dimension
    same_place = np.allclose(image.GetSpacing()[:n], stored.geometry.spacing[::-1])
    assert itk == (
        "other values" if not same_values else "same" if same_place else "other geometry"
    )
