"""Apply a saved transform to images, labels and points; its Jacobian.

Inputs belong to the moving image and results to the fixed one; with `inverse` the other way round.
"""

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, inside, is_identity
from ldm_morph_jax.files.images import (
    Image,
    check_cover,
    read_image,
    resample_image,
    resample_labels,
)
from ldm_morph_jax.files.tables import numbers, read_rows
from ldm_morph_jax.files.transforms import Inverse, Transform, read_transform
from ldm_morph_jax.files.writing import (
    SUFFIXES,
    atomic,
    json_text,
    refuse_existing,
    round_to,
    staged,
    write_image,
)
from ldm_morph_jax.registering import dicom_results
from ldm_morph_jax.registering.batch import arguments, run_batch
from ldm_morph_jax.registering.grid import MIN_OVERLAP
from ldm_morph_jax.registering.measures import jacobian_numbers
from ldm_morph_jax.registering.options import JacobianOptions, WarpOptions

_POSITION = ("x", "y", "z")
_INDEX = ("slice", "row", "column")


class Carried(NamedTuple):
    """Quality of a result.

    residual_mm: the largest of the inverse; None where none was needed.
    notes: sentences about the input and the result.
    """

    residual_mm: float | None
    notes: tuple[str, ...] = ()


def warp_file(options: WarpOptions) -> Carried:
    """Carry an image, labels ("nearest") or the points of a CSV through a saved transform.

    A CSV of points has the columns x, y (and z) in mm, LPS, or row, column (and slice) in pixels,
    or both, of which mm count; other columns are kept.

    Raises:
        ImageError, TransformError: one line, on anything that cannot be used; also where the input
            does not cover the image that was registered, compared in mm where both tell positions.
    """
    if not options.overwrite:
        refuse_existing(options.out)
    source, transform = str(options.transform), read_transform(options.transform)
    reading = options.reading | {"slice": options.slice, "frame": options.frame}
    lies_on = None
    if options.dicom is not None:
        lies_on = read_image(options.dicom, **reading)
        dicom = dicom_results.source_of(options.dicom, lies_on, frame=options.frame)
    if options.moving is not None:
        image = read_image(options.moving, **reading)
        transform = replace(transform, moving=_placed(image, transform.moving).geometry)
    if options.input.suffix.lower() == ".csv":
        return _warp_points(transform, source, options.input, options.out, options.inverse)
    image = read_image(options.input, **reading, labels=options.interpolation == "nearest")
    largest, notes = None, ()
    if options.inverse:
        _need_moving(transform, source)
        # the input lies on the fixed image's grid, and it is sampled through the inverse
        inverse = transform.inverse()
        transform, largest = inverse.transform, float(inverse.residual_mm.max())
        notes += _missing(inverse.missing, "pixels")
    image = _placed(image, transform.moving)
    notes += image.notes
    if outside := _share_outside(transform, image):
        notes += (f"{100 * outside:.2g} % of the result lie beyond the input: its border value",)
    warped = transform.warp(image.array, options.interpolation, image.geometry)
    if options.out.suffix.lower() in (".png", ".tif", ".tiff"):
        warped = round_to(warped, image.array.dtype)
    if lies_on is None:
        write_image(options.out, warped, transform.fixed)
    elif not lies_on.geometry.same_as(transform.fixed):
        raise ImageError(f"{options.dicom}: is not the image on which the result lies")
    elif not warped.any():
        raise ImageError(f"{options.out}: no label is left in the result")
    else:
        dicom_results.write_labels(options.out, warped, lies_on, dicom)
    return Carried(largest, notes)


def warp_table(options: WarpOptions) -> tuple[list[dict], Path]:
    """Carry every input of a table, see `batch.run_batch`; each keeps its name."""

    def work(job):
        name = job.input.name
        if not name.lower().endswith((*SUFFIXES, ".csv")):  # DICOM and others are only read
            name += ".nii.gz"
        with staged(job.out, (name, job.RECORD), job.overwrite, last=job.RECORD) as folder:
            begin = time.perf_counter()
            carried = warp_file(replace(job, out=folder / name))
            record = {
                "file": name,
                **carried._asdict(),
                "seconds": {"total": time.perf_counter() - begin},
                "arguments": arguments(job, None),
            }
            (folder / job.RECORD).write_text(json_text(record), encoding="utf-8")
        return record

    def row_of(record):
        residual = record["residual_mm"]
        row = {"file": record["file"], "notes": "; ".join(record["notes"])}
        return row if residual is None else row | {"residual_mm": f"{residual:.3g}"}

    columns = "id status seconds file residual_mm notes error".split()
    return run_batch(options, None, work, row_of, columns)


def jacobian_file(options: JacobianOptions) -> dict[str, float]:
    """`measures.jacobian_numbers` of a saved transform, where `mask` is not 0 or everywhere.

    The map is written to `out`, if given. Raises as `warp_file`.
    """
    if options.out is not None and not options.overwrite:
        refuse_existing(options.out)
    transform = read_transform(options.transform)
    determinant = transform.jacobian_determinant()
    counted = determinant
    if options.mask is not None:
        slice = "all" if determinant.ndim == 3 else options.slice
        labels = read_image(options.mask, slice, frame=options.frame, oblique=True, labels=True)
        labels = resample_labels(labels, _registered_image(transform.fixed, labels))
        counted = determinant[labels.array != 0]
        if not counted.size:
            raise ImageError(f"{options.mask}: the mask is empty")
    if options.out is not None:
        write_image(options.out, determinant.astype(np.float32), transform.fixed)
    return jacobian_numbers(counted)


def _placed(image: Image, recorded: Geometry | None) -> Image:
    """An image with its place: as its file says, or else as the transform has recorded it.

    Raises ImageError if it does not fit or does not cover the image that was registered.
    """
    if recorded is None:
        return image
    registered = _registered_image(recorded, image)
    if is_identity(image.geometry) and not is_identity(recorded):
        note = "lies at the origin with 1 mm pixels, which tells nothing: taken pixel by pixel"
        image = replace(
            image, spacing_known=False, position_known=False, notes=(*image.notes, note)
        )
    if image.position_known and registered.position_known:
        check_cover(image, recorded, registered.source)
        return image
    return resample_image(image, registered)  # of as many pixels; it gets its place


def _registered_image(geometry: Geometry, like: Image) -> Image:
    """A stand-in for an image of which a transform has recorded where it lies.

    It lies in the plane of `like`: a 2-D transform does not tell. At the origin and along the axes
    is where images without a place of their own are put.
    """
    n = geometry.dimension
    placed = geometry.origin.any() or not np.array_equal(geometry.direction, np.eye(n))
    return Image(
        np.empty(geometry.shape),
        geometry,
        spacing_known=geometry.spacing != (1.0,) * n,
        position_known=bool(placed),
        plane=like.plane,
        source="the image that was registered",
    )


def _share_outside(transform: Transform, image: Image) -> float:
    """Share of pixels that come from beyond the image; ImageError where nearly all do."""
    outside = 1 - inside(transform.moving_indices(image.geometry), image.geometry.shape).mean()
    if outside > 1 - MIN_OVERLAP:
        raise ImageError(
            f"{image.source}: {100 * outside:.0f} % of where the transform leads lies outside it"
        )
    return float(outside)


def _missing(count: int, what: str) -> tuple[str, ...]:
    return (f"{count} {what} have no inverse: the transform folds there",) if count else ()


def _warp_points(transform: Transform, source: str, path: Path, out: Path, inverse: bool):
    """Move the points of a CSV file; where it has both, by mm, and the pixels follow."""
    if out.suffix.lower() != ".csv":
        raise ImageError(f"{out}: expected FILE.csv, which holds the points of {path}")
    rows = read_rows(path)
    if not rows:
        raise ImageError(f"{path}: lists no points")
    header, n = list(rows[0][1]), transform.fixed.dimension
    positions, index = _POSITION[:n], _INDEX[-n:]
    in_mm, in_pixels = (set(columns) <= set(header) for columns in (positions, index))
    if not (in_mm or in_pixels):
        raise ImageError(
            f"{path}: columns are {', '.join(header)}; expected {', '.join(positions)} (mm) "
            f"or {', '.join(index)} (pixels)"
        )
    if in_pixels and (inverse or not in_mm):
        _need_moving(transform, source)
    origin, target = transform.moving, transform.fixed
    if inverse:
        origin, target = target, origin
    columns = positions if in_mm else index
    points = np.array([numbers(row, columns, f"{path}, line {line}") for line, row in rows])
    if not in_mm:
        points = origin.to_physical(points)
    largest, notes = None, ()
    if inverse:  # T itself leads from fixed to moving
        moved = transform.map_points(points)
    else:
        moved, residual = transform.map_points_back(points)
        largest = float(residual.max())
        lost = residual > Inverse.TOLERANCE * min(transform.fixed.spacing)
        notes = _missing(np.count_nonzero(lost), "points")
    places = [(positions, moved)] if in_mm else []
    if in_pixels:
        places.append((index, target.to_index(moved)))
    with atomic(out) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for k, (_, row) in enumerate(rows):
            for columns, values in places:
                row |= {c: f"{v:.6g}" for c, v in zip(columns, values[k], strict=True)}
            writer.writerow(row)
    return Carried(largest, notes)


def _need_moving(transform: Transform, source: str) -> None:
    if transform.moving is None:
        raise ImageError(
            f"{source}: does not tell the moving image's grid; use the .npz or `moving`"
        )
