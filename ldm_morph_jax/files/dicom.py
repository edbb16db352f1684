"""DICOM: pixels and geometry by ITK (which decompresses, rescales, inverts MONOCHROME1).

pydicom tells what ITK does not: whether spacing and position are in the file at all, the spacing of
ultrasound regions, frame times, and the functional groups of enhanced files in which slices and
frames are mixed or scaled differently.
"""

import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldm_morph_jax.files import itk
from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.dicom_objects import segmentation
from ldm_morph_jax.files.dicom_objects.source import group_value
from ldm_morph_jax.files.errors import ImageError, one_line, refusing
from ldm_morph_jax.files.geometry import Geometry, check_positive_spacing, orthonormal
from ldm_morph_jax.files.stored import Region, Stored

_CENTIMETRES, _TISSUE = 3, 1  # PhysicalUnits, RegionSpatialFormat: 2-D
_CODECS = "pip install 'ldm_morph_jax[codecs]'"
# bytes of chroma in YBR_FULL_422 are shared by two pixels
_SHARED_CHROMA = ("YBR_FULL_422", "YBR_PARTIAL_422")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SAME_LEVEL_MM = 0.05  # positions along the normal that are those of one slice


def read(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a DICOM file of one or several frames.

    Frames of an enhanced file are slices where their positions differ; frames of any other file
    are slices unless it tells their times.
    """
    return read_with_header(path, source, luminance=luminance)[0]


def read_with_header(path: Path, source: str, *, luminance: bool = False):
    """The images of a DICOM file, and its header: a `pydicom.Dataset` without the pixels."""
    # pydicom decodes a value, and raises, when it is asked for
    with refusing(f"{source}: not a readable DICOM image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break rules that do not matter here
        file = _dataset(path, source)
        if file.get("SOPClassUID") in (segmentation.SEGMENTATION, segmentation.LABEL_MAP):
            stored = segmentation.read(path, source)
        else:
            _check_length(file, source)
            with _for_itk(path, file) as readable:
                stored = _read(readable, file, source, luminance)
    for name in _PIXELS:
        if name in file:
            delattr(file, name)
    return stored, file


def _read(path, file, source, luminance) -> Stored:
    frames = [Frame.of(file, k, source) for k in range(int(file.get("NumberOfFrames") or 1))]
    placed = all(frame.position is not None for frame in frames)
    if len(frames) > 1 and placed and "PerFrameFunctionalGroupsSequence" in file:
        return _enhanced(path, file, frames, source)
    reading = itk.load(path, source)
    grey, notes = to_grey(reading.array, reading.components, source, luminance=luminance)
    array, geometry = itk.frames_and_slices(grey, reading.geometry, source)
    first = frames[0]
    # ITK takes ImagerPixelSpacing, at the detector of a projection, next
    has_spacing = first.spacing is not None
    has_spacing |= numbers(file.get("ImagerPixelSpacing"), (2,)) is not None
    regions = _regions(file, source)
    if len({region.spacing for region in regions}) > 1:
        has_spacing = False
    else:
        if regions and not has_spacing:
            geometry = replace(geometry, spacing=(geometry.spacing[0], *regions[0].spacing))
            has_spacing = True
        regions = ()
    times = _times(file, len(frames))
    if times is not None:  # frames, not slices
        array = array.reshape(len(frames), 1, *array.shape[-2:])
        geometry = replace(geometry, shape=array.shape[1:])
    oriented = first.orientation is not None
    return Stored(
        array,
        geometry,
        spacing_known=has_spacing,
        position_known=oriented and first.position is not None,
        orientation_known=oriented,
        times=times,
        regions=regions,
        notes=notes,
    )


@dataclass(frozen=True)
class Frame:
    """What the functional groups, or else the file as a whole, say of a frame.

    spacing: (row, column) mm. position: `[3]` mm. orientation: `[6]`. rescale: (slope, intercept).
    time: seconds in the heart's cycle. Each is None where not told.
    """

    spacing: tuple[float, float] | None
    position: np.ndarray | None
    orientation: np.ndarray | None
    rescale: tuple[float, float]
    time: float | None

    @classmethod
    def of(cls, file, k: int, source: str) -> "Frame":
        own = (file.get("PerFrameFunctionalGroupsSequence") or [])[k : k + 1]
        groups = [*own, *(file.get("SharedFunctionalGroupsSequence") or [])]

        def find(sequence, name, *lengths):
            return numbers(group_value(groups, file, f"{sequence}Sequence", name), lengths)

        spacing = find("PixelMeasures", "PixelSpacing", 1, 2)
        if spacing is not None:
            check_positive_spacing(spacing, source)
            spacing = (float(spacing[0]), float(spacing[-1]))
        slope = find("PixelValueTransformation", "RescaleSlope", 1)
        intercept = find("PixelValueTransformation", "RescaleIntercept", 1)
        delay = find("CardiacSynchronization", "NominalCardiacTriggerDelayTime", 1)
        return cls(
            spacing,
            find("PlanePosition", "ImagePositionPatient", 3),
            find("PlaneOrientation", "ImageOrientationPatient", 6),
            (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0]),
            None if delay is None else delay[0] / 1000,
        )


def numbers(value, lengths: tuple[int, ...]) -> np.ndarray | None:
    """A DICOM value as float64 array; None if it is missing, no number or of another length."""
    try:
        array = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        return None
    return array if array.size in lengths and np.isfinite(array).all() else None


def _dataset(path, source):
    """The `pydicom.Dataset` of a file, which may lack the preamble; ImageError without pixels."""
    import pydicom

    try:
        file = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        file = _without_preamble(path, source)
    if not any(name in file for name in _PIXELS):
        raise ImageError(f"{source}: not a readable DICOM image (it holds no pixels)")
    return file


def _without_preamble(path, source):
    """A file that does not begin as DICOM's part 10 demands, as old archives and some networks
    write it: the data set follows at once, or after the letters DICM."""
    import pydicom

    data = path.read_bytes()
    if data.startswith(b"DICM"):
        data = bytes(128) + data
    try:
        file = pydicom.dcmread(io.BytesIO(data), force=True)
        implicit, little = file.original_encoding
        usable = "Rows" in file and "Columns" in file
    except Exception:  # whatever the bytes of something else make pydicom raise
        usable = False
    if not usable:
        raise ImageError(
            f"{source}: not a DICOM image (it has neither the letters DICM at byte 128 nor the "
            "attributes of an image)"
        )
    if "TransferSyntaxUID" not in file.file_meta:
        names = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
        file.file_meta.TransferSyntaxUID = (
            names[not implicit] if little else pydicom.uid.ExplicitVRBigEndian
        )
    return file


@contextlib.contextmanager
def _for_itk(path: Path, file):
    """The path of a file that ITK recognises as DICOM: itself, or a copy with the preamble."""
    with open(path, "rb") as stream:
        complete = stream.read(132).endswith(b"DICM")
    if complete or itk.recognise(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "image.dcm"
        file.save_as(copy, enforce_file_format=True)
        yield copy


def _check_length(file, source):
    """ImageError if pixels end early; GDCM fills up with what lies in memory, or asks for more."""
    from pydicom.encaps import parse_fragments

    if "PixelData" not in file:
        return
    if file.file_meta.TransferSyntaxUID.is_compressed:
        parse_fragments(file.PixelData)  # raises ValueError where the chain of their lengths breaks
        return
    samples = int(file.get("SamplesPerPixel") or 1)
    samples = 2 if file.PhotometricInterpretation in _SHARED_CHROMA else samples
    pixels = int(file.Rows) * int(file.Columns) * int(file.get("NumberOfFrames") or 1)
    expected = (pixels * samples * int(file.BitsAllocated) + 7) // 8
    if len(file.PixelData) < expected:
        raise ImageError(
            f"{source}: not a readable DICOM image (ends early: {len(file.PixelData)} bytes of "
            f"pixels, expected {expected})"
        )


def _regions(file, source) -> tuple[Region, ...]:
    """The 2-D regions of an ultrasound image, which ITK ignores, the largest first."""
    regions = []
    for item in file.get("SequenceOfUltrasoundRegions") or []:
        units = item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection")
        if item.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRES,) * 2:
            continue
        rows = int(item.RegionLocationMinY0), int(item.RegionLocationMaxY1)
        columns = int(item.RegionLocationMinX0), int(item.RegionLocationMaxX1)
        spacing = 10 * abs(float(item.PhysicalDeltaY)), 10 * abs(float(item.PhysicalDeltaX))
        check_positive_spacing(spacing, source)
        regions.append(Region(rows, columns, tuple(float(f"{s:.4g}") for s in spacing)))
    return tuple(sorted(regions, key=Region.pixels, reverse=True))


def _times(file, frames: int) -> np.ndarray | None:
    """`[T]` seconds of the frames of a cine; None where the file tells none."""
    if frames < 2:
        return None
    steps = numbers(file.get("FrameTimeVector"), (frames,))
    if steps is not None:  # ms since the frame before; the first is 0
        return np.cumsum(steps) / 1000
    step = numbers(file.get("FrameTime"), (1,))
    if step is None or step[0] <= 0:
        rate = numbers(file.get("CineRate") or file.get("RecommendedDisplayFrameRate"), (1,))
        if rate is None or rate[0] <= 0:
            return None
        step = 1000 / rate
    return np.arange(frames) * step[0] / 1000


def _enhanced(path, file, frames, source) -> Stored:
    """Several frames by their functional groups: slices at each position, then times.

    ITK scales every frame like the first, and refuses frames at one and the same position.
    """
    first = frames[0]
    if first.orientation is None or first.spacing is None:
        raise ImageError(f"{source}: its frames have positions, but no orientation or spacing")
    for frame in frames:
        if frame.spacing != first.spacing or (
            frame.orientation is None
            or not np.allclose(frame.orientation, first.orientation, atol=1e-4)
        ):
            raise ImageError(f"{source}: its frames differ in orientation or spacing")
    positions = np.stack([frame.position for frame in frames])
    levels, members = slices_of(positions, first.orientation, source)
    if len({len(frames_there) for frames_there in members}) > 1:
        raise ImageError(
            f"{source}: {len(frames)} frames at {len(levels)} positions, expected as many at each"
        )
    if (positions[0] - positions[-1]) @ _normal(first.orientation) > 0:  # as the file has them
        levels, members = levels[::-1], members[::-1]
    timed = all(frame.time is not None for frame in frames)
    if timed:
        members = [sorted(there, key=lambda k: frames[k].time) for there in members]
    order = np.array(members).T  # [T, S]
    array = _pixels(path, file, frames, source)[order]
    geometry = stack_geometry(
        levels, positions[order[0, 0]], first.orientation, array.shape[1:], first.spacing, source
    )
    times = None
    if timed and len(order) > 1:
        times = seconds_of_frames(np.array([[frames[k].time for k in there] for there in order]))
        if not (np.diff(times, axis=0) > 0).all():
            raise ImageError(
                f"{source}: several frames at one position and trigger delay (magnitude and phase, "
                "or several acquisitions?), expected one"
            )
    return Stored(array, geometry, orientation_known=True, times=times)


def seconds_of_frames(times: np.ndarray) -> np.ndarray:
    """`[T, S]` of every frame and slice, from the first frame; `[T]` if all slices agree."""
    times = times - times[0]
    return times[:, 0] if np.allclose(times, times[:, :1], atol=1e-6) else times


def slices_of(
    positions: np.ndarray, orientation: np.ndarray, source: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which planes lie in one slice.

    Args:
        positions: `[N, 3]` mm, of the first pixel of every plane.
        orientation: `[6]`, directions of rows and columns, common to all.
        source: for messages.

    Returns:
        (`[S]` mm along the normal, increasing; of every slice the numbers of its planes)

    Raises:
        ImageError: planes that are shifted within themselves; slices that are not evenly spaced.
    """
    normal = _normal(orientation)
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    new_level = np.diff(depth[order], prepend=-np.inf) > _SAME_LEVEL_MM
    members = np.split(order, np.flatnonzero(new_level)[1:])
    levels = np.array([np.round(depth[planes].mean(), 3) for planes in members])
    if not np.allclose(positions, positions[0] + np.outer(depth - depth[0], normal), atol=0.1):
        raise ImageError(f"{source}: its frames do not lie on each other as slices do")
    steps = np.diff(levels)
    if len(steps) and not np.allclose(steps, steps[0], rtol=0.01, atol=0.02):
        wide = int(np.argmax(steps))
        raise ImageError(
            f"{source}: its slices are not evenly spaced: {steps.min():.4g} mm apart, but "
            f"{steps[wide]:.4g} mm between those at {levels[wide]:.4g} and "
            f"{levels[wide + 1]:.4g} mm along the normal; is one missing?"
        )
    return levels, members


def stack_geometry(
    levels: np.ndarray,
    origin: np.ndarray,
    orientation: np.ndarray,
    shape: tuple[int, ...],
    spacing: tuple[float, float],
    source: str,
) -> Geometry:
    """Geometry of the slices that `slices_of` found, in the order of `levels`."""
    step = float(levels[1] - levels[0]) if len(levels) > 1 else 1.0
    normal = _normal(orientation) * np.copysign(1, step)
    direction = np.stack([orientation[:3], orientation[3:], normal], axis=1)
    return Geometry(shape, (abs(step), *spacing), origin, orthonormal(direction, source))


def _normal(orientation: np.ndarray) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def _pixels(path, file, frames, source) -> np.ndarray:
    """`[N, H, W]` in the file's order, rescaled frame by frame."""
    alike = all(frame.rescale == frames[0].rescale for frame in frames)
    if alike:
        try:
            reading = itk.load(path, source)
            if reading.components == 1:
                return reading.array.reshape(len(frames), *reading.array.shape[-2:])
        except ImageError:
            pass  # frames at one position: see above
    try:
        array = file.pixel_array
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise ImageError(
            f"{source}: not a readable DICOM image ({one_line(error)}); compressed frames may "
            f"need: {_CODECS}"
        ) from None
    if array.ndim != 3:
        raise ImageError(f"{source}: enhanced DICOM with shape {array.shape}, expected grey frames")
    if file.PhotometricInterpretation == "MONOCHROME1":  # 0 is white; as ITK does it
        array = (-1 if file.PixelRepresentation else 2**file.BitsStored - 1) - array.astype(int)
    scaled = [
        plane * slope + intercept
        for plane, (slope, intercept) in zip(array, (f.rescale for f in frames), strict=True)
    ]
    return np.stack(scaled).astype(np.float32)
