"""Dataset `sunnybrook`: Sunnybrook Cardiac Data, real short-axis cine MRI (public domain).

Reads the PNG conversion of github.com/mshunshin/SegNetCMR (its folder `Data/`):

    Data/Train/{Images,Labels}/Sunnybrook_Part{1,2}/SC-<group>-<nn>-IM-0001-<instance>.dcm.png
    Data/Test/{Images,Labels}/Sunnybrook_Part3/...        (optional)

Images are 256 x 256, with 3 equal 8-bit channels. Labels (0 or 255) mark the left-ventricular blood
pool including the papillary muscles. slice = (instance - 1) // 20, phase = (instance - 1) % 20.
Every patient has two annotated phases; end-diastole is the one with the larger total area. A pair
is one slice annotated in both phases. The fixed crop 64:192 contains the whole heart.

Splits, by patient: test = Part 2, validation = 3 patients of Part 1, train = the other patients of
Part 1 (128, 25 and 100 pairs). Patients of Part 3, if present, form a separate split `part3`, so
that results on `test` stay comparable. Never tune on test or part3.
"""

import dataclasses
import functools
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.base import SPLITS, DatasetBuilder, Entry, Found, Options, Pair
from ldm_morph_jax.files.images import read_image

FULL_SIZE = 256
CROP = (64, 192)
SPACING_MM = 1.25
PHASES_PER_SLICE = 20
VALIDATION_PATIENTS = ("SC-HF-I-02", "SC-HF-NI-04", "SC-HYP-03")
FILE_NAME = re.compile(r"(SC-[A-Z]+(?:-[A-Z]+)?-\d+)-IM-\d+-(\d+)\.dcm\.png")
PARTS = {1: "Train", 2: "Train", 3: "Test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SunnybrookOptions(Options):
    """No options of its own; `image_size` is the fixed crop, 128, or the whole image, 256."""

    def __post_init__(self):
        super().__post_init__()
        size = CROP[1] - CROP[0]
        if self.image_size not in (size, FULL_SIZE):
            raise ValueError(
                f"sunnybrook: image_size is {size} (fixed crop without resampling) or {FULL_SIZE} "
                f"(whole images), found {self.image_size}"
            )


class Sunnybrook(DatasetBuilder):
    """Sunnybrook Cardiac Data, PNG conversion; end-diastole to end-systole of each slice."""

    name = "sunnybrook"
    version = "1.1.0"
    Options = SunnybrookOptions
    labels = {1: "left ventricle"}
    spacing_note = "1.25 mm by the protocol (320 mm / 256 pixels); the files contain no geometry"
    source_help = (
        "expected Data/Train/Images/Sunnybrook_Part1, Data/Train/Labels/Sunnybrook_Part1 and the "
        "same for Part2, with files SC-*-IM-*.dcm.png; get the folder Data/ of "
        "https://github.com/mshunshin/SegNetCMR and give the folder that contains it as `source`"
    )
    description = "Short-axis cine MRI with left-ventricle masks, ED and ES, 2D slices (CC0 1.0)."
    homepage = "https://www.cardiacatlas.org/sunnybrook-cardiac-data/"
    citation = (
        "Radau P, Lu Y, Connelly K, Paul G, Dick AJ, Wright GA. Evaluation Framework for "
        "Algorithms Segmenting Short Axis Cardiac MRI. The MIDAS Journal - Cardiac MR Left "
        "Ventricle Segmentation Challenge. http://hdl.handle.net/10380/3070"
    )

    def find(self) -> Found:
        pairs = {split: [] for split in SPLITS}
        unpaired, patients = defaultdict(list), defaultdict(list)
        for frame in find_frames(self.source, self.source_help):
            patients[frame.part, frame.patient].append(frame)
        for (part, patient), frames in sorted(patients.items()):
            split = {2: "test", 3: "part3"}.get(part, "train")
            if patient in VALIDATION_PATIENTS:
                split = "validation"
            check_phases(patient, frames)
            for number in sorted({frame.slice for frame in frames}):
                of_slice = [frame for frame in frames if frame.slice == number]
                files = tuple(file for frame in of_slice for file in (frame.image, frame.label))
                name, detail = f"{patient}-slice{number:02d}", (of_slice, tuple(frames))
                if len(of_slice) > 1:
                    pairs.setdefault(split, []).append(Entry(name, patient, "sax", files, detail))
                else:
                    name = f"{name}-phase{of_slice[0].phase:02d}"
                    unpaired[split].append(Entry(name, patient, "sax", files, detail))
        for split, entries in pairs.items():
            if not entries:
                raise ValueError(
                    f"sunnybrook: no pair for split {split!r} in {self.source} "
                    f"(test: Part2; validation: {', '.join(VALIDATION_PATIENTS)}; train: the "
                    f"others of Part1); {self.source_help}"
                )
        return Found(pairs, unpaired)

    def read(self, entry: Entry) -> Pair:
        of_slice, of_patient = entry.detail
        first = end_diastole(of_patient)
        ordered = sorted(of_slice, key=lambda frame: frame.phase != first)
        whole = self.options.image_size == FULL_SIZE
        (ed, ed_mask), (es, es_mask) = (read_frame(ordered[k], whole=whole) for k in (0, -1))
        return Pair(ed, es, ed_mask, es_mask, (SPACING_MM, SPACING_MM), ordered[0].slice)


class Frame(NamedTuple):
    """One annotated image and its label file."""

    part: int
    patient: str
    instance: int
    image: Path
    label: Path

    @property
    def slice(self) -> int:
        return (self.instance - 1) // PHASES_PER_SLICE

    @property
    def phase(self) -> int:
        return (self.instance - 1) % PHASES_PER_SLICE


def find_frames(source: Path, expected: str) -> list[Frame]:
    """All annotated images under `source` (the folder with `Data`, or `Data` itself), sorted.

    Raises:
      ValueError: no such folder, Part 1 or Part 2 missing or empty, an unexpected file name, an
        image without label or a label without image; the message ends with `expected`.
    """
    data = source / "Data" if (source / "Data").is_dir() else source
    frames = []
    for part, stage in PARTS.items():
        images = data / stage / "Images" / f"Sunnybrook_Part{part}"
        labels = data / stage / "Labels" / f"Sunnybrook_Part{part}"
        if part == 3 and not images.is_dir() and not labels.is_dir():
            continue
        names = {}
        for folder in (images, labels):
            names[folder] = {file.name for file in folder.glob("*.png")}
            if not names[folder]:
                raise ValueError(f"sunnybrook: found no PNG files in {folder}; {expected}")
        alone = sorted(names[images] ^ names[labels])
        if alone:
            raise ValueError(
                f"sunnybrook: every image needs a label of the same name; without a partner in "
                f"Part{part}: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}"
            )
        for name in sorted(names[images]):
            match = FILE_NAME.fullmatch(name)
            if not match or int(match[2]) < 1:
                raise ValueError(f"sunnybrook: unexpected file name {images / name}; {expected}")
            frames.append(Frame(part, match[1], int(match[2]), images / name, labels / name))
    return frames


def check_phases(patient: str, frames: list[Frame]) -> None:
    """Check that a patient has two annotated phases, end-diastole and end-systole."""
    phases = sorted({frame.phase for frame in frames})
    if len(phases) != 2:
        raise ValueError(
            f"sunnybrook: patient {patient}: expected two annotated phases (ED and ES), "
            f"found {len(phases)}: {phases} in {frames[0].image.parent}"
        )


@functools.cache
def end_diastole(frames: tuple[Frame, ...]) -> int:
    """The phase in which a patient's blood pool is larger, over all annotated slices."""
    area = defaultdict(int)
    for frame in frames:
        _, mask = read_frame(frame)
        area[frame.phase] += int(mask.sum())
    return max(area, key=area.get)


def read_frame(frame: Frame, *, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Image [128, 128] and mask [128, 128] in {0, 1} of the fixed crop, checked; or whole, 256."""
    image, label = read_image(frame.image).array, read_image(frame.label, labels=True).array
    if image.shape != (FULL_SIZE, FULL_SIZE):
        raise ValueError(f"{frame.image}: expected {FULL_SIZE} x {FULL_SIZE}, found {image.shape}")
    preprocessing.check_mask(label, image, str(frame.label), values=(0, 255))
    side = slice(None) if whole else slice(*CROP)
    image, mask = image[side, side], label[side, side]
    preprocessing.check_image(image, str(frame.image))
    lost = np.count_nonzero(label) - np.count_nonzero(mask)
    if lost:
        raise ValueError(f"{frame.label}: {lost} mask pixels lie outside the crop {CROP}")
    return image, mask // 255
