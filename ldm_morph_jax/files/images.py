"""Reading and writing images with their place in space.

Arrays are `[rows, columns]`, or `[slices, rows, columns]` for a stack: the order of
`SimpleITK.GetArrayFromImage`. Positions are millimetres in LPS (x to the left, y to the back, z to
the head), as in DICOM and ITK; NIfTI files hold RAS and are converted here, and only here.

A single slice of a stack becomes a 2-D image, the one that `volume[:, :, k]` is in SimpleITK. That
needs a slice plane along x and y; any other plane ("oblique") is refused unless asked for, and is
then given coordinates of its own (`Image.plane`).
"""

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SUFFIXES = (".png", ".tif", ".tiff", ".nii", ".nii.gz", ".npz", ".dcm")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
# Rounding in headers tilts an axial plane by a fraction of this; cos(0.5 deg) = 0.99996.
_MAX_TILT_DEGREES = 0.5


class ImageError(ValueError):
    """An image that cannot be used; one line: the file, what was found, what is expected."""


@dataclass(frozen=True)
class Geometry:
    """Where the samples of an array lie.

    shape, spacing: per array axis, (rows, columns) or (slices, rows, columns); spacing in mm.
    origin: `[n]`, position of sample 0 in mm, (x, y) or (x, y, z), LPS.
    direction: `[n, n]` orthonormal; its columns are the directions in which the *last* array axis
      (column index), the one before it (row index) and, for a stack, the slice index increase.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: np.ndarray
    direction: np.ndarray

    @property
    def dimension(self) -> int:
        return len(self.shape)

    def to_physical(self, index: np.ndarray) -> np.ndarray:
        """Array index `[..., n]` (row, column or slice, row, column) -> position `[..., n]` mm."""
        return self.origin + self.vectors_to_physical(index)

    def to_index(self, position: np.ndarray) -> np.ndarray:
        """Position `[..., n]` mm -> continuous array index `[..., n]`."""
        return self.vectors_to_index(np.asarray(position, np.float64) - self.origin)

    def vectors_to_physical(self, steps: np.ndarray) -> np.ndarray:
        """Index differences `[..., n]` -> vectors `[..., n]` in mm (x, y[, z])."""
        return (np.asarray(steps, np.float64) * self.spacing)[..., ::-1] @ self.direction.T

    def vectors_to_index(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `[..., n]` in mm -> index differences `[..., n]`."""
        return (vectors @ self.direction)[..., ::-1] / self.spacing

    def indices(self) -> np.ndarray:
        """Index of every sample, `[*shape, n]` float64."""
        return np.moveaxis(np.indices(self.shape, np.float64), 0, -1)

    def same_as(self, other: "Geometry") -> bool:
        return (
            self.shape == other.shape
            and np.allclose(self.spacing, other.spacing, rtol=1e-4)
            and np.allclose(self.origin, other.origin, atol=1e-3)
            and np.allclose(self.direction, other.direction, atol=1e-4)
        )


def plain_geometry(shape: tuple[int, ...], spacing: tuple[float, ...] | None = None) -> Geometry:
    """A grid at the origin along the axes; 1 mm per pixel unless `spacing` is given."""
    n = len(shape)
    return Geometry(tuple(shape), tuple(spacing or (1.0,) * n), np.zeros(n), np.eye(n))


@dataclass(frozen=True)
class Image:
    """An image, or a stack of slices, and where it lies.

    array: `[H, W]` or `[S, H, W]`, original values and dtype.
    geometry: see `Geometry`.
    spacing_known, position_known: False where the file does not tell (PNG: neither) and the
      geometry is a stand-in.
    plane: `[3, 3]` direction of an oblique slice, whose 2-D coordinates are then those of its own
      plane: x along the columns, y along the rows. None otherwise.
    source: the file, for messages.
    """

    array: np.ndarray
    geometry: Geometry
    spacing_known: bool = True
    position_known: bool = True
    plane: np.ndarray | None = None
    source: str = "image"

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm."""
        return self.geometry.spacing[-2:]

    @property
    def origin(self) -> np.ndarray:
        return self.geometry.origin

    @property
    def direction(self) -> np.ndarray:
        return self.geometry.direction


def image_from_array(array, spacing=None, *, source: str = "image") -> Image:
    """An image without a place in space: `[H, W]`, spacing one number or (row, column) in mm.

    Raises ImageError on what `read_image` refuses.
    """
    array = np.asarray(array)
    if array.ndim != 2:
        raise ImageError(f"{source}: found shape {array.shape}, expected [H, W]")
    known = spacing is not None
    if known:
        spacing = check_spacing(spacing, source)
    geometry = plain_geometry(array.shape, spacing)
    image = Image(array, geometry, known, position_known=False, source=source)
    _check_values(image, labels=False)
    return image


def check_spacing(spacing, source: str) -> tuple[float, float]:
    """One number or (row, column) -> two positive numbers; ImageError otherwise."""
    try:
        values = np.broadcast_to(np.asarray(spacing, np.float64), (2,))
    except ValueError:
        raise ImageError(
            f"{source}: spacing {spacing}, expected one number or (row, column)"
        ) from None
    _check_positive_spacing(values, source)
    return float(values[0]), float(values[1])


def read_image(
    path: str | os.PathLike,
    slice: int | str | None = None,
    *,
    spacing=None,
    oblique: bool = False,
    labels: bool = False,
) -> Image:
    """Read PNG, TIFF, NIfTI, NPZ or single-frame DICOM.

    Args:
        path: the file.
        slice: of a stack, the index (from 0) of the slice to read, or "all" for `[S, H, W]`.
            Ignored by 2-D files.
        spacing: mm, one number or (row, column), for files that do not tell theirs.
        oblique: accept a slice plane that is tilted against the x-y plane.
        labels: a mask; integers are required, a constant image is fine.

    An NPZ file holds "image" (or one array of any name), `[H, W]` or `[S, H, W]`, and, as far as
    known, "spacing" (per array axis, mm), "origin" and "direction" (LPS).

    Raises:
        ImageError: one line, on anything that cannot be registered.
    """
    path = Path(path)
    source = str(path)
    if not path.is_file():
        raise ImageError(
            f"{source}: no such file" if not path.exists() else f"{source}: not a file"
        )
    reader = _reader_of(path)
    image = reader(path, source)
    if not image.spacing_known and spacing is not None:
        row, column = check_spacing(spacing, source)
        full = (*image.geometry.spacing[:-2], row, column)
        image = replace(image, geometry=replace(image.geometry, spacing=full), spacing_known=True)
    image = _select_slice(image, slice, oblique)
    if labels:
        image = replace(image, array=_as_labels(image.array, source))
    _check_values(image, labels)
    return image


def parse_slice(text: str) -> int | str:
    """What `slice` of `read_image` is in text: a whole number or "all"; ValueError otherwise."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a number nor 'all'") from None


def _reader_of(path: Path):
    name = path.name.lower()
    if name.endswith((".png", ".tif", ".tiff")):
        return _read_pillow
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti
    if name.endswith(".npz"):
        return _read_npz
    with open(path, "rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"  # DICOM files often have no suffix
    if is_dicom or name.endswith(".dcm"):
        return _read_dicom
    raise ImageError(f"{path}: not an image of a known kind; expected {', '.join(SUFFIXES)}")


def _read_pillow(path, source) -> Image:
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=("PNG", "TIFF")) as file:
            frames = []
            for k in range(getattr(file, "n_frames", 1)):
                file.seek(k)
                frames.append(_grey(file, source))
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ImageError(f"{source}: not a readable image ({_one_line(error)})") from None
    if len({frame.shape for frame in frames}) > 1:
        raise ImageError(f"{source}: its pages differ in size")
    array = np.stack(frames) if len(frames) > 1 else frames[0]
    return Image(array, plain_geometry(array.shape), False, False, source=source)


def _grey(file, source) -> np.ndarray:
    """One channel `[H, W]`; grey images stored in equal colour channels (or a palette) included."""
    if file.mode in ("L", "F") or file.mode.startswith("I"):
        array = np.asarray(file)
        return array.astype(array.dtype.newbyteorder("="))
    if file.mode == "1":
        return np.asarray(file).astype(np.uint8)
    colours = np.asarray(file.convert("RGBA"))
    if not (colours[..., :1] == colours[..., 1:3]).all():
        raise ImageError(f"{source}: colour image (mode {file.mode}), expected grey values")
    if not (colours[..., 3] == 255).all():
        raise ImageError(f"{source}: has transparent pixels, expected plain grey values")
    return colours[..., 0].copy()


def _read_nifti(path, source) -> Image:
    import nibabel

    try:
        _check_positive_spacing(_stored_zooms(path), source)
        file = nibabel.load(path)
        header = file.header
        shape, dtype = file.shape, file.get_data_dtype()
    except ImageError:
        raise
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise ImageError(f"{source}: not a readable NIfTI image ({_one_line(error)})") from None
    if dtype.names:
        raise ImageError(f"{source}: colour image, expected grey values")
    if np.issubdtype(dtype, np.complexfloating):
        raise ImageError(f"{source}: complex values, expected real ones")
    if len(shape) > 3 and int(np.prod(shape[3:])) != 1:
        raise ImageError(f"{source}: has {len(shape)} dimensions {shape}, expected 2 or 3")
    if len(shape) < 2:
        raise ImageError(f"{source}: has {len(shape)} dimension(s), expected 2 or 3")
    try:
        data = np.asanyarray(file.dataobj)
    except Exception as error:
        raise ImageError(f"{source}: not a readable NIfTI image ({_one_line(error)})") from None
    size = (*shape, 1)[:3]
    array = data.reshape(size).transpose(2, 1, 0)
    geometry, known = _nifti_geometry(header, array.shape, source)
    return Image(
        array.astype(array.dtype.newbyteorder("=")),
        geometry,
        position_known=known,
        source=source,
    )


def _stored_zooms(path) -> np.ndarray:
    """Spacing as the file has it: `nibabel.load` repairs what is zero or negative."""
    import nibabel
    from nibabel.openers import ImageOpener

    with ImageOpener(path) as file:
        block = file.read(540)
    is_nifti2 = 540 in (int.from_bytes(block[:4], order) for order in ("little", "big"))
    if is_nifti2:
        header = nibabel.Nifti2Header(block, check=False)
    else:
        header = nibabel.Nifti1Header(block[:348], check=False)
    return header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))].astype(np.float64)


def nifti_affine(header) -> np.ndarray | None:
    """Index (column, row, slice) -> RAS in the file's unit, chosen as ITK chooses; None: not given.

    Where both forms are set, ITK takes the sform only if its code is 1 (scanner).
    """
    has_q, has_s = int(header["qform_code"]) > 0, int(header["sform_code"])
    if has_s == 1 or (has_s > 0 and not has_q):
        return header.get_sform()
    return header.get_qform() if has_q else None


def _nifti_geometry(header, shape, source) -> tuple[Geometry, bool]:
    """3-D geometry of `[S, H, W]`, and whether the file gave a position."""
    unit = {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    affine = nifti_affine(header)
    if affine is None:
        spacing = [abs(float(z)) * unit for z in (*header.get_zooms(), 1.0, 1.0)[:3]]
        return plain_geometry(shape, tuple(spacing[::-1])), False
    affine = affine.astype(np.float64) * unit
    if not np.isfinite(affine).all():
        raise ImageError(f"{source}: its orientation holds NaN or infinity")
    columns = _RAS_TO_LPS @ affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    _check_positive_spacing(spacing, source)
    direction = _orthonormal(columns / spacing, source)
    origin = _RAS_TO_LPS @ affine[:3, 3]
    return Geometry(shape, tuple(spacing[::-1].tolist()), origin, direction), True


def _read_npz(path, source) -> Image:
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(f"{source}: not a readable NPZ file ({_one_line(error)})") from None
    if "image" not in entries and len(entries) != 1:
        raise ImageError(f'{source}: holds {sorted(entries)}, expected an array "image"')
    array = entries.get("image", next(iter(entries.values())))
    n = array.ndim
    if n == 3 and array.shape[-1] in (3, 4) and "spacing" not in entries:
        raise ImageError(
            f"{source}: shape {array.shape} looks like a colour image, expected [H, W]"
        )
    if n not in (2, 3):
        raise ImageError(f"{source}: has shape {array.shape}, expected [H, W] or [S, H, W]")
    values = {}
    for name, shape in {"spacing": (n,), "origin": (n,), "direction": (n, n)}.items():
        values[name] = np.asarray(entries.get(name, np.eye(n) if n == len(shape) else np.ones(n)))
        if name == "origin" and name not in entries:
            values[name] = np.zeros(n)
        if name == "direction" and name not in entries:
            values[name] = np.eye(n)
        if values[name].shape != shape or not np.issubdtype(values[name].dtype, np.number):
            raise ImageError(f"{source}: {name} has shape {values[name].shape}, expected {shape}")
    _check_positive_spacing(values["spacing"], source)
    direction = _orthonormal(values["direction"].astype(np.float64), source)
    spacing = tuple(float(s) for s in values["spacing"])
    geometry = Geometry(array.shape, spacing, values["origin"].astype(np.float64), direction)
    return Image(array, geometry, "spacing" in entries, "origin" in entries, source=source)


def _read_dicom(path, source) -> Image:
    import pydicom

    try:
        file = pydicom.dcmread(path)
        frames = int(file.get("NumberOfFrames", 1) or 1)
        colour = str(file.get("PhotometricInterpretation", ""))
        if frames != 1:
            raise ImageError(f"{source}: DICOM with {frames} frames, expected a single frame")
        if not colour.startswith("MONOCHROME"):
            raise ImageError(
                f"{source}: colour image ({colour or 'unknown'}), expected grey values"
            )
        array = file.pixel_array
        slope = float(file.get("RescaleSlope", 1) or 1)
        intercept = float(file.get("RescaleIntercept", 0) or 0)
        pixel_spacing = file.get("PixelSpacing")
        orientation = file.get("ImageOrientationPatient")
        position = file.get("ImagePositionPatient")
        thickness = float(file.get("SliceThickness", 1) or 1)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{source}: not a readable DICOM image ({_one_line(error)})") from None
    if array.ndim != 2:
        raise ImageError(f"{source}: has shape {array.shape}, expected [H, W]")
    if (slope, intercept) != (1.0, 0.0):
        array = (array * slope + intercept).astype(np.float32)
    spacing = (1.0, 1.0)
    if pixel_spacing:
        spacing = tuple(float(s) for s in pixel_spacing)  # (between rows, between columns)
        _check_positive_spacing(np.array(spacing), source)
    shape = (1, *array.shape)
    known = bool(orientation) and bool(position)
    geometry = plain_geometry(shape, (thickness, *spacing))
    if known:
        x = np.array(orientation[:3], np.float64)  # in which the column index increases
        y = np.array(orientation[3:], np.float64)
        direction = _orthonormal(np.stack([x, y, np.cross(x, y)], axis=1), source)
        geometry = replace(geometry, origin=np.array(position, np.float64), direction=direction)
    return Image(array[None], geometry, bool(pixel_spacing), known, source=source)


def _select_slice(image: Image, slice: int | str | None, oblique: bool) -> Image:
    """`[S, H, W]` -> the slice that was asked for; 2-D images pass."""
    if image.array.ndim == 2:
        return image
    slices = image.array.shape[0]
    tilt = np.degrees(np.arccos(min(1.0, abs(image.direction[2, 2]))))
    tilted = bool(tilt > _MAX_TILT_DEGREES)
    if tilted and not oblique:
        raise ImageError(
            f"{image.source}: oblique direction (slice plane tilted {tilt:.1f} degrees against "
            "the x-y plane); add --oblique to register in the slice's own plane"
        )
    if slices > 1 and slice == "all":
        return image
    if slices > 1 and slice is None:
        raise ImageError(
            f"{image.source}: 3-D with {slices} slices; choose one with --slice 0 to "
            f"{slices - 1}, or --slice all"
        )
    k = int(slice) if slices > 1 else 0
    if not 0 <= k < slices:
        raise ImageError(f"{image.source}: has no slice {k}; its slices are 0 to {slices - 1}")
    corner = image.geometry.to_physical(np.array([k, 0.0, 0.0]))
    if tilted:
        direction, origin = np.eye(2), image.direction[:, :2].T @ corner
    else:
        # U V^T is the rotation or reflection nearest to the 2x2 part
        u, _, v = np.linalg.svd(image.direction[:2, :2])
        direction, origin = u @ v, corner[:2]
    geometry = Geometry(image.array.shape[1:], image.geometry.spacing[1:], origin, direction)
    plane = image.direction if tilted else None
    return replace(image, array=image.array[k], geometry=geometry, plane=plane)


def _orthonormal(direction: np.ndarray, source: str) -> np.ndarray:
    """The orthonormal matrix that `direction` is up to rounding; ImageError if it is sheared."""
    if not np.isfinite(direction).all():
        raise ImageError(f"{source}: its direction holds NaN or infinity")
    u, values, v = np.linalg.svd(direction)
    if np.abs(values - 1).max() > 1e-3:
        raise ImageError(f"{source}: its axes are not orthonormal (sheared direction)")
    return u @ v


def _check_positive_spacing(spacing: np.ndarray, source: str) -> None:
    if not (np.isfinite(spacing) & (np.asarray(spacing) > 0)).all():
        found = ", ".join(f"{s:g}" for s in np.ravel(spacing))
        raise ImageError(f"{source}: spacing ({found}) mm, expected positive numbers")


def _check_values(image: Image, labels: bool) -> None:
    array, source = image.array, image.source
    if min(array.shape[-2:]) < 2:
        raise ImageError(f"{source}: has shape {array.shape}, expected at least 2x2 pixels")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ImageError(f"{source}: holds {array.dtype}, expected numbers")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ImageError(f"{source}: complex values, expected real ones")
    if not np.isfinite(array).all():
        raise ImageError(f"{source}: holds NaN or infinite values")
    if not labels:
        for k, plane in enumerate(array.reshape(-1, *array.shape[-2:])):
            if plane.min() == plane.max():
                where = f" slice {k}" if array.ndim == 3 else ""
                raise ImageError(
                    f"{source}:{where} is constant ({plane.min()}), nothing to register"
                )


def _as_labels(array: np.ndarray, source: str) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer):
        return array
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.isfinite(array).all() or (array != np.round(array)).any():
        raise ImageError(f"{source}: not a mask; its values are not whole numbers")
    return array.astype(np.int32)


def write_image(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, *, vectors: bool = False
) -> None:
    """Write an image by its suffix, whole or not at all.

    Args:
        path: `.nii`, `.nii.gz`, `.npz` (with geometry), `.png` (8- or 16-bit integers) or `.tif`.
        array: `[H, W]` or `[S, H, W]`; with `vectors` `[..., n]`, components (x, y[, z]).
        geometry: of the array.
        vectors: write NIfTI vectors as ITK reads them (intent 1007, components in LPS).
    """
    path = Path(path)
    name = path.name.lower()
    array = array.astype(np.uint8) if array.dtype == bool else array
    if name.endswith((".nii", ".nii.gz")):
        with atomic(path) as part:
            _write_nifti(part, array, geometry, vectors)
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

        allowed = (
            (np.uint8, np.uint16) if name.endswith(".png") else (np.uint8, np.uint16, np.float32)
        )
        if array.dtype not in allowed or array.ndim != 2:
            raise ImageError(
                f"{path}: cannot hold {array.dtype} {array.shape}; write .nii.gz instead"
            )
        with atomic(path) as part:
            PIL.Image.fromarray(array).save(part)
    else:
        raise ImageError(f"{path}: unknown suffix, expected {', '.join(SUFFIXES[:-1])}")


def _write_nifti(path, array, geometry, vectors):
    import nibabel

    n = geometry.dimension
    affine = np.eye(4)
    affine[:n, :n] = geometry.direction * np.array(geometry.spacing[::-1])
    affine[:n, 3] = geometry.origin
    affine[:3] = _RAS_TO_LPS @ affine[:3]
    # The file's axes are (x, y[, z]); a vector image has five, components last: (x, y, z, 1, n).
    data = np.moveaxis(array, range(n), range(n)[::-1])
    if vectors:
        data = data.reshape(*data.shape[:n], *(1,) * (4 - n), n)
    if data.dtype in (np.int64, np.uint64, np.uint32, np.float16):  # few tools read these
        data = data.astype(np.int32 if np.issubdtype(data.dtype, np.integer) else np.float32)
    file = nibabel.Nifti1Image(np.ascontiguousarray(data), affine)
    file.set_qform(affine, code=1)
    file.set_sform(affine, code=1)
    file.header.set_xyzt_units("mm")
    if vectors:
        file.header.set_intent("vector")
    nibabel.save(file, path)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well and vanishes otherwise."""
    path = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise ImageError(f"{path}: cannot write there ({error.strerror})") from None
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def round_to(array: np.ndarray, dtype) -> np.ndarray:
    """Values rounded and clipped to an integer dtype; floating dtypes are converted."""
    if not np.issubdtype(dtype, np.integer):
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(array), limits.min, limits.max).astype(dtype)
