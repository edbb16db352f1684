"""Dataset `acdc_3d`: whole stacks of ACDC at end-diastole and end-systole, in both directions.

Reads the files of `acdc`, whole or cropped in plane. The grid covers 192 x 192 x 100.8 mm; at its
default size of 128 x 128 x 32 voxels these are 1.5 x 1.5 x 3.15 mm, as in the published
preprocessing, of which `acdc` takes the middle slice. Steps, in the file's axes (x, y, z), which
become (row, column, slice):

1. smooth images along axes that get coarser, by the Gaussian that keeps frequencies which the new
   samples can show, and resample to the grid's spacing (linear; labels nearest);
2. crop or pad about the centre (with the darkest value).

A patient gives two pairs, ED-ES and ES-ED. Patients 101 to 150 are for testing, as in the published
tables of three-dimensional methods; 1 to 81 and 82 to 90 for training and validation, by options.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.acdc import Acdc, phase_files, read_phases, resample
from ldm_morph_jax.data.archive import ArchiveOptions
from ldm_morph_jax.data.base import SPLITS, Entry, Found, Pair, VolumeOptions

FIELD_MM = (100.8, 192.0, 192.0)  # (slice, row, column)
LAST_TRAINING, LAST = 100, 150  # of the archive's patients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acdc3dOptions(VolumeOptions, ArchiveOptions):
    """Size of the grid, and which patients are for what."""

    train_until: int = 81
    """patients 1 to this one are for training"""

    validation_until: int = 90
    """and those after it, to this one, for validation; at most 100"""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.train_until < self.validation_until <= LAST_TRAINING:
            raise ValueError(
                f"train_until is {self.train_until} and validation_until {self.validation_until}, "
                f"expected numbers of patients, rising, from 1 to {LAST_TRAINING}"
            )

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm (slice, row, column)."""
        return tuple(field / n for field, n in zip(FIELD_MM, self.shape, strict=True))


class Acdc3d(Acdc):
    """ACDC, whole stacks."""

    name = "acdc_3d"
    Options = Acdc3dOptions
    labels = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    spacing_note = "resampled"
    paper_pairs = {}
    description = "Short-axis cine MRI at ED and ES with masks, whole stacks, 150 patients."

    def find(self) -> Found:
        patients, options = self.patients(), self.options
        limits = dict(
            zip(SPLITS, (options.train_until, options.validation_until, LAST), strict=True)
        )
        needed = {*range(1, options.validation_until + 1), *range(LAST_TRAINING + 1, LAST + 1)}
        entries = {split: [] for split in SPLITS}
        for number in sorted(needed & patients.keys()):
            folder = patients[number]
            split = next(split for split, last in limits.items() if number <= last)
            files = (*phase_files(self.name, folder), folder / "Info.cfg")
            entries[split] += [
                Entry(f"{folder.name}-{name}", folder.name, "sax", files, backwards)
                for name, backwards in (("ed-es", False), ("es-ed", True))
            ]
        return Found(entries, left_out=self.left_out(patients, needed))

    def phase(self, entry: Entry) -> str:
        return self.phases[entry.detail != self.options.reverse]

    def pair(self, entry: Entry) -> Pair:
        pair = self._pair(entry.files)
        return pair.exchanged() if entry.detail != self.options.reverse else pair

    @functools.lru_cache(maxsize=1)  # noqa: B019  (one builder lives for one preparation)
    def _pair(self, files) -> Pair:
        """ED and ES of a patient."""
        volumes, spacing = read_phases(files)
        (ed, ed_mask), (es, es_mask) = (self._on_grid(*v, spacing) for v in volumes)
        return Pair(ed, es, ed_mask, es_mask, self.options.spacing)

    def _on_grid(self, image, mask, spacing):
        """An image and its mask `[X, Y, Z]`, on the grid: `[D, H, W]`."""
        planes, rows, columns = self.options.shape
        through, *in_plane = self.options.spacing
        new, shape = (*in_plane, through), (rows, columns, planes)
        coarser = np.maximum(np.divide(new, spacing), 1)
        image = ndimage.gaussian_filter(image, np.sqrt(coarser**2 - 1) / 2, mode="nearest")
        image = resample(image, spacing, new)
        mask = resample(mask, spacing, new, nearest=True)
        placed = preprocessing.centre(image, shape, image.min()), preprocessing.centre(mask, shape)
        return tuple(np.moveaxis(volume, -1, 0) for volume in placed)
