"""Preprocessing of images and masks, shared by all datasets, with checks."""

import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ldm_morph_jax.files.writing import sha256

INTENSITIES = ("minmax", "percentile")


def check_image(image: np.ndarray, name: str) -> None:
    """Raises ValueError for an image that is not [H, W], or that `check_values` refuses."""
    if image.ndim != 2:
        raise ValueError(f"{name}: expected one grey image [H, W], found shape {image.shape}")
    check_values(image, name)


def check_values(image: np.ndarray, name: str) -> None:
    """Raises ValueError for a NaN or infinite value, or the same value everywhere.

    image: [*space], any real type; name: file or key for the message.
    """
    bad = image.size - np.count_nonzero(np.isfinite(image))
    if bad:
        raise ValueError(f"{name}: expected finite values, found {bad} NaN or infinite pixels")
    if image.size == 0 or image.min() == image.max():
        raise ValueError(f"{name}: constant image (no contrast), cannot be registered")


def check_mask(
    mask: np.ndarray, image: np.ndarray, name: str, values: Iterable[int] | None = None
) -> None:
    """Raises ValueError for a mask that differs from its image in size or has unexpected values."""
    if mask.shape != image.shape:
        raise ValueError(f"{name}: mask is {mask.shape}, its image {image.shape}; they must agree")
    if values is not None:
        found = np.setdiff1d(mask, list(values))
        if found.size:
            expected = sorted(values)
            known = expected if len(expected) < 10 else f"{expected[0]} to {expected[-1]}"
            raise ValueError(
                f"{name}: mask values must be among {known}, "
                f"found {found[:8].tolist()}{' ...' if found.size > 8 else ''}"
            )


def min_max(image: np.ndarray) -> np.ndarray:
    """Scales an image linearly to [0, 1] (paper, section on data), float32."""
    low, high = float(image.min()), float(image.max())
    return ((image.astype(np.float64) - low) / (high - low)).astype(np.float32)


def percentile(image: np.ndarray) -> np.ndarray:
    """Clips an image to its 1st to 99th percentile, then scales to [0, 1], float32.

    A few very bright pixels (fat, vessels) determine the scale of `min_max`. Clipping them makes
    the intensities of two phases of one heart more similar.
    """
    below, above = np.percentile(image, [1, 99])
    if below == above:  # at least 98 % of the pixels are equal: clipping would erase the rest
        return min_max(image)
    return min_max(np.clip(image, below, above))


def normalise(image: np.ndarray, intensity: str, name: str) -> np.ndarray:
    """Checks an image [*space] and scales it to [0, 1] by one of INTENSITIES; float32."""
    check_values(image, name)
    if intensity not in INTENSITIES:
        raise ValueError(f"intensity must be one of {INTENSITIES}, found {intensity!r}")
    return min_max(image) if intensity == "minmax" else percentile(image)


def resize(array: np.ndarray, shape: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """Resizes [H, W] to `shape`: cubic spline, or nearest for labels; float64 or the labels' type.

    Corner pixel centres stay corner pixel centres, as in `scipy.ndimage.zoom` by default and in the
    published preprocessing. Only the treatment beyond the border differs, because with zoom's
    default, rounding sometimes turns the last row or column black.
    """
    if array.shape == tuple(shape):
        return array
    factors = np.divide(shape, array.shape)
    if nearest:
        return ndimage.zoom(array, factors, order=0, mode="nearest")
    return ndimage.zoom(array.astype(np.float64), factors, order=3, mode="mirror")


def resized_spacing(spacing, old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float]:
    """Spacing (row, column) after `resize` from shape `old` to `new`."""
    return tuple(
        s * (max(n, 2) - 1) / (max(m, 2) - 1) for s, n, m in zip(spacing, old, new, strict=True)
    )


def centre(array: np.ndarray, shape: tuple[int, ...], value=0) -> np.ndarray:
    """Crops or pads (with `value`) every axis to `shape`, equally on both sides.

    If the number of lines to remove or add is odd, the extra one is at the end.
    """
    for axis, size in enumerate(shape):
        spare = array.shape[axis] - size
        if spare > 0:
            array = np.take(array, np.arange(size) + spare // 2, axis)
        elif spare < 0:
            widths = [(0, 0)] * array.ndim
            widths[axis] = (-spare // 2, -spare - -spare // 2)
            array = np.pad(array, widths, constant_values=value)
    return array


@functools.lru_cache(maxsize=2**17)
def _file_sha256(file: Path, size: int, changed_ns: int) -> str:
    return sha256(file)


def file_sha256(file: Path) -> str:
    """sha256 of a file's content (hex); in a process, a file is reread only if it has changed."""
    status = file.stat()
    return _file_sha256(file, status.st_size, status.st_mtime_ns)


def name_below(root: Path, file: Path) -> str:
    """Path of a file relative to `root`, with "/"; its full path if it is outside `root`."""
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def content_digest(root: Path, files: Iterable[Path]) -> str:
    """sha256 over the names (relative to root) and contents of files, in the given order."""
    files = list(files)
    bar = {"total": len(files), "unit": "file", "mininterval": 1, "delay": 2}
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter lock
        contents = pool.map(file_sha256, files)
        digest = hashlib.sha256()
        for file, content in zip(files, tqdm(contents, "checksums", **bar), strict=True):
            digest.update(os.fsencode(f"{name_below(root, file)}\0"))
            digest.update(bytes.fromhex(content))
    return digest.hexdigest()
