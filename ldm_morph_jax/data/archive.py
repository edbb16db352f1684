"""Shared by the readers of the paper's datasets: their option, checks and preparation."""

import dataclasses
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.base import DatasetBuilder, Found, Options

NOT_THERE = "not there"  # reason why a patient of the paper yields no pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchiveOptions(Options):
    """Options of a dataset of the paper."""

    allow_partial: bool = False
    """use those of the paper's patients that are present; training then needs
    --config.data.options.allow_partial=True"""

    def __post_init__(self):
        super().__post_init__()
        check_size(self.image_size)

    @property
    def content_size(self) -> int:
        """Height and width of the image inside its zero border: 112 of 128 pixels (paper)."""
        return self.image_size * 7 // 8


def check_size(image_size: int) -> None:
    """Raises ValueError for an image size that the paper's networks cannot halve five times."""
    if image_size < 32 or image_size % 32:
        raise ValueError(f"image_size must be a multiple of 32 (paper: 128), found {image_size}")


class ArchiveBuilder(DatasetBuilder):
    """Base of the builders of the paper's datasets."""

    Options = ArchiveOptions

    def checked(self, found: Found) -> Found:
        """The pairs found: as many per split as in the paper, or fewer with `allow_partial`."""
        counts = {split: len(found.pairs.get(split, ())) for split in self.paper_pairs}
        if not any(counts.values()):
            raise ValueError(f"{self.name}: found no pair in {self.source}; {self.source_help}")
        if counts != self.paper_pairs and not self.options.allow_partial:
            reasons = "; ".join(
                f"{reason}: {', '.join(names[:5])}{f' ... ({len(names)})' if names[5:] else ''}"
                for reason, names in found.left_out.items()
                if names
            )
            raise ValueError(
                f"{self.name}: found {_text(counts)} pairs in {self.source}, expected "
                f"{_text(self.paper_pairs)} as in the paper ({reasons or 'nothing was left out'}); "
                "to use only these, give --allow-partial (training: "
                "--config.data.options.allow_partial=True)"
            )
        return found

    def to_square(
        self, image: np.ndarray, mask: np.ndarray, border: float = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resizes [H, W] to 112 x 112 (cubic; labels nearest), pads to 128 x 128 with `border`.

        With another `image_size` both numbers scale accordingly.
        """
        inside, whole = (self.options.content_size,) * 2, (self.options.image_size,) * 2
        image = preprocessing.centre(preprocessing.resize(image, inside), whole, border)
        mask = preprocessing.centre(preprocessing.resize(mask, inside, nearest=True), whole)
        return image, mask


def find_patients(name: str, folders: list[Path], digits: int) -> dict[int, Path]:
    """Patient number -> folder `patient<number>`, for all subfolders of `folders`.

    Raises:
      ValueError: a patient occurs twice.
    """
    patients = {}
    for folder in sorted(path for root in folders for path in root.glob("[Pp]atient*")):
        number = folder.name[len("patient") :]
        if not folder.is_dir() or not number.isdecimal():
            continue
        known = patients.setdefault(int(number), folder)
        if known != folder:
            raise ValueError(
                f"{name}: found patient {int(number)} twice, in {known} and in {folder}; "
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


def _text(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {n}" for split, n in counts.items())
