"""What every reader of this room gives back."""

from dataclasses import dataclass

import numpy as np

from ldm_morph_jax.files.geometry import Geometry, is_identity


@dataclass(frozen=True)
class Stored:
    """The content of an image file, before a frame and a slice of it are chosen.

    array: `[T, S, H, W]`, frames and slices; original values and dtype, grey or labels.
    geometry: of one frame: 2-D (H, W) where the file is 2-D, (S, H, W) otherwise.
    spacing_known, position_known: False where the file does not tell and the geometry is a
      stand-in.
    times: `[T]` seconds from the first frame; None where the file does not tell.
    notes: what was done to the values on the way, for reports.
    """

    array: np.ndarray
    geometry: Geometry
    spacing_known: bool = True
    position_known: bool = True
    times: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def spacing_meaningless(self) -> bool:
        """Whether a spacing given by hand may take the place of the file's."""
        return not self.spacing_known or is_identity(self.geometry)
