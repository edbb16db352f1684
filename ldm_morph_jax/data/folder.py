"""Dataset `folder`: your own pairs, listed in a CSV file.

Columns `id,split,moving,fixed` and, as far as there are any, `moving_mask,fixed_mask` (labels 0 to
255, 0 is background) and `slice` (which slice, from 0, of files that hold a stack). Files are PNG,
TIFF, NIfTI, NPZ or single-frame DICOM, see `ldm_morph_jax.files.images`; relative paths start at
the CSV's folder. Splits are train, validation and test.

An image of image_size x image_size is used as it is. Any other is scaled so that its longer side
fits (cubic; labels nearest) and padded about the centre with its darkest value. All labels that
occur are scored.
"""

import dataclasses
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.archive import SPLITS, check_size
from ldm_morph_jax.data.base import DatasetBuilder, Entry, Found, Options, Pair
from ldm_morph_jax.data.tables import read_rows
from ldm_morph_jax.files.images import read_image

COLUMNS = ("id", "split", "moving", "fixed")
OPTIONAL = ("moving_mask", "fixed_mask", "slice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions(Options):
    """No options of its own."""

    def __post_init__(self):
        super().__post_init__()
        check_size(self.image_size)


class Folder(DatasetBuilder):
    """Pairs of a CSV file."""

    name = "folder"
    Options = FolderOptions
    labels = None  # all that occur
    spacing_note = "from the files, scaled with the image; 1 where a file does not say"
    source_is_file = True
    source_help = (
        f"give a CSV file with the columns {','.join(COLUMNS)}[,{','.join(OPTIONAL)}] as the "
        f"source, split one of {', '.join(SPLITS)}, the others paths of images relative to the "
        "CSV file"
    )
    phases = ("as listed", "reversed")
    description = "Pairs listed in a CSV file."

    def find(self) -> Found:
        entries, lines = {split: [] for split in SPLITS}, {}
        for line, row in read_rows(self.source, COLUMNS, OPTIONAL):
            where = f"{self.source}, line {line}"
            for key in COLUMNS:
                if not row[key]:
                    raise ValueError(f"{where}: {key} is empty")
            if row["id"] in lines:
                raise ValueError(
                    f"{where}: id {row['id']!r} was on line {lines[row['id']]} already"
                )
            lines[row["id"]] = line
            if row["split"] not in SPLITS:
                raise ValueError(
                    f"{where}: split is {row['split']!r}, expected one of {', '.join(SPLITS)}"
                )
            masks = row["moving_mask"], row["fixed_mask"]
            if any(masks) and not all(masks):
                raise ValueError(f"{where}: has one mask, expected moving_mask and fixed_mask")
            if row["slice"] and not row["slice"].isdecimal():
                raise ValueError(f"{where}: slice is {row['slice']!r}, expected a number from 0")
            files = [row["moving"], row["fixed"], *filter(None, masks)]
            files = tuple(self.source.parent / file for file in files)
            for file in files:
                if not file.is_file():
                    raise ValueError(f"{where}: no such file {file}")
            number = int(row["slice"]) if row["slice"] else None
            entries[row["split"]].append(Entry(row["id"], files=files, detail=number))
        if not lines:
            raise ValueError(f"{self.source}: lists no pair; {self.source_help}")
        return Found(entries, tables=(self.source,))

    def read(self, entry: Entry) -> Pair:
        moving, fixed = (read_image(file, slice=entry.detail) for file in entry.files[:2])
        if fixed.array.shape != moving.array.shape:
            raise ValueError(
                f"{entry.files[1]}: fixed image is {fixed.array.shape}, "
                f"moving {moving.array.shape}; they must agree"
            )
        masks = [np.zeros(moving.array.shape, np.uint8)] * 2
        if len(entry.files) > 2:
            masks = [_read_mask(file, entry.detail, moving.array) for file in entry.files[2:]]
        size = self.options.image_size
        shape = moving.array.shape
        return Pair(
            *(fit(image.array, size) for image in (moving, fixed)),
            *(fit(mask, size, nearest=True) for mask in masks),
            spacing=preprocessing.resized_spacing(moving.spacing, shape, fitted_shape(shape, size)),
            slice=entry.detail or 0,
        )


def fit(array: np.ndarray, size: int, *, nearest: bool = False) -> np.ndarray:
    """Scales [H, W] so that its longer side is `size` and pads the other about the centre."""
    array = preprocessing.resize(array, fitted_shape(array.shape, size), nearest=nearest)
    return preprocessing.centre(array, (size, size), 0 if nearest else array.min())


def fitted_shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """The shape that `fit` scales to before it pads."""
    return tuple(max(1, round(n * size / max(shape))) for n in shape)


def _read_mask(file: Path, number: int | None, image: np.ndarray) -> np.ndarray:
    mask = read_image(file, slice=number, labels=True).array
    preprocessing.check_mask(mask, image, str(file), values=range(256))
    return mask
