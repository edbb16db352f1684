"""What every reader of this room gives back."""

from dataclasses import dataclass

import numpy as np

from ldm_morph_jax.files.geometry import Geometry, plain_geometry


@dataclass(frozen=True)
class Region:
    """A part of an ultrasound image with a scale of its own.

    rows, columns: first and last. spacing: (row, column) in mm.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    spacing: tuple[float, float]

    def pixels(self) -> int:
        (top, bottom), (left, right) = self.rows, self.columns
        return (bottom - top) * (right - left)

    def __str__(self):
        height, width = self.spacing
        return (
            f"{height:.4g} x {width:.4g} mm in rows {self.rows[0]} to {self.rows[1]}, columns "
            f"{self.columns[0]} to {self.columns[1]}"
        )


@dataclass(frozen=True)
class Stored:
    """The content of an image file, before a frame and a slice of it are chosen.

    array: `[T, S, H, W]`, frames and slices; original values and dtype, grey or labels.
    geometry: of one frame: 2-D (H, W) where the file is 2-D, (S, H, W) otherwise.
    spacing_known, position_known: False where the file does not tell and the geometry is a
      stand-in.
    orientation_known: whether the file tells how its axes lie in the patient.
    times: `[T]` seconds from the first frame, or `[T, S]` where every slice has its own; None where
      the file does not tell.
    regions: parts of an ultrasound image of different scales; empty where one scale holds.
    notes: what was done to the values on the way, for reports.
    """

    array: np.ndarray
    geometry: Geometry
    spacing_known: bool = True
    position_known: bool = True
    orientation_known: bool = False
    times: np.ndarray | None = None
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = ()


def without_place(
    array: np.ndarray,
    shape: tuple[int, ...],
    notes: tuple[str, ...] = (),
    times: np.ndarray | None = None,
) -> Stored:
    """What a file without geometry holds; `shape` is that of a frame, of 2 or 3 dimensions."""
    return Stored(
        array,
        plain_geometry(shape),
        spacing_known=False,
        position_known=False,
        times=times,
        notes=notes,
    )
