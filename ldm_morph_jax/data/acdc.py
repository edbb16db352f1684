"""Dataset `acdc`: the middle short-axis slice of cine MRI from the ACDC challenge.

Reads `database/{training,testing}/patientXXX/`: `Info.cfg` names the ED and ES frames,
`patientXXX_frameYY.nii.gz` and `..._gt.nii.gz` contain them. The steps are those of the published
preprocessing, in the file's axes (x, y, z), which become (row, column, slice):

1. rotate volumes wider than tall (more samples along x than along y) by a quarter turn, with the
   exceptions below, so that all hearts have the same orientation;
2. resample to 1.5 x 1.5 x 3.15 mm (linear; labels nearest);
3. crop or pad about the centre to 128 x 128 x 32;
4. take slice 16, resize it to 112 x 112 (cubic; labels nearest), scale intensities to [0, 1] and
   pad to 128 x 128.

Splits: of the training patients 1 to 100, the last five are for validation; 101 to 150 are the test
patients.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.archive import (
    NOT_THERE,
    ArchiveBuilder,
    find_patients,
    missing_files_error,
)
from ldm_morph_jax.data.base import SPLITS, Entry, Found, Pair
from ldm_morph_jax.data.nifti import read_nifti
from ldm_morph_jax.files.geometry import millimetres

LAST_PATIENT = {"train": 95, "validation": 100, "test": 150}
LABELS = range(4)  # background, right ventricle, myocardium, left ventricle
WIDE_BUT_UPRIGHT = (117, 126, 141, 143)
ROTATED_THOUGH_TALL = (124,)
SPACING_MM = (1.5, 1.5, 3.15)
SHAPE = (128, 128, 32)


class Acdc(ArchiveBuilder):
    """ACDC, the middle slice of each patient.

    Masks keep the right ventricle, which the paper does not score.
    """

    name = "acdc"
    labels = {3: "left ventricle", 2: "myocardium"}
    spacing_note = "resampled to 1.5 mm, then scaled with the image"
    source_help = (
        "download the ACDC database (free, after registration) from "
        "https://www.creatis.insa-lyon.fr/Challenge/acdc/ and give the folder that contains "
        "database/training/patient001/Info.cfg, database/testing/patient101 and so on as the source"
    )
    paper_pairs = {"train": 95, "validation": 5, "test": 50}
    description = "Short-axis cine MRI at ED and ES with masks, middle slice, 150 patients."
    homepage = "https://www.creatis.insa-lyon.fr/Challenge/acdc/"
    citation = (
        "Bernard O, Lalande A, Zotti C, et al. Deep Learning Techniques for Automatic MRI Cardiac "
        "Multi-Structures Segmentation and Diagnosis: Is the Problem Solved? IEEE TMI 37(11), 2018."
    )

    def patients(self) -> dict[int, Path]:
        """Number -> folder of every patient in the source."""
        root = self.source / "database"
        root = root if root.is_dir() else self.source
        return find_patients(self.name, [root / "training", root / "testing"], digits=3)

    def left_out(self, patients: Collection[int], needed: set[int]) -> dict[str, list[str]]:
        """Names of the needed patients that are not there, and of those that are not needed.

        Raises ValueError where patients are missing, but for `allow_partial`.
        """
        absent, beyond = (
            [f"patient{number:03d}" for number in sorted(numbers)]
            for numbers in (needed.difference(patients), set(patients) - needed)
        )
        if len(absent) == len(needed):
            raise ValueError(f"{self.name}: found no patient in {self.source}; {self.source_help}")
        if absent and not self.options.allow_partial:
            raise ValueError(
                f"{self.name}: {len(absent)} of {len(needed)} patients are missing in "
                f"{self.source}: {', '.join(absent[:5])}{' ...' if absent[5:] else ''}; to use "
                "only those that are there, give --allow-partial (training: "
                "--config.data.options.allow_partial=True)"
            )
        return {NOT_THERE: absent, "of no split": beyond}

    def find(self) -> Found:
        patients = self.patients()
        entries, not_there = {split: [] for split in SPLITS}, []
        for number in sorted({*range(1, LAST_PATIENT["test"] + 1), *patients}):
            patient = f"patient{number:03d}"
            if number not in patients:
                not_there.append(patient)
                continue
            folder = patients[number]
            split = next((s for s, last in LAST_PATIENT.items() if 1 <= number <= last), None)
            if split is None or folder.parent.name != ("testing" if number > 100 else "training"):
                raise ValueError(
                    f"acdc: unexpected {folder}; patients 1 to 100 are in training, 101 to 150 in "
                    "testing"
                )
            files = (*phase_files("acdc", folder), folder / "Info.cfg")
            entries[split].append(Entry(patient, patient, "sax", files, number))
        return self.checked(Found(entries, left_out={NOT_THERE: not_there}))

    def read(self, entry: Entry) -> Pair:
        volumes, spacing = read_phases(entry.files)
        (ed, ed_mask), (es, es_mask) = (
            self._slice(image, mask, spacing, entry.detail, file)
            for (image, mask), file in zip(volumes, (entry.files[0], entry.files[2]), strict=True)
        )
        size = self.options.content_size
        in_plane = preprocessing.resized_spacing(SPACING_MM[:2], SHAPE[:2], (size, size))
        return Pair(ed, es, ed_mask, es_mask, in_plane, SHAPE[2] // 2)

    def _slice(self, image, mask, spacing, patient: int, file: Path):
        """The prepared slice of one volume and its mask, [S, S]."""
        if is_rotated(patient, image.shape):
            image, mask = (np.transpose(v, (1, 0, 2))[:, ::-1] for v in (image, mask))
            spacing = (spacing[1], spacing[0], spacing[2])
        image = resample(image, spacing, SPACING_MM)
        mask = resample(mask, spacing, SPACING_MM, nearest=True)
        image = preprocessing.centre(image, SHAPE, image.min())[..., SHAPE[2] // 2]
        mask = preprocessing.centre(mask, SHAPE)[..., SHAPE[2] // 2]
        preprocessing.check_image(image, f"{file}, middle slice")
        size = (self.options.content_size,) * 2
        image = preprocessing.resize(image, size)
        # Black border: the published code first scales to [0, 1], then pads with 0.
        return self.to_square(image, mask, border=image.min())


def read_info(path: Path) -> dict[str, int]:
    """{"ED": frame number, "ES": frame number} of an Info.cfg (lines `key: value`)."""
    if not path.is_file():
        raise ValueError(f"acdc: no file {path}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    values = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    for phase in ("ED", "ES"):
        if not values.get(phase, "").isdecimal():
            raise ValueError(f"{path}: expected a line '{phase}: frame number', found none")
    return {phase: int(values[phase]) for phase in ("ED", "ES")}


def phase_files(name: str, folder: Path) -> tuple[Path, ...]:
    """Image and mask of ED, then of ES, in a patient's folder; `name`: of the dataset."""
    frames = read_info(folder / "Info.cfg")
    files = tuple(
        folder / f"{folder.name}_frame{frames[phase]:02d}{kind}.nii.gz"
        for phase in ("ED", "ES")
        for kind in ("", "_gt")
    )
    if not all(file.is_file() for file in files):
        raise missing_files_error(name, folder.name, list(files))
    return files


def read_phases(files: Sequence[Path]):
    """[(image, mask) of ED, of ES], each [X, Y, Z], and the spacing in mm, which they share.

    files: of `phase_files`.
    """
    (ed, ed_mask, spacing), (es, es_mask, es_spacing) = (
        read_volume(*files[i : i + 2]) for i in (0, 2)
    )
    if ed.shape != es.shape or not np.allclose(spacing, es_spacing, rtol=1e-3):
        raise ValueError(
            f"{files[2]}: ES is {es.shape} at {millimetres(es_spacing)}, "
            f"ED {ed.shape} at {millimetres(spacing)}; they must agree"
        )
    return [(ed, ed_mask), (es, es_mask)], spacing


def read_volume(image_file: Path, mask_file: Path):
    """Image and mask [X, Y, Z] in the file's axes, checked, and their spacing in mm."""
    (image, spacing), (mask, _) = read_nifti(image_file, 3), read_nifti(mask_file, 3)
    bad = image.size - np.count_nonzero(np.isfinite(image))
    if bad:
        raise ValueError(
            f"{image_file}: expected finite values, found {bad} NaN or infinite voxels"
        )
    preprocessing.check_mask(mask, image, str(mask_file), values=LABELS)
    return image.astype(np.float64), mask.astype(np.uint8), spacing


def is_rotated(patient: int, shape: tuple[int, ...]) -> bool:
    """Whether a volume [X, Y, Z] has to be rotated upright (step 1)."""
    wide = shape[0] > shape[1] and patient not in WIDE_BUT_UPRIGHT
    return wide or patient in ROTATED_THOUGH_TALL


def resample(volume: np.ndarray, spacing, new_spacing, *, nearest: bool = False) -> np.ndarray:
    """Resamples [X, Y, Z] from one spacing to another; the first sample keeps its position.

    Linear, or nearest for labels, as in ITK: up to half a sample beyond the last one the result has
    its value, further out it is 0. Sizes are round(n * spacing / new spacing), at least 1.
    """
    for axis, (old, new) in enumerate(zip(spacing, new_spacing, strict=True)):
        last = volume.shape[axis] - 1
        at = np.arange(max(1, round(volume.shape[axis] * old / new))) * (new / old)
        widths = [-1 if a == axis else 1 for a in range(volume.ndim)]
        if nearest:
            moved = np.take(volume, np.minimum(np.floor(at + 0.5), last).astype(int), axis)
        else:
            below = np.minimum(np.floor(at), last).astype(int)
            above, share = np.minimum(below + 1, last), (at - below).reshape(widths)
            moved = (
                np.take(volume, below, axis) * (1 - share) + np.take(volume, above, axis) * share
            )
        volume = moved * (at < last + 0.5).reshape(widths).astype(moved.dtype)
    return volume
