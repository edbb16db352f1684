"""What the readers of the paper's datasets share: from a downloaded archive to prepared pairs.

A dataset file defines a config that finds the pairs (`find`) and a builder that reads one (`read`).
Nothing is read before all pairs have been found, so that a missing file shows at once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.builder import PairBuilder, PairConfig, make_example

SPLITS = ("train", "validation", "test")
NOT_THERE = "not there"  # reason why a patient of the paper gives no pair


class Entry(NamedTuple):
    """A pair that has been found: its names, its files in the manifest's order, and what `read`
    needs to know besides."""

    id: str
    patient: str
    view: str
    files: tuple[Path, ...]
    detail: Any = None


class Archive(NamedTuple):
    """The pairs of a source.

    entries: split -> pairs in their order; a split may be empty or missing.
    left_out: reason -> names of what gives no pair.
    tables: further files that the pairs depend on.
    """

    entries: dict[str, list[Entry]]
    left_out: dict[str, list[str]]
    tables: tuple[Path, ...] = ()


class RawPair(NamedTuple):
    """A pair that has been read and brought to [S, S], before intensities are normalised.

    moving, fixed: ED and ES, real numbers; masks: uint8 labels; spacing: mm (row, column);
    slice: number in the patient's stack.
    """

    moving: np.ndarray
    fixed: np.ndarray
    moving_mask: np.ndarray
    fixed_mask: np.ndarray
    spacing: tuple[float, float]
    slice: int = 0


@dataclasses.dataclass(eq=False, kw_only=True)
class SourceConfig(PairConfig):
    """Options of a dataset whose pairs are found in `source`."""

    def __post_init__(self):
        super().__post_init__()
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(
                f"image_size must be a multiple of 32 (paper: 128), found {self.image_size}"
            )

    def find(self) -> Archive:
        """Finds the pairs under `source`; ValueError when something needed is not there."""
        raise NotImplementedError

    @functools.cached_property
    def archive(self) -> Archive:
        return self.find()

    def source_digest(self) -> str:
        files = [f for entries in self.archive.entries.values() for e in entries for f in e.files]
        root = self.source.parent if self.source.is_file() else self.source
        return preprocessing.content_digest(root, sorted({*files, *self.archive.tables}))


@dataclasses.dataclass(eq=False, kw_only=True)
class ArchiveConfig(SourceConfig):
    """`allow_partial`: take those of the paper's patients that are there, instead of an error."""

    allow_partial: bool = False

    @property
    def content_size(self) -> int:
        """Height and width of the image inside its zero border: 112 of 128 pixels (paper)."""
        return self.image_size * 7 // 8


class ArchiveBuilder(PairBuilder, skip_registration=True):
    """Base of the builders that read archives; a subclass defines `read`."""

    PHASES = ("ED-ES", "ES-ED")  # as read, reversed

    def read(self, entry: Entry) -> RawPair:
        """Reads one pair; ValueError, naming the file, when it cannot be used."""
        raise NotImplementedError

    def pair_files(self, id: str) -> tuple[Path, ...]:
        return self._files[id]

    def left_out(self) -> dict[str, list[str]]:
        return self.builder_config.archive.left_out

    def _split_generators(self, dl_manager):
        entries = self.builder_config.archive.entries
        self._files = {entry.id: entry.files for found in entries.values() for entry in found}
        return {
            split: self._generate_examples(self._examples(split, found), split)
            for split, found in entries.items()
            if found
        }

    def _examples(self, split: str, entries: list[Entry]) -> Iterator[dict]:
        reverse = self.builder_config.reverse
        for entry in tqdm(entries, desc=f"{self.name} {split}", unit="pair", mininterval=1):
            pair = self.read(entry)
            moving, fixed = (pair.moving, pair.moving_mask), (pair.fixed, pair.fixed_mask)
            if reverse:
                moving, fixed = fixed, moving
            yield make_example(
                id=entry.id,
                patient=entry.patient,
                view=entry.view,
                phase=self.PHASES[reverse],
                slice=pair.slice,
                moving=moving[0],
                fixed=fixed[0],
                moving_mask=moving[1],
                fixed_mask=fixed[1],
                spacing=pair.spacing,
                intensity=self.builder_config.intensity,
            )


def check_complete(
    name: str,
    archive: Archive,
    paper_pairs: dict[str, int],
    *,
    allow_partial: bool,
    source: Path,
    help: str,
) -> Archive:
    """The archive, if it holds the paper's pairs per split, or any with `allow_partial`."""
    found = {split: len(archive.entries.get(split, ())) for split in paper_pairs}
    if not any(found.values()):
        raise ValueError(f"{name}: found no pair in {source}; {help}")
    if found != paper_pairs and not allow_partial:
        reasons = "; ".join(
            f"{reason}: {', '.join(names[:5])}{f' ... ({len(names)})' if len(names) > 5 else ''}"
            for reason, names in archive.left_out.items()
            if names
        )
        raise ValueError(
            f"{name}: found {_counts(found)} pairs in {source}, expected {_counts(paper_pairs)} as "
            f"in the paper ({reasons or 'nothing was left out'}); to use what is there, give "
            "--allow-partial (training: --config.data.options.allow_partial=True)"
        )
    return archive


def find_patients(name: str, folders: list[Path], digits: int) -> dict[int, Path]:
    """Patient number -> folder `patient<number>`, of all sub-folders of `folders`.

    Raises:
      ValueError: one patient twice.
    """
    patients = {}
    for folder in sorted(path for root in folders for path in root.glob("[Pp]atient*")):
        number = folder.name[len("patient") :]
        if not folder.is_dir() or not number.isdecimal():
            continue
        known = patients.setdefault(int(number), folder)
        if known != folder:
            raise ValueError(
                f"{name}: patient {int(number)} is there twice, as {known} and as {folder}; "
                "keep one of them"
            )
        if folder.name != f"patient{int(number):0{digits}d}":
            raise ValueError(
                f"{name}: found the folder {folder}, expected patient{int(number):0{digits}d}"
            )
    return patients


def missing_files_error(name: str, patient: str, files: list[Path]) -> ValueError:
    """The error for files of a patient that should be there."""
    missing = [file for file in files if not file.is_file()]
    return ValueError(
        f"{name}: {patient} is incomplete, missing {', '.join(file.name for file in missing)} "
        f"in {missing[0].parent}"
    )


def to_square(
    image: np.ndarray, mask: np.ndarray, config: ArchiveConfig, border: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes [H, W] to 112 x 112 (cubic; labels nearest) and pads to 128 x 128 (image: `border`).

    At another `image_size` both numbers scale.
    """
    inside, whole = (config.content_size,) * 2, (config.image_size,) * 2
    image = preprocessing.centre(preprocessing.resize(image, inside), whole, border)
    mask = preprocessing.centre(preprocessing.resize(mask, inside, nearest=True), whole)
    return image, mask.astype(np.uint8)


def _counts(pairs: dict[str, int]) -> str:
    return ", ".join(f"{split} {n}" for split, n in pairs.items())
