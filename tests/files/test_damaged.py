"""Damaged files are refused in one line, or read as they were; see tests/fuzz_files.py."""

import subprocess
import sys

import fuzz_files
import numpy as np
import pytest
import SimpleITK
from files import samples

from ldm_morph_jax.data.nifti import read_nifti
from ldm_morph_jax.files.errors import FileError


@pytest.mark.parametrize("name", fuzz_files.FORMATS)
def test_some_damages_of_each_format(tmp_path, name):
    outcomes, faults = fuzz_files.fuzz(tmp_path, name, damages=24, seed=3)
    assert faults == [] and outcomes["refused"] >= 6  # a quarter is cut short


@pytest.mark.parametrize("damage", ["bit", "cut"])
def test_archives_refuse_a_damaged_gzip_stream(tmp_path, damage):
    path = tmp_path / "image.nii.gz"
    samples.itk(fuzz_files.GREY16)(path)
    data = bytearray(path.read_bytes())
    data[-6] ^= 4
    path.write_bytes(data if damage == "bit" else data[:-200])
    with pytest.raises(
        FileError, match=r"image.nii.gz: not a readable NIfTI file \(damaged or cut"
    ):
        read_nifti(path, 2)


def test_archive_reader_has_the_files_axes(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.5, 2.5, 8.0))
    SimpleITK.WriteImage(image, tmp_path / "image.nii.gz")
    read, spacing = read_nifti(tmp_path / "image.nii.gz", 3)
    np.testing.assert_array_equal(read, array.T)
    assert spacing == (1.5, 2.5, 8.0)
    with pytest.raises(FileError, match=r"has shape \(4, 3, 2\), expected 2 dimensions"):
        read_nifti(tmp_path / "image.nii.gz", 2)


def test_reading_imports_only_what_it_needs():
    code = (
        "import sys\n"
        "from ldm_morph_jax.files import images, tables, transforms, writing\n"
        "heavy = ('matplotlib', 'tensorflow_datasets', 'pydicom', 'SimpleITK', 'tifffile', 'PIL',"
        " 'nibabel', 'jax', 'av')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
