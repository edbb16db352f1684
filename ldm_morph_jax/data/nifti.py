"""Reads images of an archive in the file's own axes.

`ldm_morph_jax.files.images` places an image in space. The published preprocessing of CAMUS and ACDC
instead works in the file's axes (x, y, z) and ignores the orientation matrix.
"""

from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.reading import read_stored


def read_nifti(file: Path, dimension: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Array in the file's axes (x, y[, z]), original values, and spacing in mm per axis.

    Raises:
      ImageError: `read_stored` refuses the file, or it has another number of dimensions.
    """
    try:
        stored = read_stored(file)
    except ImageError as error:
        if not file.is_file():
            raise
        reason = str(error).removeprefix(f"{file}: ")
        raise ImageError(f"{file}: not a readable NIfTI file ({reason})") from None
    shape, spacing = stored.array.shape[::-1], stored.geometry.spacing[::-1]
    rank = 4 if shape[3] > 1 else stored.geometry.dimension
    if rank < dimension or any(n != 1 for n in shape[dimension:]):
        raise ImageError(f"{file}: has shape {shape[:rank]}, expected {dimension} dimensions")
    return stored.array.transpose().reshape(shape[:dimension]), spacing[:dimension]
