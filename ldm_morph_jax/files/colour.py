"""One grey value per pixel, of images stored in several channels."""

import numpy as np

from ldm_morph_jax.files.errors import ImageError

# A grey image that a lossy codec kept in three channels comes back with channels this far apart.
_LOSSY = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what DICOM's YBR and JPEG mean by Y


def to_grey(
    array: np.ndarray, components: int, source: str, *, luminance: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`[..., C]` -> `[...]` and notes on what was done; without channels (C = 1) as it is.

    C is 1, 2 (grey, opacity), 3 (colour) or 4 (colour, opacity). Colours must be greys, whose
    channels are equal; with `luminance`, others become their luminance.

    Raises:
        ImageError: colour, transparent pixels, complex values, another number of components.
    """
    if np.iscomplexobj(array):
        raise ImageError(f"{source}: complex values, expected real ones")
    if components == 1:
        return array, ()
    if components not in (2, 3, 4):
        raise ImageError(f"{source}: has {components} components per pixel, expected grey values")
    if components in (2, 4):
        _check_opaque(array, components, source)
    if components == 2:
        return array[..., 0], ()
    colours = array[..., :3]
    spread = colours.max(axis=-1).astype(np.float64) - colours.min(axis=-1)
    if not spread.any():
        return colours[..., 0].copy(), ()
    grey = np.round(colours @ _LUMINANCE).astype(array.dtype)
    if array.dtype == np.uint8 and spread.max() <= _LOSSY:
        return grey, ("grey values of three channels that differ by a lossy codec's rounding",)
    if luminance:
        share = 100 * np.mean(spread > _LOSSY)
        return grey, (f"luminance of a colour image ({share:.2g} % of the pixels coloured)",)
    raise ImageError(f"{source}: colour image, expected grey values")


def _check_opaque(array, components, source):
    opacity = array[..., -1]
    full = np.iinfo(array.dtype).max if np.issubdtype(array.dtype, np.integer) else 1.0
    if not (opacity == full).all():
        if components == 2:
            raise ImageError(
                f"{source}: has 2 components per pixel (transparent pixels or vectors), expected "
                "plain grey values"
            )
        raise ImageError(f"{source}: has transparent pixels, expected plain grey values")
