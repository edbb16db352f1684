"""A folder of image files that are the frames of a cine, the slices of a volume, or both."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm_morph_jax.files import reading, series
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.stored import Stored

# what exports put beside images
_NO_IMAGES = ("dicomdir", "thumbs.db", "desktop.ini", "lockfile")
_NO_IMAGE_SUFFIXES = (".txt", ".csv", ".json", ".xml", ".html", ".pdf", ".md", ".log", ".inf")


def read_folder(path: Path, *, labels: bool = False, luminance: bool = False) -> Stored:
    """What a folder holds: DICOM files by their headers, others as frames by number.

    Arguments as in `reading.read_stored`. Where a folder holds nothing but folders, their files are
    taken.

    Raises:
        ImageError: no image, files that do not belong together, frames that are missing or cannot
            be put in order, and what `read_stored` refuses.
    """
    source = str(path)
    files = images_in(path)
    if not files:
        raise ImageError(f"{source}: the folder holds no file")
    if len(files) == 1:
        return reading.read_stored(files[0], labels=labels, luminance=luminance)
    dicom = [file for file in files if reading.kind_of(file) == reading.DICOM]
    if dicom and len(dicom) < len(files):
        other = next(file for file in files if file not in dicom)
        raise ImageError(f"{source}: holds DICOM files and others ({other.name})")
    if dicom:
        return series.read_series(dicom, source, luminance=luminance)
    return _numbered(files, source, labels=labels, luminance=luminance)


def images_in(path: Path) -> list[Path]:
    """The files of a folder that may be images; those of its folders where it holds no file."""
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    files = [entry for entry in entries if entry.is_file() and not _is_no_image(entry)]
    if not files:
        files = [file for entry in entries if entry.is_dir() for file in images_in(entry)]
    return files


def _is_no_image(file: Path) -> bool:
    return file.name.lower() in _NO_IMAGES or file.suffix.lower() in _NO_IMAGE_SUFFIXES


def _numbered(files: list[Path], source: str, **options) -> Stored:
    """Frames (or volumes in time) by the numbers in their names."""
    patterns = sorted({re.sub(r"\d+", "#", file.name) for file in files})
    if len(patterns) > 1:
        raise ImageError(
            f"{source}: its files are named {patterns[0]!r} and {patterns[1]!r}, expected names "
            "that differ in their numbers only"
        )
    files = sorted(files, key=_numbers)
    for before, after in itertools.pairwise(files):
        if _numbers(before) == _numbers(after):
            raise ImageError(f"{source}: {before.name} and {after.name} have the same number")
    frames = [reading.read_stored(file, **options) for file in files]
    first = frames[0]
    for file, frame in zip(files, frames, strict=True):
        if len(frame.array) > 1:
            raise ImageError(f"{file}: holds {len(frame.array)} frames, expected one")
        same_place = frame.geometry.same_as(first.geometry)
        if frame.array.dtype != first.array.dtype or not same_place:
            raise ImageError(
                f"{file}: has another grid, place or type than {files[0]}, expected the same in "
                "all frames"
            )
    return replace(first, array=np.concatenate([frame.array for frame in frames]))


def _numbers(file: Path) -> list[int]:
    """Sorts frame2.png before frame10.png."""
    return [int(number) for number in re.findall(r"\d+", file.name)]
