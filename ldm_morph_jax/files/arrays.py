"""NumPy files and arrays in memory, which ITK has no reader for."""

import io
import zipfile
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.errors import ImageError, refusing
from ldm_morph_jax.files.geometry import Geometry, check_positive_spacing, orthonormal
from ldm_morph_jax.files.stored import Stored, without_place

_MOST_CHANNELS = 4  # a last axis of up to so many is never the width of an image


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name, every one decompressed and checked in full.

    `numpy.load` stops reading an entry when its array is complete, before the checksum is due.

    Raises:
        ImageError: damaged, no `.npz` file, or pickled objects.
    """
    entries = {}
    with refusing(f"{path}: not a readable NPZ file"), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            stream = io.BytesIO(archive.read(name))
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise ValueError(f"{name} holds more than its array")
            entries[name.removesuffix(".npy")] = array
    return entries


def read_array_file(
    path: Path, source: str, *, labels: bool = False, luminance: bool = False
) -> Stored:
    """Read `.npz` or `.npy`, told apart by content.

    An `.npz` file holds "image" (or one array of any name), `[H, W]` or `[S, H, W]`, and, as far
    as known, "spacing" (per array axis, mm), "origin" and "direction" (LPS).
    """
    with open(path, "rb") as file:
        is_npy = file.read(6) == b"\x93NUMPY"
    if is_npy:
        return _without_place(_read_npy(path, source), source)
    entries = read_npz(path)
    if "image" not in entries and len(entries) != 1:
        raise ImageError(f'{source}: holds {sorted(entries)}, expected an array "image"')
    array = entries.get("image", next(iter(entries.values())))
    if not {"spacing", "origin", "direction"} & set(entries):
        return _without_place(array, source)
    return _with_place(array, entries, source)


def image_planes(array, source: str) -> tuple[np.ndarray, bool]:
    """`[B, H, W]` of numbers and whether the caller gave a batch.

    Takes NumPy or JAX arrays `[H, W]` or `[B, H, W]`; bfloat16 and float16 become float32. Axes
    carry no names, so channels are not guessed from them.

    Raises:
        ImageError: another shape, channels (a last axis of up to 4), nothing in it, no numbers,
            masked pixels.
    """
    array = plain_numbers(array, source)
    if array.ndim not in (2, 3) or _has_channels(array) or not array.size:
        raise ImageError(
            f"{source}: found shape {array.shape}, expected [H, W] or [B, H, W] of grey values; "
            "of a grey image stored in channels pass one, image[..., 0]"
        )
    return (array, True) if array.ndim == 3 else (array[None], False)


def plain_numbers(array, source: str) -> np.ndarray:
    """A NumPy array of numbers, of whatever can be made one.

    Raises ImageError on masked pixels, whose values mean nothing, and on what is no number.
    """
    if np.ma.is_masked(array):
        share = np.ma.getmaskarray(array).mean()
        raise ImageError(
            f"{source}: {100 * share:.2g} % of its pixels are masked, expected values everywhere; "
            "fill them in, image.filled(0), or crop the image"
        )
    return _numbers(np.asarray(array), source)


def _has_channels(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[-1] <= _MOST_CHANNELS


def _read_npy(path, source):
    with refusing(f"{source}: not a readable NPY file"), open(path, "rb") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError("holds more than its array")
    return array


def _without_place(array, source) -> Stored:
    """An array without geometry; its pixels may have channels, as in a picture."""
    array, notes = _numbers(array, source), ()
    if _has_channels(array):
        components = array.shape[-1]
        array, notes = to_grey(array[..., 0] if components == 1 else array, components, source)
    planes, stack = image_planes(array, source)
    return without_place(planes[None], planes.shape if stack else planes.shape[1:], notes)


def _with_place(array, entries, source) -> Stored:
    array = _numbers(array, source)
    n = array.ndim
    if n not in (2, 3):
        raise ImageError(f"{source}: has shape {array.shape}, expected [H, W] or [S, H, W]")
    values = {}
    defaults = {"spacing": np.ones(n), "origin": np.zeros(n), "direction": np.eye(n)}
    for name, default in defaults.items():
        values[name] = np.asarray(entries.get(name, default))
        if values[name].shape != default.shape or values[name].dtype.kind not in "iuf":
            raise ImageError(
                f"{source}: {name} has shape {values[name].shape} of {values[name].dtype}, "
                f"expected {default.shape} numbers"
            )
    check_positive_spacing(values["spacing"], source)
    if not np.isfinite(values["origin"]).all():
        raise ImageError(f"{source}: its origin holds NaN or infinity")
    geometry = Geometry(
        array.shape,
        tuple(float(s) for s in values["spacing"]),
        values["origin"].astype(np.float64),
        orthonormal(values["direction"].astype(np.float64), source),
    )
    array = array.reshape(1, *(1,) * (3 - n), *array.shape)
    return Stored(
        array,
        geometry,
        spacing_known="spacing" in entries,
        position_known="origin" in entries,
        orientation_known="direction" in entries and n == 3,
    )


def _numbers(array: np.ndarray, source: str) -> np.ndarray:
    if array.dtype == np.float16 or array.dtype.name == "bfloat16":
        return array.astype(np.float32)  # few functions of SciPy take them
    if array.dtype.kind not in "biufc":
        raise ImageError(f"{source}: holds {array.dtype}, expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
