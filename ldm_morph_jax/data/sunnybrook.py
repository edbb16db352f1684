"""TFDS builder `sunnybrook`: Sunnybrook Cardiac Data, real short-axis cine MRI (public domain).

Reads the PNG conversion of github.com/mshunshin/SegNetCMR (its folder `Data/`):

    Data/Train/{Images,Labels}/Sunnybrook_Part{1,2}/SC-<group>-<nn>-IM-0001-<instance>.dcm.png
    Data/Test/{Images,Labels}/Sunnybrook_Part3/...        (optional)

Images are 256 x 256, 3 equal 8-bit channels; labels 0/255 mark the left-ventricular blood pool
with the papillary muscles. slice = (instance - 1) // 20, phase = (instance - 1) % 20; every
patient has two annotated phases, and end-diastole is the one with the larger total area.
A pair is one slice annotated in both phases. The fixed crop 64:192 keeps the whole heart.

Splits, by patient: test = Part 2, validation = 3 patients of Part 1, train = the other patients of
Part 1 (128, 25 and 100 pairs). Patients of Part 3, when there, form a split `part3` of their own,
so that the numbers on `test` stay comparable. Never tune on test or part3.
"""

import dataclasses
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.builder import UNPAIRED, PairBuilder, PairConfig, make_example

FULL_SIZE = 256
CROP = (64, 192)
SPACING_MM = 1.25
PHASES_PER_SLICE = 20
VALIDATION_PATIENTS = ("SC-HF-I-02", "SC-HF-NI-04", "SC-HYP-03")
FILE_NAME = re.compile(r"(SC-[A-Z]+(?:-[A-Z]+)?-\d+)-IM-\d+-(\d+)\.dcm\.png")
PARTS = {1: "Train", 2: "Train", 3: "Test"}
EXPECTED = (
    "expected Data/Train/Images/Sunnybrook_Part1, Data/Train/Labels/Sunnybrook_Part1 and the same "
    "for Part2, with files SC-*-IM-*.dcm.png; get the folder Data/ of "
    "https://github.com/mshunshin/SegNetCMR and give the folder that contains it as `source`"
)


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


@dataclasses.dataclass(eq=False, kw_only=True)
class SunnybrookConfig(PairConfig):
    """No options of its own; `image_size` is the fixed crop, 128."""

    def __post_init__(self):
        super().__post_init__()
        size = CROP[1] - CROP[0]
        if self.image_size != size:
            raise ValueError(
                f"sunnybrook: image_size is {size} (fixed crop without resampling), "
                f"found {self.image_size}"
            )

    @property
    def labels(self) -> dict[int, str]:
        return {1: "left ventricle"}

    @property
    def spacing_note(self) -> str:
        return "1.25 mm from the protocol (320 mm / 256 pixels); the files carry no geometry"

    def source_digest(self) -> str:
        files = [file for frame in find_frames(self.source) for file in (frame.image, frame.label)]
        return preprocessing.content_digest(Path(self.source), files)


def find_frames(source: Path) -> list[Frame]:
    """All annotated images under `source` (the folder with `Data`, or `Data` itself), sorted.

    Raises:
      ValueError: no such folder, Part 1 or Part 2 missing or empty, a file name of another form,
        an image without label or a label without image.
    """
    source = Path(source)
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
                raise ValueError(f"sunnybrook: found no PNG files in {folder}; {EXPECTED}")
        alone = sorted(names[images] ^ names[labels])
        if alone:
            raise ValueError(
                f"sunnybrook: every image needs a label of the same name; without partner in "
                f"Part{part}: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}"
            )
        for name in sorted(names[images]):
            match = FILE_NAME.fullmatch(name)
            if not match or int(match[2]) < 1:
                raise ValueError(f"sunnybrook: unexpected file name {images / name}; {EXPECTED}")
            frames.append(Frame(part, match[1], int(match[2]), images / name, labels / name))
    return frames


def read_png(file: Path) -> np.ndarray:
    """Reads a PNG with one channel or three equal ones as [H, W] uint8.

    Raises:
      ValueError: truncated or damaged file, other mode, channels that differ.
    """
    try:
        with Image.open(file) as picture:
            array = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three for damaged PNGs
        raise ValueError(f"{file}: truncated or damaged PNG ({error})") from error
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"{file}: expected 8-bit grey or RGB, found {array.dtype} {array.shape}")
    if array.ndim == 3:
        channels = array.shape[-1]
        if channels != 3 or (array != array[..., :1]).any():
            raise ValueError(
                f"{file}: expected 1 channel or 3 equal ones, found {channels}"
                f"{' that differ' if channels == 3 else ''}"
            )
        array = array[..., 0]
    return array


def read_frame(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Image [128, 128] uint8 and mask [128, 128] in {0, 1} of the fixed crop, checked."""
    image, label = read_png(frame.image), read_png(frame.label)
    if image.shape != (FULL_SIZE, FULL_SIZE):
        raise ValueError(f"{frame.image}: expected {FULL_SIZE} x {FULL_SIZE}, found {image.shape}")
    preprocessing.check_mask(label, image, str(frame.label), values=(0, 255))
    image, mask = preprocessing.crop(image, *CROP), preprocessing.crop(label, *CROP)
    preprocessing.check_image(image, str(frame.image))
    lost = np.count_nonzero(label) - np.count_nonzero(mask)
    if lost:
        raise ValueError(f"{frame.label}: {lost} mask pixels lie outside the crop {CROP}")
    return image, mask // 255


class Sunnybrook(PairBuilder):
    """Sunnybrook Cardiac Data, PNG conversion; end-diastole to end-systole of each slice."""

    VERSION = tfds.core.Version("1.0.1")
    CONFIG = SunnybrookConfig
    SOURCE_HELP = EXPECTED
    DESCRIPTION = "Short-axis cine MRI with left-ventricle masks, ED and ES, 2D slices (CC0 1.0)."
    HOMEPAGE = "https://www.cardiacatlas.org/sunnybrook-cardiac-data/"
    CITATION = (
        "Radau P, Lu Y, Connelly K, Paul G, Dick AJ, Wright GA. Evaluation Framework for "
        "Algorithms Segmenting Short Axis Cardiac MRI. The MIDAS Journal - Cardiac MR Left "
        "Ventricle Segmentation Challenge. http://hdl.handle.net/10380/3070"
    )

    def _split_generators(self, dl_manager):
        patients, self._files = defaultdict(list), {}
        for frame in find_frames(self.builder_config.source):
            patients[frame.part, frame.patient].append(frame)
        examples = {name: [] for name in ("train", "validation", "test")}
        for (part, patient), frames in sorted(patients.items()):
            split = {2: "test", 3: "part3"}.get(part, "train")
            if patient in VALIDATION_PATIENTS:
                split = "validation"
            pairs, unpaired = self._patient_examples(patient, frames)
            examples.setdefault(split, []).extend(pairs)
            examples.setdefault(split + UNPAIRED, []).extend(unpaired)
        for split in ("train", "validation", "test"):
            if not examples[split]:
                raise ValueError(
                    f"sunnybrook: no pair for split {split!r} in {self.builder_config.source} "
                    f"(test: Part2; validation: {', '.join(VALIDATION_PATIENTS)}; train: the "
                    f"others of Part1); {EXPECTED}"
                )
        return {
            name: self._generate_examples(found, name) for name, found in examples.items() if found
        }

    def pair_files(self, id: str) -> tuple[Path, ...]:
        return self._files[id]

    def _patient_examples(self, patient: str, frames: list[Frame]):
        """Pairs and unpaired images of one patient."""
        contents = {(frame.slice, frame.phase): read_frame(frame) for frame in frames}
        area = defaultdict(int)
        for (_, phase), (_, mask) in contents.items():
            area[phase] += int(mask.sum())
        if len(area) != 2:
            raise ValueError(
                f"sunnybrook: patient {patient}: expected two annotated phases (ED and ES), "
                f"found {len(area)}: {sorted(area)} in {frames[0].image.parent}"
            )
        end_diastole, end_systole = sorted(area, key=area.get, reverse=True)

        def example(slice_index, phase, moving_phase, fixed_phase):
            moving, moving_mask = contents[slice_index, moving_phase]
            fixed, fixed_mask = contents[slice_index, fixed_phase]
            still = f"-phase{moving_phase:02d}" if phase == "still" else ""
            return make_example(
                id=f"{patient}-slice{slice_index:02d}{still}",
                patient=patient,
                view="sax",
                phase=phase,
                slice=slice_index,
                moving=moving,
                fixed=fixed,
                moving_mask=moving_mask,
                fixed_mask=fixed_mask,
                spacing=(SPACING_MM, SPACING_MM),
                intensity=self.builder_config.intensity,
            )

        pairs, unpaired = [], []
        for slice_index in sorted({index for index, _ in contents}):
            phases = [p for p in (end_diastole, end_systole) if (slice_index, p) in contents]
            if len(phases) == 1:
                unpaired.append(example(slice_index, "still", phases[0], phases[0]))
            elif self.builder_config.reverse:
                pairs.append(example(slice_index, "ES-ED", end_systole, end_diastole))
            else:
                pairs.append(example(slice_index, "ED-ES", end_diastole, end_systole))
            self._files[f"{patient}-slice{slice_index:02d}"] = tuple(
                file
                for frame in frames
                if frame.slice == slice_index
                for file in (frame.image, frame.label)
            )
        return pairs, unpaired
