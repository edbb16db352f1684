"""Writing files, whole or not at all; images by their suffix; JSON; the hash of a file."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import FileError, ImageError, one_line
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.itk import name_for_itk
from ldm_morph_jax.files.locking import locked

SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd", ".npz", ".png", ".tif", ".tiff")
_BY_ITK = (".nii.gz", ".nii", ".mha", ".nrrd")
_IN_PNG = (np.uint8, np.uint16)
_IN_TIFF = (np.uint8, np.uint16, np.float32)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well and vanishes otherwise.

    It has the same name and lies in a folder of its own beside `path`, so that the final step is a
    renaming within one file system.

    Raises:
        FileError: nothing can be written there.
    """
    path = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise FileError(f"{path}: cannot write there ({error.strerror})") from None
    try:
        yield folder / path.name
        try:
            os.replace(folder / path.name, path)
        except OSError as error:
            raise FileError(f"{path}: cannot write there ({error.strerror})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def json_text(value) -> str:
    """A value as the text of a JSON file; NaN and infinity, which JSON has not, become null."""
    return json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n"


def without_nan(value):
    """NaN and infinity -> None, in mappings and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def staged(
    out: Path,
    names: Sequence[str],
    overwrite: bool,
    *,
    all_names: Sequence[str] = (),
    last: str = "",
) -> Iterator[Path]:
    """A folder to write into; what is in it moves to `out` together when the block ends well.

    What is overwritten leaves then, all of it, so that `out` never mixes two runs, not even of two
    processes that write into it at the same time. Other files stay.

    Args:
        out: made where it is missing, and removed again where nothing comes of it.
        names: what must not be there yet.
        overwrite: replace what is there.
        all_names: what an earlier run may have left, where that is more than `names`.
        last: the name that says that all others are there: it leaves first and comes last.

    Raises:
        ImageError: one of the names exists and is not to be overwritten; `out` is not writable.
    """
    if not overwrite:
        refuse_existing(*(out / name for name in names))
    created, done = not out.exists(), False
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    except OSError as error:
        raise ImageError(f"{out}: cannot write there ({error.strerror})") from None
    try:
        yield stage
        new = sorted(os.listdir(stage), key=last.__eq__)
        with locked(out):
            if not overwrite:  # again: another run may have come first
                refuse_existing(*(out / name for name in {*names, *new}))
            for name in sorted({*names, *all_names}, key=last.__ne__) if overwrite else ():
                # a file is replaced in one step; a folder has to go first
                if name == last or name not in new or (out / name).is_dir():
                    _remove(out / name)
            for name in new:
                os.replace(stage / name, out / name)
        done = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if created and not done and not any(out.iterdir()):
            out.rmdir()


def refuse_existing(*paths: Path) -> None:
    """ImageError naming the first of the paths that is there."""
    for path in sorted(paths):
        if path.exists():
            raise ImageError(f"{path}: exists; add `overwrite` to replace it")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_image(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, *, vectors: bool = False
) -> None:
    """Write an image by its suffix, whole or not at all.

    Args:
        path: with one of `SUFFIXES`. Only PNG (8- and 16-bit integers) and TIFF (these and float32)
            leave the geometry out.
        array: `[H, W]` or `[S, H, W]`; with `vectors` `[..., n]`, components (x, y[, z]).
        geometry: of the array.
        vectors: write vectors, components in LPS (ITK's displacement fields).

    Raises:
        FileError: unknown suffix, a type or shape that the format cannot hold, or that is not the
            geometry's; no way to write.
    """
    path = Path(path)
    name = path.name.lower()
    components = (geometry.dimension,) if vectors else ()
    if array.shape != geometry.shape + components:
        raise ImageError(
            f"{path}: the array has shape {array.shape}, its geometry {geometry.shape + components}"
        )
    array = array.astype(np.uint8) if array.dtype == bool else array
    if name.endswith(_BY_ITK):
        with atomic(path) as part:
            _write_by_itk(part, array, geometry, vectors)
    elif name.endswith(".npz"):
        with atomic(path) as part:
            np.savez_compressed(
                part,
                image=array,
                spacing=np.array(geometry.spacing),
                origin=geometry.origin,
                direction=geometry.direction,
            )
    elif name.endswith((".png", ".tif", ".tiff")):
        import PIL.Image

        allowed = _IN_PNG if name.endswith(".png") else _IN_TIFF
        if array.dtype not in allowed or array.ndim != 2:
            raise ImageError(
                f"{path}: cannot hold {array.dtype} {array.shape}; write .nii.gz instead"
            )
        with atomic(path) as part:
            PIL.Image.fromarray(array).save(part)
    else:
        raise ImageError(f"{path}: unknown suffix, expected {', '.join(SUFFIXES)}")


def _write_by_itk(path, array, geometry, vectors):
    import SimpleITK

    if array.dtype in (np.int64, np.uint64, np.uint32, np.float16):  # few tools read these
        array = array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
    image = SimpleITK.GetImageFromArray(array, isVector=vectors)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin.tolist())
    image.SetDirection(geometry.direction.ravel().tolist())
    try:
        with name_for_itk(path) as name:
            SimpleITK.WriteImage(image, name, useCompression=True)
    except RuntimeError as error:
        raise FileError(f"{path}: cannot be written ({one_line(error)})") from None


def round_to(array: np.ndarray, dtype) -> np.ndarray:
    """Values rounded and clipped to an integer dtype; floating dtypes are converted."""
    if not np.issubdtype(dtype, np.integer):
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(array), limits.min, limits.max).astype(dtype)
