"""What is done with a saved transform: images, labels and points carried through it, its Jacobian.

What is carried belongs to the moving image and arrives on the fixed one, or, with `inverse`, the
other way round.
"""

import csv
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import (
    Geometry,
    Image,
    ImageError,
    atomic,
    read_image,
    round_to,
    write_image,
)
from ldm_morph_jax.files.transforms import Transform, read_transform
from ldm_morph_jax.registering.measures import jacobian_numbers

_POSITION = ("x", "y", "z")
_INDEX = ("slice", "row", "column")


def warp_file(
    transform: Path,
    input: Path,
    out: Path,
    *,
    interpolation: str = "linear",
    inverse: bool = False,
    moving: Path | None = None,
    overwrite: bool = False,
    **reading,
) -> float | None:
    """Carry an image, labels ("nearest") or the points of a CSV through a saved transform.

    Args:
        transform: the file of the transform.
        input: the image, or a CSV with the columns x, y (and z) in mm, LPS, or row, column (and
            slice) in pixels; other columns are kept.
        out: what to write.
        interpolation: of images, "linear" or "nearest".
        inverse: from the fixed to the moving image.
        moving: the moving image, where the transform does not tell its grid and it is needed.
        overwrite: replace an earlier result.
        reading: options of `files.images.read_image`.

    Returns:
        The largest residual in mm where T had to be inverted; None where not.

    Raises:
        ImageError, TransformError: one line, on anything that cannot be used.
    """
    _refuse_existing(out, overwrite)
    source, transform = str(transform), read_transform(transform)
    if moving is not None:
        image = read_image(moving, **reading)
        geometry = _geometry(image, transform.moving)
        transform = Transform(transform.displacement_mm, transform.fixed, geometry)
    if input.suffix.lower() == ".csv":
        return _warp_points(transform, source, input, out, inverse)
    image = read_image(input, **reading, labels=interpolation == "nearest")
    largest = None
    if inverse:
        _need_moving(transform, source)
        # the input lies on the fixed image's grid, and it is sampled through the inverse
        transform, residual = transform.inverse()
        largest = float(residual.max())
    warped = transform.warp(image.array, interpolation, _geometry(image, transform.moving))
    if out.suffix.lower() in (".png", ".tif", ".tiff"):
        warped = round_to(warped, image.array.dtype)
    write_image(out, warped, transform.fixed)
    return largest


def jacobian_file(
    transform: Path, out: Path | None = None, *, mask: Path | None = None, overwrite: bool = False
) -> dict[str, float]:
    """`measures.jacobian_numbers` of a saved transform, where `mask` is not 0 or everywhere.

    The map is written to `out`, if given. Raises as `warp_file`.
    """
    _refuse_existing(out, overwrite)
    transform = read_transform(transform)
    determinant = transform.jacobian_determinant()
    counted = determinant
    if mask is not None:
        whole = "all" if determinant.ndim == 3 else None
        inside = read_image(mask, whole, oblique=True, labels=True).array != 0
        if inside.shape != determinant.shape:
            raise ImageError(
                f"{mask}: mask is {inside.shape}, the transform {determinant.shape}; "
                "they must agree"
            )
        counted = determinant[inside]
        if not counted.size:
            raise ImageError(f"{mask}: the mask is empty")
    if out is not None:
        write_image(out, determinant.astype(np.float32), transform.fixed)
    return jacobian_numbers(counted)


def _refuse_existing(out: Path | None, overwrite: bool) -> None:
    if out is not None and out.exists() and not overwrite:
        raise ImageError(f"{out}: exists; add --overwrite to replace it")


def _geometry(image: Image, recorded: Geometry | None) -> Geometry:
    """Where an image lies: as its file says, or else as the transform has recorded."""
    if image.position_known or recorded is None:
        return image.geometry
    return recorded


def _warp_points(transform: Transform, source: str, path: Path, out: Path, inverse: bool):
    """Move the points of a CSV file; the largest residual in mm, None where nothing is solved."""
    header, rows = _read_csv(path)
    n = transform.fixed.dimension
    positions, index = _POSITION[:n], _INDEX[-n:]
    columns = next((c for c in (positions, index) if set(c) <= set(header)), None)
    if columns is None:
        raise ImageError(
            f"{path}: columns are {', '.join(header)}; expected {', '.join(positions)} (mm) "
            f"or {', '.join(index)} (pixels)"
        )
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows]).reshape(-1, n)
    except (TypeError, ValueError):
        raise ImageError(f"{path}: holds coordinates that are not numbers") from None
    if not np.isfinite(points).all():
        raise ImageError(f"{path}: holds NaN or infinite coordinates")
    in_pixels, largest = columns == index, None
    if in_pixels:
        _need_moving(transform, source)
        origin, target = transform.moving, transform.fixed
        if inverse:
            origin, target = target, origin
        points = origin.to_physical(points)
    if inverse:  # T itself leads from fixed to moving
        moved = transform.map_points(points)
    else:
        moved, residual = transform.map_points_back(points)
        largest = float(residual.max(initial=0))
    if in_pixels:
        moved = target.to_index(moved)
    for row, values in zip(rows, moved, strict=True):
        row |= {c: f"{v:.6g}" for c, v in zip(columns, values, strict=True)}
    with atomic(out) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    return largest


def _read_csv(path: Path) -> tuple[list[str], list[dict]]:
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = list(reader)
            header = list(reader.fieldnames or [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{path}: not a readable CSV file ({error})") from None
    if any(None in row for row in rows):
        raise ImageError(f"{path}: a row has more values than the header has columns")
    return header, rows


def _need_moving(transform: Transform, source: str) -> None:
    if transform.moving is None:
        raise ImageError(
            f"{source}: does not tell the moving image's grid; use the .npz or --moving"
        )
