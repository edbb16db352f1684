"""Videos, decoded by PyAV; a damaged one is refused as files of every other format are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import ImageError, one_line
from ldm_morph_jax.files.stored import Stored, without_place

SUFFIXES = (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv", ".webm")
# FFmpeg goes on after an error, with what it can guess, unless it is told not to.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


def read_video(path: Path, source: str) -> Stored:
    """All frames of a video, as their luminance."""
    frames = list(video_frames(path))
    if not frames:
        raise ImageError(f"{source}: not a readable video (it has no frame)")
    times = np.array([seconds for seconds, _ in frames])
    array = np.stack([frame for _, frame in frames])[:, None]
    times = times - times[0] if np.isfinite(times).all() else None
    return without_place(array, array.shape[-2:], ("luminance of a video",), times)


def video_frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, `[H, W]` uint8 luminance) of every frame of a video; NaN where it has no time.

    Raises ImageError if PyAV is not installed, or the video cannot be read, is cut short or damaged
    (where its codec can tell: uncompressed frames and VP9 have nothing to check).
    """
    try:
        import av
    except ImportError:
        raise ImageError(
            f"{path}: reading videos needs PyAV: pip install 'ldm_morph_jax[video]'"
        ) from None
    _check_container(path)
    number = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = _STRICT
            packets = 0
            for packet in container.demux(stream):
                packets += packet.dts is not None or packet.size > 0  # the last one is empty
                if packet.is_corrupt:
                    raise ValueError(f"damaged after frame {number}")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise ValueError(f"frame {number} is damaged")
                    seconds = np.nan if frame.time is None else float(frame.time)
                    yield seconds, frame.to_ndarray(format="gray")
                    number += 1
            if packets < stream.frames:
                raise ValueError(f"its header says {stream.frames} frames, {packets} are there")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ImageError(
            f"{path}: not a readable video (damaged, cut short or of an unknown kind, after "
            f"{number} frames: {one_line(error)})"
        ) from error


def _check_container(path: Path) -> None:
    """ImageError if a file ends before its container does, which FFmpeg takes for the end."""
    try:
        length = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if start.startswith(b"RIFF"):
        end = 8 + int.from_bytes(start[4:8], "little")
    elif start.startswith(b"\x1aE\xdf\xa3"):
        end = _end_of_matroska(start)
    else:  # MP4 and its kin keep their index at one end, without which nothing is read
        return
    if length < end:
        raise ImageError(
            f"{path}: not a readable video (cut short: {length} bytes, expected {end})"
        )


def _end_of_matroska(start: bytes) -> int:
    """The end of the segment, which holds everything; 0 where the header does not say.

    A Matroska element is an identifier, its length and so many bytes (RFC 8794).
    """
    size, header = _variable_length(start, 4)
    at = 4 + size + (header or 0)
    if header is None or start[at : at + 4] != b"\x18S\x80g":
        return 0
    size, segment = _variable_length(start, at + 4)
    return 0 if segment is None else at + 4 + size + segment


def _variable_length(data: bytes, at: int) -> tuple[int, int | None]:
    """(bytes taken, value) of a number whose leading zeros tell its length; None: unknown."""
    if at >= len(data) or not data[at]:
        return 0, None
    size = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + size]) & ((1 << 7 * size) - 1)
    return size, None if value == (1 << 7 * size) - 1 else value
