"""Dataset `echonet`: apical four-chamber videos of EchoNet-Dynamic.

Reads `FileList.csv` (video, split), `VolumeTracings.csv` (outlines of the left ventricle in two
frames of each video) and `Videos/*.avi` (Motion-JPEG, 112 x 112; needs PyAV, the extra `video`).

The rows of a traced frame are chords X1, Y1, X2, Y2 in pixels (x to the right, y down, pixel
centres at integers). The first is the long axis; the others cross the ventricle, in order from one
end to the other. Their first end points, followed by their second end points in reverse order, form
the outline. A pixel belongs to the mask when its centre lies inside. ED is the frame with the
larger area, ES the one with the smaller area. Videos with fewer than two traced frames are left out
and counted. Frames are numbered from 0. Splits are those of FileList.csv.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.archive import NOT_THERE, ArchiveBuilder
from ldm_morph_jax.data.base import SPLITS, Entry, Found, Pair
from ldm_morph_jax.files.tables import numbers, read_rows
from ldm_morph_jax.files.videos import video_frames

SPLIT_NAMES = {"TRAIN": "train", "VAL": "validation", "TEST": "test"}
FILE_COLUMNS = ("FileName", "Split")
TRACE_COLUMNS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
UNTRACED = "fewer than two traced frames"


class Echonet(ArchiveBuilder):
    """EchoNet-Dynamic, the two traced frames of each video."""

    name = "echonet"
    labels = {1: "left ventricle"}
    spacing_note = "unknown; 1 is a placeholder, since the videos contain no geometry"
    source_help = (
        "download EchoNet-Dynamic (free, after registration) from "
        "https://echonet.github.io/dynamic/ and give the folder that contains FileList.csv, "
        "VolumeTracings.csv and Videos/*.avi as the source"
    )
    paper_pairs = {"train": 7460, "validation": 1288, "test": 1276}
    description = "Apical four-chamber echocardiograms at ED and ES with left-ventricle masks."
    homepage = "https://echonet.github.io/dynamic/"
    citation = (
        "Ouyang D, He B, Ghorbani A, et al. Video-based AI for beat-to-beat assessment of cardiac "
        "function. Nature 580, 2020."
    )

    def find(self) -> Found:
        root = self.source / "EchoNet-Dynamic"
        root = root if root.is_dir() else self.source
        file_list, tracings = root / "FileList.csv", root / "VolumeTracings.csv"
        for path in (file_list, tracings):
            if not path.is_file():
                raise ValueError(f"echonet: no file {path}; {self.source_help}")
        traces = read_tracings(tracings)
        entries = {split: [] for split in SPLITS}
        left_out, seen = {UNTRACED: [], NOT_THERE: []}, set()
        for line, row in read_rows(file_list, FILE_COLUMNS):
            video, split = _without_suffix(row["FileName"]), row["Split"].upper()
            if split not in SPLIT_NAMES:
                raise ValueError(
                    f"{file_list}, line {line}: Split is {row['Split']!r}, expected one of "
                    f"{', '.join(SPLIT_NAMES)}"
                )
            if video in seen:
                raise ValueError(f"{file_list}, line {line}: {video} is listed twice")
            seen.add(video)
            path = root / "Videos" / f"{video}.avi"
            if len(traces.get(video, ())) < 2:
                left_out[UNTRACED].append(video)
            elif not path.is_file():
                left_out[NOT_THERE].append(video)
            else:
                files = (path, tracings)
                entries[SPLIT_NAMES[split]].append(Entry(video, video, "4ch", files, traces[video]))
        return self.checked(Found(entries, {}, left_out, (file_list, tracings)))

    def read(self, entry: Entry) -> Pair:
        path, traces = entry.files[0], entry.detail
        phases = []
        for number, image in zip(traces, read_frames(path, list(traces)), strict=True):
            name = f"{path}, frame {number}"
            preprocessing.check_image(image, name)
            if len(traces[number]) < 3:
                raise ValueError(
                    f"{name}: found {len(traces[number])} rows in VolumeTracings.csv, expected "
                    "the long axis and at least two chords"
                )
            mask = fill_polygon(outline(traces[number]), image.shape).astype(np.uint8)
            if not mask.any():
                raise ValueError(
                    f"{name}: its outline in VolumeTracings.csv contains no pixel of the "
                    f"{image.shape[0]} x {image.shape[1]} image"
                )
            phases.append((int(mask.sum()), image, mask))
        phases.sort(key=lambda phase: phase[0], reverse=True)
        (ed, ed_mask), (es, es_mask) = (
            self.to_square(image, mask) for _, image, mask in (phases[0], phases[-1])
        )
        return Pair(ed, es, ed_mask, es_mask, (1.0, 1.0))


def read_tracings(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Video (without .avi) -> frame -> chords [N, 4] (x1, y1, x2, y2), the long axis first."""
    chords = defaultdict(lambda: defaultdict(list))
    for line, row in read_rows(path, TRACE_COLUMNS):
        *ends, frame = numbers(row, TRACE_COLUMNS[1:], f"{path}, line {line}")
        if frame < 0 or frame % 1:
            raise ValueError(f"{path}, line {line}: Frame is {row['Frame']!r}, expected 0, 1, ...")
        chords[_without_suffix(row["FileName"])][int(frame)].append(ends)
    return {
        video: {frame: np.array(values) for frame, values in frames.items()}
        for video, frames in chords.items()
    }


def fill_polygon(vertices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask [H, W] bool of the pixels whose centre lies inside a closed polygon (even-odd rule).

    Args:
      vertices: [N, 2] (x, y) in pixels, column and row.
      shape: (H, W).
    """
    x1, y1 = vertices.T[..., None]
    x2, y2 = np.roll(vertices, -1, axis=0).T[..., None]
    rows = np.arange(shape[0])
    crossed = (y1 <= rows) != (y2 <= rows)  # [N, H]: the edge crosses the row of pixel centres
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(crossed, x1 + (rows - y1) * (x2 - x1) / (y2 - y1), np.inf)
    to_the_left = (at[..., None] <= np.arange(shape[1])).sum(axis=0)  # [H, W]
    return to_the_left % 2 == 1


def outline(chords: np.ndarray) -> np.ndarray:
    """The polygon [2 (N - 1), 2] (x, y) of chords [N, 4] whose first is the long axis."""
    return np.concatenate([chords[1:, :2], chords[:0:-1, 2:]])


def read_frames(path: Path, numbers: list[int]) -> list[np.ndarray]:
    """Frames of a video by number from 0, [H, W] uint8 grey.

    Raises:
      ValueError: PyAV is not installed, the video cannot be read or has too few frames.
    """
    frames = {}
    for number, (_, frame) in enumerate(video_frames(path)):
        if number in numbers:
            frames[number] = frame
        if number >= max(numbers):
            break
    for number in numbers:
        if number not in frames:
            raise ValueError(
                f"{path}: the video ends before frame {number}, which VolumeTracings.csv traces"
            )
    return [frames[number] for number in numbers]


def _without_suffix(name: str) -> str:
    return name[:-4] if name.lower().endswith(".avi") else name
