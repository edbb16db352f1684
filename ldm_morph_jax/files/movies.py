"""Cines: the frames of one slice, or of a stack, and when they were taken."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ldm_morph_jax.files.arrays import plain_numbers
from ldm_morph_jax.files.dicom_objects.contours import STRUCTURE_SET
from ldm_morph_jax.files.dicom_objects.source import sop_class
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import (
    FEWEST_SLICES,
    VOLUME,
    Image,
    Spacing,
    image_of_frame,
    images_from_array,
    mask_of_frame,
    masks_of,
    read_anything,
    read_mask,
    slices_as_frames,
    volume_from_array,
    with_spacing,
)

# A beat takes 0.06 s (a mouse's) to 3 s, and a cine shows it in some ten frames or more.
_LONGEST_BEAT, _LONGEST_STEP = 10.0, 0.5
_SHORTEST_BEAT, _SHORTEST_STEP = 0.05, 0.0002


@dataclass(frozen=True)
class Cine:
    """Frames on one grid.

    frames: `[T, H, W]`, or `[T, S, H, W]` of a stack or of volumes, original values.
    times: `[T]` seconds, increasing; None where unknown.
    first: the first frame as an `Image`, with the grid's place in space, and notes on the reading.
    slices_are_frames: whether the file is a stack whose slices were taken for frames.
    blank_slices: those of a stack that show one value only, in every frame.
    """

    frames: np.ndarray
    times: np.ndarray | None
    first: Image
    slices_are_frames: bool = False
    blank_slices: tuple[int, ...] = ()

    def image(self, k: int) -> Image:
        """Frame k as an `Image`."""
        return replace(self.first, array=self.frames[k])

    def check_frame(self, k: int) -> None:
        """Raise ImageError unless it has a frame k."""
        if not 0 <= k < len(self.frames):
            raise ImageError(
                f"{self.first.source}: has no frame {k}; its frames are 0 to {len(self.frames) - 1}"
            )


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
            or a folder: of DICOM files of any number of slices (see `files.series`), or of pictures
            or volumes by the numbers in their names. Colours become their luminance.
        slice: of several slices, which one (from 0), or "all", or "volume", the default where they
            are `FEWEST_SLICES` or more and their distance is known.
        frame_times: seconds, one for each frame; in place of the file's.
        fps: frames per second; likewise.
        spacing, oblique: as in `read_image`.

    Raises:
        ImageError: fewer than two frames, frames that differ in grid, times that do not increase,
            and what `read_image` refuses, with the number of the frame.
    """
    path = Path(path)
    source = str(path)
    stored = with_spacing(read_anything(path, luminance=True), spacing, source)
    slices_are_frames = len(stored.array) == 1 and stored.array.shape[1] > 1 and slice is None
    if slices_are_frames and path.is_dir():
        raise ImageError(
            f"{source}: holds one frame of {stored.array.shape[1]} slices at different positions, "
            "expected a cine"
        )
    if slices_are_frames:
        stored = slices_as_frames(stored)
    count = len(stored.array)
    if count < 2:
        raise ImageError(f"{source}: holds 1 frame, expected at least 2")
    if slice is None and stored.spacing_known and stored.array.shape[1] >= FEWEST_SLICES:
        slice = VOLUME
    own_times = stored.times
    if own_times is not None and own_times.ndim == 2:  # every slice has its own
        one_slice = isinstance(slice, int) and 0 <= slice < own_times.shape[1]
        own_times = own_times[:, slice] if one_slice else own_times.mean(axis=1)
    images = [image_of_frame(stored, k, slice, source, oblique=oblique) for k in range(count)]
    frames = np.stack([image.array for image in images])
    times = _times(own_times, frame_times, fps, count, source)
    first = replace(images[0], notes=(*images[0].notes, *notes_on_times(times)))
    return Cine(frames, times, first, slices_are_frames, _blank_slices(frames, source))


def cine_of(
    value: Any,
    slice: int | str | None = None,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    fps: float | None = None,
    spacing: Spacing | None = None,
    oblique: bool = False,
) -> Cine:
    """The cine of whatever a caller has: a `Cine`, a path (see `read_cine`), or an array (see
    `cine_from_arrays`)."""
    if isinstance(value, Cine):
        if any(given is not None for given in (slice, times, fps, spacing)):
            raise ImageError(
                f"{value.first.source}: `slice`, `times`, `fps` and `spacing` are those of the cine"
            )
        return value
    if isinstance(value, str | os.PathLike):
        return read_cine(value, slice, frame_times=times, fps=fps, spacing=spacing, oblique=oblique)
    if slice not in (None, VOLUME):
        raise ImageError("frames: `slice` is of files; index the array")
    return cine_from_arrays(value, spacing=spacing, times=times, fps=fps)


def cine_from_arrays(
    frames: ArrayLike,
    *,
    spacing: Spacing | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    fps: float | None = None,
) -> Cine:
    """A cine without a place in space.

    Args:
        frames: `[T, H, W]`, or `[T, S, H, W]` of volumes, NumPy or JAX, grey values of any range.
        spacing: mm, one number or (row, column), of volumes (slice, row, column); None where
            unknown.
        times: `[T]` seconds, increasing; None where unknown.
        fps: frames per second, in their place.

    Raises:
        ImageError: fewer than two frames, NaN, masked pixels, constant frames, times that do not
            fit or increase, a spacing that no heart's image has.
    """
    frames = plain_numbers(frames, "frames")
    if frames.ndim not in (3, 4) or len(frames) < 2:
        raise ImageError(
            f"frames: found shape {frames.shape}, expected [T, H, W], or [T, S, H, W] of volumes, "
            "with T >= 2"
        )
    if frames.ndim == 3:
        images, _ = images_from_array(frames, spacing, source="frames")
    else:
        images = [
            volume_from_array(frame, spacing, source=f"frames[{t}]")
            for t, frame in enumerate(frames)
        ]
    times = _times(None, times, fps, len(frames), "frames")
    first = replace(images[0], source="frames", notes=notes_on_times(times))
    return Cine(np.stack([image.array for image in images]), times, first)


def read_frame_mask(
    path: str | Path, cine: Cine, frame: int, slice: int | str | None = None
) -> Image:
    """The labels of one frame of a cine, on its grid; see `images.read_mask`.

    A mask of one frame is taken for one of this frame. Of a mask of as many frames as the cine, or
    of as many slices where these are frames, it is this frame's.

    Raises:
        ImageError: a mask of another number of frames, and what `read_mask` refuses.
    """
    if sop_class(path) == STRUCTURE_SET:
        return read_mask(path, cine.first)
    source, count = str(path), len(cine.frames)
    stored = read_anything(path, labels=True)
    in_slices = cine.slices_are_frames or (slice is None and not stored.position_known)
    several = len(stored.array) == 1 and stored.array.shape[1] > 1
    if several and in_slices and cine.frames.ndim == 3:
        stored = slices_as_frames(stored)
    if len(stored.array) not in (1, count):
        raise ImageError(
            f"{source}: holds masks of {len(stored.array)} frames, expected 1 or {count} as "
            f"{cine.first.source}"
        )
    return mask_of_frame(stored, cine.first, frame, slice, source)


def frame_mask_of(value: Any, cine: Cine, frame: int, slice: int | str | None = None) -> Image:
    """The labels of one frame of a cine, on its grid.

    Args:
        value: a path (see `read_frame_mask`), an `Image`, a SimpleITK image, or an array
            `[*space]`, of all frames `[T, *space]`.
        cine, frame, slice: as of `read_frame_mask`.

    Raises:
        ImageError: what `read_frame_mask` refuses.
    """
    if isinstance(value, str | os.PathLike):
        return read_frame_mask(value, cine, frame, slice)
    if getattr(value, "shape", None) == cine.frames.shape:  # an array
        value = value[frame]
    return masks_of(value, [cine.first], slice=slice)[0]


def notes_on_times(times: np.ndarray | None) -> tuple[str, ...]:
    """What is to be said of times in seconds that no heart beats to: milliseconds, most often."""
    if times is None:
        return ()
    step, span = float(np.median(np.diff(times))), float(times[-1] - times[0])
    if step > _LONGEST_STEP:
        return (
            f"frames {step:.4g} s apart, {span:.4g} s in all: no heart beats so slowly; are the "
            "times in milliseconds? Strain rates are per second of these times",
        )
    if step < _SHORTEST_STEP:
        return (
            f"frames {step:.4g} s apart, {span:.4g} s in all: too fast for a heart; are the times "
            "in another unit than seconds?",
        )
    return ()


def note_on_period(period: float) -> tuple[str, ...]:
    """What is to be said of a period in seconds that no heart has."""
    if _SHORTEST_BEAT <= period <= _LONGEST_BEAT:
        return ()
    return (f"a period of {period:.4g} s: no heart beats so; is it in another unit than seconds?",)


def _blank_slices(frames: np.ndarray, source: str) -> tuple[int, ...]:
    """Slices of a stack that show one value in all frames.

    Raises ImageError where one is blank in some frames only.
    """
    if frames.ndim == 3:
        return ()
    blank = frames.min(axis=(2, 3)) == frames.max(axis=(2, 3))  # [T, S]
    for k in np.flatnonzero(blank.any(axis=0) & ~blank.all(axis=0)):
        t = int(np.argmax(blank[:, k]))
        raise ImageError(
            f"{source}: frame {t} is constant ({frames[t, k, 0, 0]}) in slice {k}, which other "
            "frames show"
        )
    return tuple(int(k) for k in np.flatnonzero(blank.all(axis=0)))


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
        hint = "; give `fps` or `frame_times`" if given is None else ""
        k = int(np.argmin((np.diff(times) > 0) & np.isfinite(times[1:]))) + 1
        raise ImageError(
            f"{source}: its frame times do not increase from frame to frame "
            f"({times[k]:g} s of frame {k} after {times[k - 1]:g} s){hint}"
        )
    return times
