"""TFDS builders `camus_2ch` and `camus_4ch`: apical echocardiograms of the CAMUS database.

Reads `database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}.nii.gz` and `..._gt.nii.gz`. The
file's axes are (x, y) with x reversed with respect to the picture on the scanner (apex up).
Images are resized to 112 x 112, zero-padded to 128 x 128, and scaled to [0, 1] (Sec. 4.1 of the
paper and the published preprocessing).

Splits by patient number: train 1 to 400, validation 401 to 420, test 421 to 500.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.archive import (
    NOT_THERE,
    SPLITS,
    Archive,
    ArchiveBuilder,
    ArchiveConfig,
    Entry,
    RawPair,
    check_complete,
    find_patients,
    missing_files_error,
    to_square,
)
from ldm_morph_jax.data.nifti import read_nifti

LAST_PATIENT = {"train": 400, "validation": 420, "test": 500}
PAIRS = {"train": 400, "validation": 20, "test": 80}
LABELS = range(4)  # background, left ventricle, myocardium, left atrium
HELP = (
    "download the CAMUS database (free, after registration) from "
    "https://www.creatis.insa-lyon.fr/Challenge/camus/ and give the folder that contains "
    "database_nifti/patient0001/patient0001_2CH_ED.nii.gz and so on as the source"
)


@dataclasses.dataclass(eq=False, kw_only=True)
class CamusConfig(ArchiveConfig):
    """The scored structure is the left ventricle (paper); masks keep all three labels."""

    VIEW = ""

    @property
    def labels(self) -> dict[int, str]:
        return {1: "left ventricle"}

    @property
    def spacing_note(self) -> str:
        return "from the NIfTI header, scaled with the image"

    def find(self) -> Archive:
        name = f"camus_{self.VIEW.lower()}"
        root = self.source / "database_nifti"
        patients = find_patients(name, [root if root.is_dir() else self.source], digits=4)
        entries, not_there = {split: [] for split in SPLITS}, []
        for number in sorted({*range(1, LAST_PATIENT["test"] + 1), *patients}):
            patient = f"patient{number:04d}"
            split = next((s for s, last in LAST_PATIENT.items() if 1 <= number <= last), None)
            if split is None:
                raise ValueError(f"{name}: unexpected {patients[number]}, patients are 1 to 500")
            files = [
                patients.get(number, self.source) / f"{patient}_{self.VIEW}_{phase}{kind}.nii.gz"
                for phase in ("ED", "ES")
                for kind in ("", "_gt")
            ]
            there = [file.is_file() for file in files]
            if all(there):
                view = self.VIEW.lower()
                entries[split].append(Entry(f"{patient}-{view}", patient, view, tuple(files)))
            elif any(there):
                raise missing_files_error(name, patient, files)
            else:
                not_there.append(patient)
        old = next(self.source.rglob(f"patient*_{self.VIEW}_*.mhd"), None)
        if old is not None and not any(entries.values()):
            raise ValueError(
                f"{name}: {old} is of the first release (.mhd), expected that in NIfTI; {HELP}"
            )
        return check_complete(
            name,
            Archive(entries, {NOT_THERE: not_there}),
            PAIRS,
            allow_partial=self.allow_partial,
            source=self.source,
            help=HELP,
        )


class Camus2CHConfig(CamusConfig):
    VIEW = "2CH"


class Camus4CHConfig(CamusConfig):
    VIEW = "4CH"


def read_image(image_file: Path, mask_file: Path):
    """Image and mask [H, W] as on the scanner, checked, and their spacing (row, column) in mm."""
    (image, spacing), (mask, _) = read_nifti(image_file, 2), read_nifti(mask_file, 2)
    preprocessing.check_image(image, str(image_file))
    preprocessing.check_mask(mask, image, str(mask_file), values=LABELS)
    image, mask = (np.transpose(array[::-1]) for array in (image, mask))
    return image, mask.astype(np.uint8), spacing[::-1]


class _Camus(ArchiveBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    SOURCE_HELP = HELP
    PAPER_PAIRS = PAIRS
    HOMEPAGE = "https://www.creatis.insa-lyon.fr/Challenge/camus/"
    CITATION = (
        "Leclerc S, Smistad E, Pedrosa J, et al. Deep Learning for Segmentation Using an Open "
        "Large-Scale Dataset in 2D Echocardiography. IEEE TMI 38(9), 2019."
    )

    def read(self, entry: Entry) -> RawPair:
        phases, spacings = [], []
        for image_file, mask_file in (entry.files[:2], entry.files[2:]):
            image, mask, spacing = read_image(image_file, mask_file)
            inside = (self.builder_config.content_size,) * 2
            spacings.append(preprocessing.resized_spacing(spacing, image.shape, inside))
            phases.append(to_square(image, mask, self.builder_config))
        if not np.allclose(*spacings, rtol=1e-2):
            raise ValueError(
                f"{entry.files[2]}: ES covers another field of view than ED: "
                f"{_millimetres(spacings[1])} per prepared pixel, ED {_millimetres(spacings[0])}"
            )
        (ed, ed_mask), (es, es_mask) = phases
        return RawPair(ed, es, ed_mask, es_mask, spacings[0])


def _millimetres(spacing) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


class Camus2CH(_Camus):
    """CAMUS, apical two-chamber view."""

    name = "camus_2ch"
    CONFIG = Camus2CHConfig
    DESCRIPTION = "Apical two-chamber echocardiograms at ED and ES with masks, 500 patients."


class Camus4CH(_Camus):
    """CAMUS, apical four-chamber view."""

    name = "camus_4ch"
    CONFIG = Camus4CHConfig
    DESCRIPTION = "Apical four-chamber echocardiograms at ED and ES with masks, 500 patients."
