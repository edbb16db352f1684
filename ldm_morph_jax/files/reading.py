"""Reading an image file of any kind.

One reader per kind of file; which one is decided by what ITK recognises in the file, so that a
wrong suffix changes nothing. Everything ITK opens is opened here, with the same array and
geometry; docs/files.md lists where we deliberately differ.
"""

import os
from dataclasses import replace
from pathlib import Path

from ldm_morph_jax.files import arrays, dicom, itk, nifti, pictures
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.stored import Stored

FORMATS = "NIfTI, MetaImage, NRRD, DICOM, PNG, TIFF, JPEG, BMP, NPZ, NPY"


def read_stored(
    path: str | os.PathLike, *, labels: bool = False, luminance: bool = False
) -> Stored:
    """Everything an image file holds.

    Args:
        path: the file.
        labels: the values are labels; those of a picture with a palette are its indices.
        luminance: accept colour, as its luminance. Otherwise colour is refused.

    Raises:
        ImageError: one line, on files that ITK refuses, that are damaged or hold no grey image.
    """
    path = Path(path)
    source = str(path)
    kind = kind_of(path)
    stored = _READERS.get(kind, itk.read)(path, source, labels=labels, luminance=luminance)
    if 0 in stored.array.shape:
        raise ImageError(f"{source}: has shape {stored.array.shape[1:]}, it holds no pixel")
    return _slices_first(stored)


def kind_of(path: Path) -> str:
    """What reads a file: the name of a class of ITK, `ARRAYS` or another one of `_READERS`.

    Raises:
        ImageError: no file, or one that nothing here reads.
    """
    source = str(path)
    if not path.is_file():
        raise ImageError(
            f"{source}: no such file" if not path.exists() else f"{source}: not a file"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError as error:
        raise ImageError(f"{source}: cannot be read ({error.strerror})") from None
    if path.suffix.lower() in (".npz", ".npy"):
        return ARRAYS
    # not asking ITK about these: of damaged ones it prints on stdout, crashes, or takes a gigabyte
    starts = (kind for kind, at, start in _STARTS if head.startswith(start, at))
    kind = next(starts, None) or itk.recognise(path)
    if kind is None:
        kind = _claimed_kind(path)
        if kind is None:
            raise ImageError(f"{source}: not an image of a known kind; expected {FORMATS}")
        if kind not in _TELL_WHY:
            raise ImageError(f"{source}: not a readable image (damaged, or not what its name says)")
    return kind


ARRAYS, DICOM = "arrays", "GDCMImageIO"
# by the class of ITK that recognises the file; others are read by ITK alone
_READERS = {
    ARRAYS: arrays.read_array_file,
    "NiftiImageIO": nifti.read,
    DICOM: dicom.read,
    "PNGImageIO": pictures.read_png,
    "TIFFImageIO": pictures.read_tiff,
    "LSMImageIO": pictures.read_tiff,
    "JPEGImageIO": pictures.read_jpeg,
    "JPEG2000ImageIO": pictures.read_jpeg2000,
    "BMPImageIO": pictures.read_bmp,
}
_STARTS = (
    (ARRAYS, 0, b"PK\3\4"),
    (ARRAYS, 0, b"\x93NUMPY"),
    ("JPEGImageIO", 0, b"\xff\xd8"),
    ("JPEG2000ImageIO", 0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG2000ImageIO", 0, b"\xff\x4f\xff\x51"),
    (DICOM, 128, b"DICM"),  # DICOM files often have no suffix
    (DICOM, 0, b"DICM"),  # without the preamble
    (DICOM, 0, b"\2\0\0\0UL\4\0"),  # nor the letters
)
# Kinds whose reader knows better than ITK why a file cannot be read.
_TELL_WHY = ("NiftiImageIO", DICOM)
_SUFFIXES = {
    "NiftiImageIO": (".nii", ".nii.gz"),
    DICOM: (".dcm",),
    "PNGImageIO": (".png",),
    "TIFFImageIO": (".tif", ".tiff"),
    "JPEGImageIO": (".jpg", ".jpeg"),
    "JPEG2000ImageIO": (".jp2", ".j2k"),
    "BMPImageIO": (".bmp",),
    "MetaImageIO": (".mha", ".mhd"),
    "NrrdImageIO": (".nrrd", ".nhdr"),
}


def _claimed_kind(path: Path) -> str | None:
    """What a file that ITK does not recognise should be, by its suffix."""
    name = path.name.lower()
    return next((kind for kind, ends in _SUFFIXES.items() if name.endswith(ends)), None)


def _slices_first(stored: Stored) -> Stored:
    """Volumes of one column or one row are single slices along another axis: bring it first.

    `[T, A, B, 1]` becomes `[T, 1, A, B]`, `[T, A, 1, B]` likewise: what NIfTI files of shape
    (1, H, W) and (H, 1, W) hold.
    """
    single = [axis for axis, size in enumerate(stored.array.shape[1:]) if size == 1]
    if stored.geometry.dimension != 3 or single not in ([1], [2]):
        return stored
    order = (*single, *(axis for axis in range(3) if axis not in single))
    old = stored.geometry
    geometry = Geometry(
        tuple(old.shape[axis] for axis in order),
        tuple(old.spacing[axis] for axis in order),
        old.origin,
        old.direction[:, [2 - axis for axis in order[::-1]]],
    )
    array = stored.array.transpose(0, *(1 + axis for axis in order))
    return replace(stored, array=array, geometry=geometry)
