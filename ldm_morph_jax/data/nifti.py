"""Reading NIfTI files of an archive in their own axes.

`ldm_morph_jax.files.images` reads an image to register it in physical space. The published
preprocessing of CAMUS and ACDC is stated in the file's axes (x, y, z) instead and ignores the
orientation matrix, hence this small reader.
"""

from pathlib import Path

import numpy as np

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def read_nifti(file: Path, dimension: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Array in the file's axes (x, y[, z]), original values, and spacing in mm per axis.

    Raises:
      ValueError: missing or damaged file, another number of dimensions, complex or colour values,
        spacing that is not positive.
    """
    import nibabel

    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        image = nibabel.load(file)
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel and gzip raise many kinds on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file}: not a readable NIfTI file ({reason})") from error
    shape = array.shape
    if len(shape) < dimension or any(n != 1 for n in shape[dimension:]) or 0 in shape:
        raise ValueError(f"{file}: has shape {shape}, expected {dimension} dimensions")
    if array.dtype.names or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"{file}: holds {array.dtype}, expected grey values")
    unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    spacing = tuple(float(zoom) * unit for zoom in image.header.get_zooms()[:dimension])
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"{file}: spacing {spacing} mm, expected positive numbers")
    return array.reshape(shape[:dimension]), spacing
