"""Reading with SimpleITK: the array and geometry that every other reader is held against."""

import contextlib
import locale
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_morph_jax.files import integrity
from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.errors import ImageError, one_line
from ldm_morph_jax.files.geometry import Geometry, orthonormal, says_no_orientation
from ldm_morph_jax.files.stored import Stored


@dataclass(frozen=True)
class Reading:
    """What SimpleITK read.

    array: `[..., H, W]`, or `[..., H, W, C]` where a pixel has several components.
    components: C.
    geometry: of as many dimensions as ITK found, 2 to 5.
    """

    array: np.ndarray
    components: int
    geometry: Geometry


def recognise(path: Path) -> str | None:
    """Name of the ITK class that can read a file, None if there is none."""
    import SimpleITK

    with name_for_itk(path) as name, undisturbed():
        try:
            return SimpleITK.ImageFileReader.GetImageIOFromFileName(name) or None
        except RuntimeError:
            return None


def load(path: Path, source: str) -> Reading:
    """Read a file; ImageError on what SimpleITK refuses."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    try:
        with name_for_itk(path) as name, undisturbed():
            reader.SetFileName(name)
            image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        if "orthonormal" in str(error):
            raise ImageError(
                f"{source}: its axes are not orthonormal (sheared direction)"
            ) from None
        raise ImageError(f"{source}: not a readable image ({one_line(error)})") from None
    return _reading(image, source)


def read(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read MetaImage, NRRD and whatever else ITK knows that has no module of its own here."""
    integrity.check(path, source)
    return _stored(load(path, source), source, luminance)


def stored_of(image, source: str) -> Stored:
    """What a `SimpleITK.Image` in memory holds; ImageError as for a file of ITK's."""
    return _stored(_reading(image, source), source, luminance=False)


def _reading(image, source: str) -> Reading:
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image)
    n, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    direction = np.reshape(image.GetDirection(), (n, n))
    if not (np.isfinite(direction).all() and np.isfinite(image.GetOrigin()).all()):
        raise ImageError(f"{source}: its orientation holds NaN or infinity")
    geometry = Geometry(
        image.GetSize()[::-1], image.GetSpacing()[::-1], np.array(image.GetOrigin()), direction
    )
    return Reading(array, components, geometry)


def _stored(reading: Reading, source: str, luminance: bool) -> Stored:
    grey, notes = to_grey(reading.array, reading.components, source, luminance=luminance)
    array, geometry = frames_and_slices(grey, reading.geometry, source)
    # a 2-D image of ITK has no third axis, so how it lies in the patient is not in the file
    oriented = geometry.dimension == 3 and not says_no_orientation(geometry)
    return Stored(array, geometry, orientation_known=oriented, notes=notes)


def frames_and_slices(
    array: np.ndarray, geometry: Geometry, source: str
) -> tuple[np.ndarray, Geometry]:
    """`[T, S, H, W]` and the geometry of a frame, of an array of 2 to 5 dimensions."""
    if array.ndim == 5 and len(array) == 1:
        array = array[0]
    if array.ndim > 4:
        raise ImageError(
            f"{source}: has {array.ndim} dimensions {array.shape[::-1]}, expected (x, y[, z[, t]])"
        )
    array = array.reshape(*(1,) * (4 - array.ndim), *array.shape)
    n = min(3, geometry.dimension)
    return array, Geometry(
        geometry.shape[-n:],
        geometry.spacing[-n:],
        geometry.origin[:n],
        orthonormal(geometry.direction[:n, :n], source),
    )


@contextlib.contextmanager
def name_for_itk(path: Path) -> Iterator[str]:
    """A name that ITK can take: it wants UTF-8, and file names may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            # the whole folder: the pixels of an .mhd lie in a file beside it
            os.symlink(path.parent.absolute(), Path(folder) / "folder")
            try:
                path.name.encode()
                link = Path(folder) / "folder" / path.name
            except UnicodeEncodeError:
                link = Path(folder) / ("image" + "".join(path.suffixes[-2:]))
                os.symlink(path.absolute(), link)
            yield str(link)
    else:
        yield str(path)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Silences ITK's C libraries, which also raise what matters, and restores the locale.

    Reading a VTK file leaves the locale "C" behind, in which text files are ASCII.
    """
    import SimpleITK

    before = locale.setlocale(locale.LC_ALL)
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _redirected(2):
            yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
        locale.setlocale(locale.LC_ALL, before)


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    try:
        kept = os.dup(descriptor)
    except OSError:  # closed: nothing can be printed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
