"""Datasets `folder` and `folder_3d`: your own pairs of images or volumes, listed in a CSV file.

The required columns are `id,split,moving,fixed`. Optional columns are `moving_mask,fixed_mask`
(labels 0 to 255, 0 is background), `slice` (slice number, from 0, for files that hold a stack) and
`moving_frame,fixed_frame` (frame number for files that hold several). Files can be of any kind that
`ldm_morph_jax.files.images` reads; relative paths start at the CSV file's folder. Splits are train,
validation and test.

If the files give their positions in space, the fixed image and the masks are resampled to the
moving image's grid in millimetres, however they are stored. Otherwise the shapes must agree.

An image of image_size x image_size is used unchanged. Any other is scaled so that its longer side
fits (cubic; labels nearest) and padded about the centre with its darkest value. The slices of a
volume are scaled likewise, and to `depth` planes. All labels that occur are scored.
"""

import dataclasses
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.archive import check_size
from ldm_morph_jax.data.base import (
    SPLITS,
    DatasetBuilder,
    Entry,
    Found,
    Options,
    Pair,
    VolumeOptions,
)
from ldm_morph_jax.files.images import (
    VOLUME,
    Image,
    read_image,
    read_mask,
    resample_image,
    resample_labels,
)
from ldm_morph_jax.files.tables import read_rows

COLUMNS = ("id", "split", "moving", "fixed")
OPTIONAL = ("moving_mask", "fixed_mask", "slice", "moving_frame", "fixed_frame")
NUMBERS = OPTIONAL[2:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions(Options):
    """No options of its own."""

    def __post_init__(self):
        super().__post_init__()
        check_size(self.image_size)


class Folder(DatasetBuilder):
    """Pairs listed in a CSV file."""

    name = "folder"
    Options = FolderOptions
    labels = None  # all that occur
    spacing_note = "from the files, scaled with the image; 1 if a file has none"
    source_is_file = True
    source_help = (
        f"give a CSV file with the columns {','.join(COLUMNS)}[,{','.join(OPTIONAL)}] as the "
        f"source; split is one of {', '.join(SPLITS)}, paths of images are relative to the CSV file"
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
                raise ValueError(f"{where}: id {row['id']!r} is already on line {lines[row['id']]}")
            lines[row["id"]] = line
            if row["split"] not in SPLITS:
                raise ValueError(
                    f"{where}: split is {row['split']!r}, expected one of {', '.join(SPLITS)}"
                )
            masks = row["moving_mask"], row["fixed_mask"]
            if any(masks) and not all(masks):
                raise ValueError(f"{where}: has one mask, expected moving_mask and fixed_mask")
            for key in NUMBERS:
                if row[key] and not row[key].isdecimal():
                    raise ValueError(f"{where}: {key} is {row[key]!r}, expected a number from 0")
            files = [row["moving"], row["fixed"], *filter(None, masks)]
            files = tuple(self.source.parent / file for file in files)
            for file in files:
                if not file.is_file():
                    raise ValueError(f"{where}: no such file {file}")
            numbers = tuple(int(row[key]) if row[key] else None for key in NUMBERS)
            entries[row["split"]].append(Entry(row["id"], files=files, detail=numbers))
        if not lines:
            raise ValueError(f"{self.source}: lists no pair; {self.source_help}")
        return Found(entries, tables=(self.source,))

    def read(self, entry: Entry) -> Pair:
        number, *frames = entry.detail
        grid = self.options.shape
        if volumes := len(grid) == 3:
            if number is not None:
                raise ValueError(
                    f"{entry.id}: slice is {number}, expected none: {self.name} takes volumes"
                )
            number = VOLUME
        moving, own_fixed = (
            read_image(file, number, frame=frame)
            for file, frame in zip(entry.files, frames, strict=False)
        )
        placed = moving.position_known and own_fixed.position_known
        if own_fixed.array.shape != moving.array.shape and not placed:
            raise ValueError(
                f"{entry.files[1]}: fixed image is {own_fixed.array.shape}, "
                f"moving {moving.array.shape}; they must agree"
            )
        fixed = resample_image(own_fixed, moving)
        masks = [np.zeros(moving.array.shape, np.uint8)] * 2
        if len(entry.files) > 2:
            masks = [
                _read_mask(file, image, number, frame, moving)
                for file, image, frame in zip(
                    entry.files[2:], (moving, own_fixed), frames, strict=True
                )
            ]
        shape = moving.array.shape
        return Pair(
            *(fit(image.array, grid) for image in (moving, fixed)),
            *(fit(mask, grid, nearest=True) for mask in masks),
            spacing=preprocessing.resized_spacing(
                moving.geometry.spacing[-len(shape) :], shape, fitted_shape(shape, grid)
            ),
            slice=0 if volumes else number or 0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder3dOptions(VolumeOptions, FolderOptions):
    """Size of the grid."""


class Folder3d(Folder):
    """Pairs of volumes listed in a CSV file."""

    name = "folder_3d"
    Options = Folder3dOptions
    description = "Pairs of volumes listed in a CSV file."


def fit(array: np.ndarray, grid: tuple[int, ...], *, nearest: bool = False) -> np.ndarray:
    """An image `[H, W]` or a volume on a grid: scaled so that its longer side fits, and padded."""
    array = preprocessing.resize(array, fitted_shape(array.shape, grid), nearest=nearest)
    return preprocessing.centre(array, grid, 0 if nearest else array.min())


def fitted_shape(shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `fit` scales to before it pads; of volumes all planes of the grid."""
    *_, rows, columns = shape
    scale = grid[-1] / max(rows, columns)
    return *grid[:-2], *(max(1, round(n * scale)) for n in (rows, columns))


def _read_mask(
    file: Path, image: Image, number: int | str | None, frame: int | None, onto: Image
) -> np.ndarray:
    """Labels of `image` on the grid of `onto`."""
    mask = resample_labels(read_mask(file, image, number, frame=frame), onto).array
    preprocessing.check_mask(mask, onto.array, str(file), values=range(256))
    return mask
