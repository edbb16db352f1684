"""The files that a registered pair becomes, all of them or none.

warped.nii.gz            moving image on the fixed image's grid, original intensities, linear
warped.png / .tif        the same, rounded, when the moving image was a PNG or TIFF
warped_mask.nii.gz       with a mask of the moving image, nearest neighbour
displacement.nii.gz      T(p) = p + d(p), mm, LPS: for ITK, ANTs, 3D Slicer
displacement.npz         the same in pixels, (row, column): for SciPy
inverse_displacement.*   where asked for, on the moving image's grid
jacobian.nii.gz          det dT/dp
metrics.json, overview.png, report.html
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import Image, round_to, write_image
from ldm_morph_jax.files.transforms import write_transform
from ldm_morph_jax.files.writing import json_text
from ldm_morph_jax.registering.result import Registration

_INVERSE = ("inverse_displacement.nii.gz", "inverse_displacement.npz")
_PAGES = ("overview.png", "report.html")
_ALWAYS = "warped.nii.gz displacement.nii.gz displacement.npz jacobian.nii.gz metrics.json".split()
ALL = (*_ALWAYS, *_PAGES, "warped.png", "warped.tif", "warped_mask.nii.gz", *_INVERSE)


def output_names(
    moving: Image, *, moving_mask: Image | None, inverse: bool, report: bool
) -> list[str]:
    """Names of the files that registering this image writes."""
    names, suffix = list(_ALWAYS), _picture_suffix(moving)
    names += [f"warped{suffix}"] if suffix else []
    names += ["warped_mask.nii.gz"] if moving_mask is not None else []
    names += _INVERSE if inverse else []
    names += _PAGES if report else []
    return names


def _picture_suffix(image: Image) -> str | None:
    """Suffix of the picture format the image came in, if it can hold the warped image, too."""
    suffix = Path(image.source).suffix.lower()
    if image.array.ndim != 2:
        return None
    if suffix == ".png" and image.array.dtype in (np.uint8, np.uint16):
        return ".png"
    if suffix in (".tif", ".tiff") and image.array.dtype in (np.uint8, np.uint16, np.float32):
        return ".tif"
    return None


def write_images(
    folder: Path, registration: Registration, moving_mask: Image | None, *, inverse: bool
) -> None:
    """Warped image and mask, transforms, Jacobian."""
    transform, geometry = registration.transform, registration.fixed.geometry
    write_image(folder / "warped.nii.gz", registration.warped, geometry)
    if suffix := _picture_suffix(registration.moving):
        picture = round_to(registration.warped, registration.moving.array.dtype)
        write_image(folder / f"warped{suffix}", picture, geometry)
    if moving_mask is not None:
        warped_mask = transform.warp(moving_mask.array, "nearest")
        write_image(folder / "warped_mask.nii.gz", warped_mask, geometry)
    write_transform(folder / "displacement.nii.gz", transform)
    write_transform(folder / "displacement.npz", transform)
    determinant = transform.jacobian_determinant().astype(np.float32)
    write_image(folder / "jacobian.nii.gz", determinant, geometry)
    for name in _INVERSE if inverse else ():
        write_transform(folder / name, registration.inverse.transform)


def draw_pages(
    folder: Path,
    registration: Registration,
    metrics: Mapping,
    moving_mask: np.ndarray | None,
    fixed_mask: np.ndarray | None,
    draw: Callable | None = None,
) -> Callable[[], None]:
    """Draw overview.png and report.html, by `draw` in another process or here.

    Returns what waits until they are there.
    """
    slices = _slices(registration, moving_mask, fixed_mask)
    if draw is not None:
        return draw(folder, slices, dict(metrics))
    from ldm_morph_jax.report.registered import write_pages

    write_pages(folder, slices, metrics)
    return lambda: None


def write_metrics(folder: Path, metrics: Mapping) -> None:
    """metrics.json."""
    (folder / "metrics.json").write_text(json_text(metrics))


def _slices(registration, moving_mask, fixed_mask) -> list[dict]:
    """What `report.registered` draws of every slice, all on the fixed image's grid.

    The moving image stands where it lay before registration; the displacement is what came on top.
    """
    fixed = registration.fixed.array
    moving = registration.start.warp(registration.moving.array)
    if moving_mask is not None:
        moving_mask = registration.start.warp(moving_mask, "nearest")
    stacks = {
        "moving": _unit(moving),
        "fixed": _unit(fixed),
        "displacement": registration.pixel_displacement,
        "moving_mask": moving_mask,
        "fixed_mask": fixed_mask,
    }
    count = len(fixed) if fixed.ndim == 3 else 1
    return [
        {
            name: array if array is None or fixed.ndim == 2 else array[k]
            for name, array in stacks.items()
        }
        | {"spacing": registration.fixed.spacing}
        for k in range(count)
    ]


def _unit(array) -> np.ndarray:
    """To [0, 1]; a few very bright or dark pixels do not set the scale."""
    low, high = np.percentile(array, [0.2, 99.8])
    if low == high:
        low, high = array.min(), array.max()
    return np.clip((array - low) / (high - low), 0, 1).astype(np.float32)
