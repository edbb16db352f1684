"""Reading a cine: the frames of one slice, or of a stack, and when they were taken."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import ImageError, one_line
from ldm_morph_jax.files.geometry import plain_geometry
from ldm_morph_jax.files.images import Image, image_of_frame, with_spacing
from ldm_morph_jax.files.reading import read_stored
from ldm_morph_jax.files.stored import Stored

VIDEOS = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv", ".webm")


@dataclass(frozen=True)
class Cine:
    """Frames on one grid.

    frames: `[T, H, W]`, or `[T, S, H, W]` of a stack, original values.
    times: `[T]` seconds, increasing; None where unknown.
    first: the first frame as an `Image`, with the grid's place in space.
    """

    frames: np.ndarray
    times: np.ndarray | None
    first: Image

    def image(self, k: int) -> Image:
        """Frame k as an `Image`."""
        return replace(self.first, array=self.frames[k])


def read_cine(
    path: str | Path,
    slice: int | str | None = None,
    *,
    frame_times: Sequence[float] | None = None,
    fps: float | None = None,
    spacing=None,
    oblique: bool = False,
) -> Cine:
    """Read a cine.

    Args:
        path: a file of several frames (4-D NIfTI, MetaImage or NRRD, multi-frame DICOM, a stack
            (H, W, T) or NPZ `[T, H, W]`, whose slices are taken as frames), a video (needs PyAV),
            or a folder of single frames: DICOM ordered by trigger time or instance number, pictures
            by the numbers in their names. Colours become their luminance.
        slice: of several slices, which one (from 0), or "all".
        frame_times: seconds, one for each frame; in place of the file's.
        fps: frames per second; likewise.
        spacing, oblique: as in `read_image`.

    Raises:
        ImageError: fewer than two frames, frames that differ in grid, times that do not increase,
            and what `read_image` refuses.
    """
    path = Path(path)
    source = str(path)
    if path.is_dir():
        stored = _read_folder(path, source)
    elif path.suffix.lower() in VIDEOS and path.is_file():
        stored = _read_video(path, source)
    else:
        stored = read_stored(path, luminance=True)
    stored = with_spacing(stored, spacing, source)
    if len(stored.array) == 1 and stored.array.shape[1] > 1 and slice is None:
        grid = replace(stored.geometry, shape=(1, *stored.geometry.shape[-2:]))
        stored = replace(stored, array=stored.array.swapaxes(0, 1), geometry=grid)
    count = len(stored.array)
    if count < 2:
        raise ImageError(f"{source}: holds 1 frame, expected at least 2")
    images = [image_of_frame(stored, k, slice, source, oblique=oblique) for k in range(count)]
    times = _times(stored.times, frame_times, fps, count, source)
    return Cine(np.stack([image.array for image in images]), times, images[0])


def video_frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, `[H, W]` uint8 luminance) of every frame of a video.

    Raises ImageError if PyAV is not installed or the video cannot be read.
    """
    try:
        import av
    except ImportError:
        raise ImageError(
            f"{path}: reading videos needs PyAV: pip install 'ldm_morph_jax[video]'"
        ) from None
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                seconds = np.nan if frame.time is None else float(frame.time)
                yield seconds, frame.to_ndarray(format="gray")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ImageError(f"{path}: not a readable video ({one_line(error)})") from error


def _read_video(path, source) -> Stored:
    frames = list(video_frames(path))
    if not frames:
        raise ImageError(f"{source}: not a readable video (it has no frame)")
    times = np.array([seconds for seconds, _ in frames])
    array = np.stack([frame for _, frame in frames])[:, None]
    known = np.isfinite(times).all()
    return Stored(
        array,
        plain_geometry(array.shape[-2:]),
        False,
        False,
        times - times[0] if known else None,
        ("luminance of a video",),
    )


def _read_folder(path: Path, source: str) -> Stored:
    """Single frames, one file each, in order."""
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise ImageError(f"{source}: the folder holds no file")
    frames = {file: read_stored(file, luminance=True) for file in files}
    order, times = _dicom_order(files)
    if order is None:
        order = sorted(files, key=_by_numbers)
    first = frames[order[0]]
    for file in order:
        one = frames[file]
        if one.array.shape[:2] != (1, 1):
            raise ImageError(f"{file}: holds {one.array.shape[:2]} frames and slices, expected one")
        if one.array.dtype != first.array.dtype or not one.geometry.same_as(first.geometry):
            raise ImageError(
                f"{file}: has another grid, place or type than {order[0]}, expected the same in "
                "all frames"
            )
    array = np.concatenate([frames[file].array for file in order])
    return replace(first, array=array, times=times)


def _dicom_order(files: list[Path]) -> tuple[list[Path] | None, np.ndarray | None]:
    """DICOM files by trigger time (with times) or instance number; None if they have neither."""
    import pydicom

    numbers = {"TriggerTime": {}, "InstanceNumber": {}}
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            return None, None
        for name, values in numbers.items():
            if header.get(name) is not None:
                values[file] = float(header.get(name))
    for name, values in numbers.items():
        if len(set(values.values())) == len(files):
            order = sorted(files, key=values.__getitem__)
            seconds = np.array([values[file] for file in order]) / 1000
            return order, seconds - seconds[0] if name == "TriggerTime" else None
    return None, None


def _by_numbers(file: Path):
    """Sorts frame2.png before frame10.png."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", file.name)
    ]


def _times(own, given, fps, frames: int, source: str) -> np.ndarray | None:
    if given is not None and fps is not None:
        raise ImageError(f"{source}: frame times and frames per second given, expected one of them")
    if fps is not None:
        if not (np.isfinite(fps) and fps > 0):
            raise ImageError(f"{source}: {fps} frames per second, expected a positive number")
        return np.arange(frames) / fps
    times = own if given is None else np.asarray(given, np.float64)
    if times is None:
        return None
    if times.shape != (frames,):
        raise ImageError(f"{source}: {times.size} frame times, expected {frames}")
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise ImageError(f"{source}: its frame times do not increase from frame to frame")
    return times
