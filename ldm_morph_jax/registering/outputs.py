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

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import Image, ImageError, round_to, write_image
from ldm_morph_jax.files.transforms import write_transform
from ldm_morph_jax.files.writing import json_text
from ldm_morph_jax.registering.result import Registration

_INVERSE = ("inverse_displacement.nii.gz", "inverse_displacement.npz")
_ALWAYS = (
    "warped.nii.gz displacement.nii.gz displacement.npz jacobian.nii.gz metrics.json overview.png "
    "report.html"
).split()
_ALL = (*_ALWAYS, "warped.png", "warped.tif", "warped_mask.nii.gz", *_INVERSE)


def output_names(moving: Image, *, moving_mask: Image | None, inverse: bool) -> list[str]:
    """Names of the files that registering this image writes."""
    names, suffix = list(_ALWAYS), _picture_suffix(moving)
    names += [f"warped{suffix}"] if suffix else []
    names += ["warped_mask.nii.gz"] if moving_mask is not None else []
    names += _INVERSE if inverse else []
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


@contextmanager
def staged(out: Path, names: list[str], overwrite: bool) -> Iterator[Path]:
    """A folder to write `names` into; they move to `out` together when the block ends well.

    An earlier run's other results leave with them, so that `out` never mixes two runs.

    Raises:
        ImageError: one of the names exists and is not to be overwritten; `out` is not writable.
    """
    if not overwrite:
        for name in names:
            if (out / name).exists():
                raise ImageError(f"{out / name}: exists; add --overwrite to replace it")
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    except OSError as error:
        raise ImageError(f"{out}: cannot write there ({error.strerror})") from None
    done = False
    try:
        yield stage
        for name in set(_ALL) - set(names) if overwrite else ():
            (out / name).unlink(missing_ok=True)
        for name in names:
            os.replace(stage / name, out / name)
        done = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if created and not done and not any(out.iterdir()):
            out.rmdir()


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


def write_pages(
    folder: Path,
    registration: Registration,
    metrics: Mapping,
    moving_mask: np.ndarray | None,
    fixed_mask: np.ndarray | None,
) -> None:
    """overview.png and report.html."""
    from ldm_morph_jax.report.registered import write_overview, write_report

    slices = _slices(registration, moving_mask, fixed_mask)
    sources = (registration.moving.source, registration.fixed.source)
    title = " → ".join(Path(source).name for source in sources)
    write_overview(folder / "overview.png", slices, title)
    write_report(folder / "report.html", slices, metrics)


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
