"""NIfTI: read by ITK; what ITK does not tell or does not check is looked up in the header."""

import gzip
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ldm_morph_jax.files import integrity, itk
from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, check_positive_spacing, says_no_orientation
from ldm_morph_jax.files.stored import Stored

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
# NIfTI-1, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
_HEADER = np.dtype(
    {
        "names": ["size", "dim", "intent", "datatype", "pixdim", "vox_offset", "units"]
        + ["qform_code", "sform_code", "quaternion", "offset", "srow", "magic"],
        "formats": ["<i4", "(8,)<i2", "<i2", "<i2", "(8,)<f4", "<f4", "u1"]
        + ["<i2", "<i2", "(3,)<f4", "(3,)<f4", "(3,4)<f4", "S4"],
        "offsets": [0, 40, 68, 70, 76, 108, 123, 252, 254, 256, 268, 280, 344],
        "itemsize": 348,
    }
)
# bytes per voxel of each datatype code
_BYTES = {2: 1, 256: 1, 4: 2, 512: 2, 128: 3, 8: 4, 16: 4, 768: 4, 2304: 4, 32: 8, 64: 8}
_BYTES |= {1024: 8, 1280: 8, 1536: 16, 1792: 16, 2048: 32}
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of the units' time bits
_VECTORS = 1007


def read(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a NIfTI-1 file (.nii, .nii.gz, .hdr and .img) or an Analyze pair."""
    header = read_header(path, source)
    reading = itk.load(path, source)
    if header["intent"] == _VECTORS and reading.components > 1:
        raise ImageError(
            f"{source}: holds vectors of {reading.components} components, expected grey values"
        )
    values = _with_nan(reading.array, path, header)
    grey, notes = to_grey(values, reading.components, source, luminance=luminance)
    known = bool(header["magic"] and (header["qform_code"] > 0 or header["sform_code"] > 0))
    geometry = reading.geometry
    if geometry.dimension == 2 and known:
        geometry = _in_space(geometry, header)
    array, geometry = itk.frames_and_slices(grey, geometry, source)
    return Stored(
        array,
        geometry,
        spacing_known=bool(known or not np.allclose(geometry.spacing, 1)),
        position_known=known,
        orientation_known=known and not says_no_orientation(geometry),
        times=_times(header, len(array)),
        notes=notes,
    )


def read_vectors(path: Path, source: str) -> tuple[np.ndarray, Geometry]:
    """A displacement field as ITK stores it: vectors `[*shape, n]` and their geometry.

    Components are (x, y[, z]) in mm, LPS; the file has the shape (x, y, 1, 1, 2) or (x, y, z, 1, 3)
    and the intent 1007.
    """
    header = read_header(path, source)
    reading = itk.load(path, source)
    n = reading.geometry.dimension
    if header["intent"] != _VECTORS or reading.components != n or n not in (2, 3):
        shape = tuple(int(size) for size in header["dim"][1 : 1 + header["dim"][0]])
        raise ImageError(
            f"{source}: not a displacement field (found shape {shape}, intent "
            f"{header['intent']}; expected (x, y, 1, 1, 2) or (x, y, z, 1, 3), intent 1007)"
        )
    vectors = np.moveaxis(reading.array, -1, 0)  # as the file has them: components last
    vectors = np.moveaxis(_with_nan(vectors, path, header), 0, -1)
    return vectors.astype(np.float64), reading.geometry


def read_header(path: Path, source: str) -> np.void:
    """The header, after checking that the file is whole; fields as in `_HEADER`.

    Raises:
        ImageError: damaged gzip stream, file shorter than its header says, spacing that is not
            positive (ITK would take another), NIfTI-2 (ITK has no reader).
    """
    pair = _is_pair(path)
    block, length = _start_and_length(_beside(path, ".hdr") if pair else path, source)
    if len(block) < 348:
        raise ImageError(f"{source}: not a readable NIfTI image (its header is cut short)")
    header = np.frombuffer(block[:348], _HEADER)[0]
    if header["size"] not in (348, 540):
        header = np.frombuffer(block[:348], _HEADER.newbyteorder())[0]
    if header["size"] == 540:
        raise ImageError(
            f"{source}: NIfTI-2, which ITK does not read; convert it to NIfTI-1 (.nii.gz)"
        )
    if header["size"] != 348:
        raise ImageError(f"{source}: not a readable NIfTI image (its header is damaged)")
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7 or (header["dim"][1 : 1 + dimensions] < 1).any():
        raise ImageError(f"{source}: not a readable NIfTI image (dimensions {header['dim']})")
    if dimensions < 2:
        raise ImageError(f"{source}: has 1 dimension, expected 2 or more")
    check_positive_spacing(header["pixdim"][1 : 1 + min(3, dimensions)].astype(np.float64), source)
    voxels = np.prod(header["dim"][1 : 1 + dimensions].astype(np.float64))
    needed = voxels * _BYTES.get(int(header["datatype"]), 0)
    if pair:
        length = _start_and_length(_beside(path, ".img"), source)[1]
    else:
        needed += max(348.0, float(header["vox_offset"]))
    if not length >= needed:
        raise ImageError(
            f"{source}: ends early ({length} bytes of pixels and header, expected {needed:.0f})"
        )
    return header


def _start_and_length(path: Path, source: str) -> tuple[bytes, int]:
    """The first 348 bytes and the length of a file, decompressed."""
    try:
        with open(path, "rb") as file:
            start = file.read(348)
    except OSError as error:
        raise ImageError(f"{source}: {path} cannot be read ({error.strerror})") from None
    if start.startswith(b"\x1f\x8b"):
        return integrity.unzipped(path, source, 348)
    return start, path.stat().st_size


def _with_nan(array: np.ndarray, path: Path, header: np.void) -> np.ndarray:
    """`array` with the NaN and infinities of the file, which ITK reads as 0."""
    dtype = {16: "f4", 64: "f8"}.get(int(header["datatype"]))
    if dtype is None:
        return array
    pair = _is_pair(path)
    pixels = _beside(path, ".img") if pair else path
    with open(pixels, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(pixels, "rb") as file:
        file.seek(max(0 if pair else 348, int(header["vox_offset"])))
        values = np.frombuffer(file.read(array.size * int(dtype[1])), dtype)
    if header.dtype["size"].byteorder == ">":
        values = values.byteswap()
    bad = ~np.isfinite(values)
    if not bad.any():
        return array
    array = np.array(array, order="C")
    array.reshape(-1)[bad] = values[bad]
    return array


def _is_pair(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".hdr", ".img"))


def _beside(path: Path, suffix: str) -> Path:
    """The header or the pixels of a pair, compressed or not."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    plain = path.with_name(Path(name).stem + suffix)
    return plain if plain.exists() else plain.with_name(plain.name + ".gz")


def _in_space(geometry: Geometry, header: np.void) -> Geometry:
    """A 2-D file's geometry, as that of one slice in space if its plane is not the x-y plane.

    ITK's 2-D image would drop the tilt. Where both forms are set, ITK takes the sform only if its
    code is 1 (scanner).
    """
    has_q, has_s = header["qform_code"] > 0, int(header["sform_code"])
    if has_s == 1 or (has_s > 0 and not has_q):
        columns, offset = header["srow"][:, :3].astype(np.float64), header["srow"][:, 3]
        columns[:, :2] /= np.linalg.norm(columns[:, :2], axis=0)
        normal = np.cross(columns[:, 0], columns[:, 1])
        columns[:, 2] = np.copysign(1, columns[:, 2] @ normal) * normal
    else:
        b, c, d = quaternion = header["quaternion"].astype(np.float64)
        a = np.sqrt(max(0.0, 1 - quaternion @ quaternion))
        columns, offset = Rotation.from_quat([b, c, d, a]).as_matrix(), header["offset"]
        columns[:, 2] *= np.copysign(1, header["pixdim"][0])
    if abs(columns[2, 2]) > np.cos(np.radians(0.5)):
        return geometry
    unit = {1: 1000.0, 3: 0.001}.get(int(header["units"]) & 7, 1.0)
    return Geometry(
        (1, *geometry.shape),
        (1.0, *(float(s) * unit for s in header["pixdim"][2:0:-1])),
        _RAS_TO_LPS @ offset.astype(np.float64) * unit,
        _RAS_TO_LPS @ columns,
    )


def _times(header: np.void, frames: int) -> np.ndarray | None:
    step, unit = float(header["pixdim"][4]), int(header["units"]) & 0x38
    if frames < 2 or unit not in _SECONDS or not (np.isfinite(step) and step > 0):
        return None
    return np.arange(frames) * step * _SECONDS[unit]
