"""Dataset `acdc_slices`: every annotated slice of ACDC, for the anatomy network.

A pair is one slice at end-diastole and end-systole. Reads the same files as `acdc`, whole or
cropped in plane (each file's own middle is the middle here). Steps, in the file's axes:

1. resample in plane to 1.25 mm (linear; labels nearest);
2. crop or pad about the centre to the image size, 160 pixels: 200 mm.

Slices that hold no image in either phase (constant) are left out; slices without a structure stay,
since they teach where a heart ends. Splits by patient: test are 101 to 150, as in `acdc`;
validation are every third of 81 to 100, all of whom have an abnormal right ventricle. The others of
them are for training, since no patient of 1 to 80 has one.
"""

import dataclasses
import functools

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.acdc import Acdc, phase_files, read_volume, resample
from ldm_morph_jax.data.archive import ArchiveOptions
from ldm_morph_jax.data.base import SPLITS, Entry, Found, Pair

FIRST_TEST, LAST = 101, 150  # patients
VALIDATION = range(81, FIRST_TEST, 3)
SPACING_MM = 1.25


def split_of(patient: int) -> str:
    """The split of a patient's number."""
    if patient >= FIRST_TEST:
        return "test"
    return "validation" if patient in VALIDATION else "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcdcSlicesOptions(ArchiveOptions):
    """As the archive's, with another size, and for files whose headers lost their spacing."""

    image_size: int = 160
    """height and width in pixels of 1.25 mm"""

    field_mm: float = 0.0
    """longer side of a slice in mm, for files whose headers do not tell; 0: they do"""


class AcdcSlices(Acdc):
    """ACDC, every slice of every stack."""

    name = "acdc_slices"
    version = "1.1.0"
    Options = AcdcSlicesOptions
    labels = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    spacing_note = "resampled to 1.25 mm"
    paper_pairs = {}
    description = "Short-axis cine MRI at ED and ES with masks, every slice, 150 patients."

    def find(self) -> Found:
        patients, needed = self.patients(), set(range(1, LAST + 1))
        left_out, entries = self.left_out(patients, needed), {split: [] for split in SPLITS}
        for number in sorted(needed & patients.keys()):
            folder, split = patients[number], split_of(number)
            files = phase_files(self.name, folder)
            images = [image for image, _ in self._volumes(files)]
            for k in range(images[0].shape[-1]):
                if all(np.ptp(image[..., k]) > 0 for image in images):
                    name = f"{folder.name}-slice{k:02d}"
                    entries[split].append(Entry(name, folder.name, "sax", files, k))
        return Found(entries, left_out=left_out)

    def read(self, entry: Entry) -> Pair:
        size = (self.options.image_size,) * 2
        (ed, ed_mask), (es, es_mask) = (
            (
                preprocessing.centre(
                    image[..., entry.detail], size, image[..., entry.detail].min()
                ),
                preprocessing.centre(mask[..., entry.detail], size),
            )
            for image, mask in self._volumes(entry.files)
        )
        return Pair(ed, es, ed_mask, es_mask, (SPACING_MM, SPACING_MM), entry.detail)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (one builder lives for one preparation)
    def _volumes(self, files):
        """(image, mask) of ED and ES, `[X, Y, Z]`, 1.25 mm in plane."""
        phases = []
        for image_file, mask_file in (files[:2], files[2:]):
            image, mask, spacing = read_volume(image_file, mask_file)
            if field := self.options.field_mm:
                spacing = (field / max(image.shape[:2]),) * 2 + spacing[2:]
            new = (SPACING_MM, SPACING_MM, spacing[2])
            image = resample(image, spacing, new)
            phases.append((image, resample(mask, spacing, new, nearest=True)))
        (ed, _), (es, _) = phases
        if ed.shape != es.shape:
            raise ValueError(f"{files[2]}: ES is {es.shape} at 1.25 mm, ED {ed.shape}")
        return phases
