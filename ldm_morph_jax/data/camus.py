"""Datasets `camus_2ch` and `camus_4ch`: apical echocardiograms from the CAMUS database.

Reads `database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}.nii.gz` and `..._gt.nii.gz`. The
file's axes are (x, y), with x reversed relative to the picture on the scanner (apex up).
Images are resized to 112 x 112, zero-padded to 128 x 128, and scaled to [0, 1] (Sec. 4.1 of the
paper and the published preprocessing).

Splits by patient number: train 1 to 400, validation 401 to 420, test 421 to 500.
"""

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

LAST_PATIENT = {"train": 400, "validation": 420, "test": 500}
LABELS = range(4)  # background, left ventricle, myocardium, left atrium


class Camus(ArchiveBuilder):
    """One view; masks keep the myocardium and the left atrium, which the paper does not score."""

    view: str  # as in file names
    labels = {1: "left ventricle"}
    spacing_note = "from the NIfTI header, scaled with the image"
    source_help = (
        "download the CAMUS database (free, after registration) from "
        "https://www.creatis.insa-lyon.fr/Challenge/camus/ and give the folder that contains "
        "database_nifti/patient0001/patient0001_2CH_ED.nii.gz and so on as the source"
    )
    paper_pairs = {"train": 400, "validation": 20, "test": 80}
    homepage = "https://www.creatis.insa-lyon.fr/Challenge/camus/"
    citation = (
        "Leclerc S, Smistad E, Pedrosa J, et al. Deep Learning for Segmentation Using an Open "
        "Large-Scale Dataset in 2D Echocardiography. IEEE TMI 38(9), 2019."
    )

    def find(self) -> Found:
        root = self.source / "database_nifti"
        patients = find_patients(self.name, [root if root.is_dir() else self.source], digits=4)
        entries, not_there = {split: [] for split in SPLITS}, []
        for number in sorted({*range(1, LAST_PATIENT["test"] + 1), *patients}):
            patient = f"patient{number:04d}"
            split = next((s for s, last in LAST_PATIENT.items() if 1 <= number <= last), None)
            if split is None:
                raise ValueError(
                    f"{self.name}: unexpected {patients[number]}, patients are 1 to 500"
                )
            files = [
                patients.get(number, self.source) / f"{patient}_{self.view}_{phase}{kind}.nii.gz"
                for phase in ("ED", "ES")
                for kind in ("", "_gt")
            ]
            there = [file.is_file() for file in files]
            if all(there):
                view = self.view.lower()
                entries[split].append(Entry(f"{patient}-{view}", patient, view, tuple(files)))
            elif any(there):
                raise missing_files_error(self.name, patient, files)
            else:
                not_there.append(patient)
        old = next(self.source.rglob(f"patient*_{self.view}_*.mhd"), None)
        if old is not None and not any(entries.values()):
            raise ValueError(
                f"{self.name}: {old} is from the first release (.mhd), expected the NIfTI one; "
                f"{self.source_help}"
            )
        return self.checked(Found(entries, left_out={NOT_THERE: not_there}))

    def read(self, entry: Entry) -> Pair:
        phases, spacings = [], []
        for image_file, mask_file in (entry.files[:2], entry.files[2:]):
            image, mask, spacing = read_image(image_file, mask_file)
            inside = (self.options.content_size,) * 2
            spacings.append(preprocessing.resized_spacing(spacing, image.shape, inside))
            phases.append(self.to_square(image, mask))
        if not np.allclose(*spacings, rtol=1e-2):
            raise ValueError(
                f"{entry.files[2]}: ES has a different field of view from ED: "
                f"{millimetres(spacings[1])} per prepared pixel, ED {millimetres(spacings[0])}"
            )
        (ed, ed_mask), (es, es_mask) = phases
        return Pair(ed, es, ed_mask, es_mask, spacings[0])


class Camus2CH(Camus):
    """CAMUS, apical two-chamber view."""

    name, view = "camus_2ch", "2CH"
    description = "Apical two-chamber echocardiograms at ED and ES with masks, 500 patients."


class Camus4CH(Camus):
    """CAMUS, apical four-chamber view."""

    name, view = "camus_4ch", "4CH"
    description = "Apical four-chamber echocardiograms at ED and ES with masks, 500 patients."


def read_image(image_file: Path, mask_file: Path):
    """Image and mask [H, W] oriented as on the scanner, checked; spacing (row, column) in mm."""
    (image, spacing), (mask, _) = read_nifti(image_file, 2), read_nifti(mask_file, 2)
    preprocessing.check_image(image, str(image_file))
    preprocessing.check_mask(mask, image, str(mask_file), values=LABELS)
    image, mask = (np.transpose(array[::-1]) for array in (image, mask))
    return image, mask.astype(np.uint8), spacing[::-1]
