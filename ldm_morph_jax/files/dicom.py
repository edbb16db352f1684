"""DICOM: pixels and geometry by ITK (which decompresses, rescales, inverts MONOCHROME1).

pydicom tells what ITK does not: whether spacing and position are in the file at all, the spacing of
ultrasound regions, frame times, and the functional groups of enhanced files in which slices and
frames are mixed or scaled differently.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldm_morph_jax.files import itk
from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.dicom_objects import segmentation
from ldm_morph_jax.files.errors import ImageError, one_line
from ldm_morph_jax.files.geometry import Geometry, check_positive_spacing, orthonormal
from ldm_morph_jax.files.stored import Stored

_CENTIMETRES, _TISSUE = 3, 1  # PhysicalUnits, RegionSpatialFormat: 2-D
_CODECS = "pip install 'ldm_morph_jax[codecs]'"
# bytes of chroma in YBR_FULL_422 are shared by two pixels
_SHARED_CHROMA = ("YBR_FULL_422", "YBR_PARTIAL_422")


def read(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a DICOM file of one or several frames.

    Frames of an enhanced file are slices where their positions differ; frames of any other file
    are slices unless it tells their times.
    """
    try:
        return _read(path, source, luminance)
    except ImageError:
        raise
    except Exception as error:  # pydicom decodes a value when it is asked for: anything can come
        raise ImageError(f"{source}: not a readable DICOM image ({one_line(error)})") from None


def _read(path, source, luminance) -> Stored:
    file = _dataset(path, source)
    if file.get("SOPClassUID") in (segmentation.SEGMENTATION, segmentation.LABEL_MAP):
        return segmentation.read(path, source)
    _check_length(file, source)
    frames = [_Frame.of(file, k, source) for k in range(int(file.get("NumberOfFrames") or 1))]
    placed = all(frame.position is not None for frame in frames)
    if len(frames) > 1 and placed and "PerFrameFunctionalGroupsSequence" in file:
        return _enhanced(path, file, frames, source)
    reading = itk.load(path, source)
    grey, notes = to_grey(reading.array, reading.components, source, luminance=luminance)
    array, geometry = itk.frames_and_slices(grey, reading.geometry, source)
    first = frames[0]
    # ImagerPixelSpacing, at the detector of a projection, is what ITK takes next
    told = first.spacing is not None or _numbers(file.get("ImagerPixelSpacing"), (2,)) is not None
    region = None if told else _region_spacing(file, source)
    if region is not None:
        geometry = replace(geometry, spacing=(geometry.spacing[0], *region))
    times = _times(file, len(frames))
    if times is not None:  # frames, not slices
        array = array.reshape(len(frames), 1, *array.shape[-2:])
        geometry = replace(geometry, shape=array.shape[1:])
    known = first.position is not None and first.orientation is not None
    return Stored(array, geometry, told or region is not None, known, times, notes)


@dataclass(frozen=True)
class _Frame:
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
    def of(cls, file, k: int, source: str) -> "_Frame":
        shared = list(file.get("SharedFunctionalGroupsSequence") or [])
        own = list(file.get("PerFrameFunctionalGroupsSequence") or [])
        groups = ([own[k]] if k < len(own) else []) + shared

        def find(sequence, name):
            found = (list(group.get(sequence) or []) for group in groups)
            items = [item[0] for item in found if item]
            value = next((item.get(name) for item in items if item.get(name) is not None), None)
            return file.get(name) if value is None else value

        spacing = _numbers(find("PixelMeasuresSequence", "PixelSpacing"), (1, 2))
        if spacing is not None:
            check_positive_spacing(spacing, source)
            spacing = (float(spacing[0]), float(spacing[-1]))
        slope = _numbers(find("PixelValueTransformationSequence", "RescaleSlope"), (1,))
        intercept = _numbers(find("PixelValueTransformationSequence", "RescaleIntercept"), (1,))
        delay = find("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
        delay = _numbers(delay, (1,))
        return cls(
            spacing,
            _numbers(find("PlanePositionSequence", "ImagePositionPatient"), (3,)),
            _numbers(find("PlaneOrientationSequence", "ImageOrientationPatient"), (6,)),
            (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0]),
            None if delay is None else delay[0] / 1000,
        )


def _numbers(value, lengths) -> np.ndarray | None:
    """A DICOM value as float64 array; None if it is missing, no number or of another length."""
    try:
        array = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        return None
    return array if array.size in lengths and np.isfinite(array).all() else None


def _dataset(path, source):
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break rules that do not matter here
        file = pydicom.dcmread(path)
    if not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{source}: not a readable DICOM image (it holds no pixels)")
    return file


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


def _region_spacing(file, source) -> tuple[float, float] | None:
    """(row, column) mm of the largest 2-D region of an ultrasound image, which ITK ignores."""
    largest, found = 0, None
    for region in file.get("SequenceOfUltrasoundRegions") or []:
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        if region.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRES,) * 2:
            continue
        width = region.RegionLocationMaxX1 - region.RegionLocationMinX0
        height = region.RegionLocationMaxY1 - region.RegionLocationMinY0
        spacing = 10 * abs(region.PhysicalDeltaY), 10 * abs(region.PhysicalDeltaX)
        if width * height > largest:
            check_positive_spacing(spacing, source)
            largest, found = width * height, spacing
    return found


def _times(file, frames: int) -> np.ndarray | None:
    """`[T]` seconds of the frames of a cine; None where the file tells none."""
    if frames < 2:
        return None
    steps = _numbers(file.get("FrameTimeVector"), (frames,))
    if steps is not None:  # ms since the frame before; the first is 0
        return np.cumsum(steps) / 1000
    step = _numbers(file.get("FrameTime"), (1,))
    if step is None or step[0] <= 0:
        rate = _numbers(file.get("CineRate") or file.get("RecommendedDisplayFrameRate"), (1,))
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
    across, down = first.orientation[:3], first.orientation[3:]
    normal = np.cross(across, down)
    positions = np.stack([frame.position for frame in frames])
    depth = np.round(positions @ normal, 2)
    if not np.allclose(positions, positions[0] + np.outer(depth - depth[0], normal), atol=0.1):
        raise ImageError(f"{source}: its frames do not lie on each other as slices do")
    levels = np.unique(depth)
    levels = levels[::-1] if depth[0] > depth[-1] else levels
    members = [np.flatnonzero(depth == level) for level in levels]
    if len({len(frames_there) for frames_there in members}) > 1:
        raise ImageError(
            f"{source}: {len(frames)} frames at {len(levels)} positions, expected as many at each"
        )
    step = np.diff(levels)
    if len(step) and not np.allclose(step, step[0], rtol=0.01, atol=0.02):
        raise ImageError(f"{source}: its slices are not evenly spaced")
    timed = all(frame.time is not None for frame in frames)
    if timed:
        members = [sorted(there, key=lambda k: frames[k].time) for there in members]
    order = np.array(members).T  # [T, S]
    array = _pixels(path, file, frames, source)[order]
    direction = np.stack([across, down, normal * np.copysign(1, step[0] if len(step) else 1)], 1)
    geometry = Geometry(
        array.shape[1:],
        (abs(float(step[0])) if len(step) else 1.0, *first.spacing),
        positions[order[0, 0]],
        orthonormal(direction, source),
    )
    times = None
    if timed and len(order) > 1:
        times = np.array([frames[k].time for k in order[:, 0]])
        times = times - times[0]
    return Stored(array, geometry, times=times)


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
