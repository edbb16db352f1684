"""Which DICOM files and frames an image or a cine was read from."""

from pathlib import Path

import numpy as np

from ldm_morph_jax.files import dicom, folders, series
from ldm_morph_jax.files.dicom_objects.source import REQUIRED, Source, SourceFrame
from ldm_morph_jax.files.errors import FileError, ImageError
from ldm_morph_jax.files.geometry import Geometry

_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_PLANE = 0.05  # mm; frames that are further apart across their plane are of different slices


def read_source(
    path: str | Path, place: Geometry | None = None, *, frame: int | None = None
) -> Source:
    """The files and frames of an image or a cine.

    Args:
        path: a DICOM file, or a folder of them.
        place: 3-D geometry (S, H, W) of what was read; frames of other slices are left out, where
            the files tell which they are.
        frame: only that one (from 0); None: all.

    Returns:
        Frames in the order of `movies.read_cine`.

    Raises:
        FileError: no DICOM, a file without one of the UIDs that an object must refer to, or frames
            that do not fill the slices.
    """
    path = Path(path)
    try:
        slices = _of_folder(path) if path.is_dir() else _of_file(path)
    except ImageError as error:
        raise FileError(str(error)) from None
    positions = [_told(frames[0], path).position for frames in slices]
    placed = all(position is not None for position in positions)
    if placed and place is not None:
        index = [float(place.to_index(position)[0]) for position in positions]
        slices = [
            [
                frame
                for i, there in zip(index, slices, strict=True)
                if abs(i - k) * place.spacing[0] < _PLANE
                for frame in there
            ]
            for k in range(place.shape[0])
        ]
    elif place is not None and place.shape[0] != len(slices):
        raise FileError(f"{path}: its frames do not tell which slice they are of")
    if frame is not None:
        slices = [there[frame : frame + 1] for there in slices]
    counts = [len(there) for there in slices]
    if len(set(counts)) > 1 or 0 in counts:
        raise FileError(
            f"{path}: found {counts} DICOM frames of the slices, expected as many of each, and at "
            "least one"
        )
    return Source(path, tuple(zip(*slices, strict=True)), placed)


def _of_folder(path: Path) -> list[list[SourceFrame]]:
    """`[S][T]` of files of a frame each, or of all frames of a slice, or of all of them."""
    files = folders.images_in(path)
    if len(files) == 1:
        return _of_file(files[0])
    for file in files:
        _header(file, path)  # says so before anything else that a file is not DICOM
    return [
        [frame for one in there for frames in _of_file(one.path) for frame in frames]
        for there in series.in_order(files, str(path))
    ]


def _of_file(path: Path) -> list[list[SourceFrame]]:
    """`[S][T]` of a file: slices by position, frames by their time in the beat, or as they come."""
    header = _header(path, path)
    count = header.get("NumberOfFrames")
    if count is None:
        return [[SourceFrame(header, None)]]
    frames = [SourceFrame(header, k + 1) for k in range(int(count))]
    told = [_told(frame, path) for frame in frames]
    slices = [range(len(frames))]
    if told[0].orientation is not None and all(one.position is not None for one in told):
        positions = np.stack([one.position for one in told])
        _, slices = dicom.slices_of(positions, told[0].orientation, str(path))
    for s, there in enumerate(slices):
        if all(told[k].time is not None for k in there):
            slices[s] = sorted(there, key=lambda k: told[k].time)
    return [[frames[k] for k in there] for there in slices]


def _header(file: Path, path: Path):
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError):
        raise FileError(
            f"{path}: --dicom needs a DICOM source, whose patient, study and frames its results "
            f"belong to; {'it' if file == path else file.name} is not DICOM"
        ) from None
    for name in _UIDS:
        if not header.get(name):
            raise FileError(f"{file}: has no {name}, which a DICOM result must refer to")
    for name in REQUIRED:
        if name not in header:
            setattr(header, name, "")
    return header


def _told(frame: SourceFrame, path: Path) -> dicom.Frame:
    """What the file says of a frame."""
    return dicom.Frame.of(frame.header, (frame.number or 1) - 1, str(path))
