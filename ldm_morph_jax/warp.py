"""Carry an image, labels or points through a saved transform.

    python -m ldm_morph_jax.warp --transform out/displacement.npz --input ed_gt.nii.gz \\
        --interpolation nearest --out warped_gt.nii.gz

The input belongs to the moving image and the output to the fixed one; with --inverse the other way
round. That holds for points, too: their new place is where the tissue under them has moved. A CSV
of points has the columns x, y (and z) in mm, LPS, or row, column (and slice) in pixels; other
columns are kept.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from ldm_morph_jax import commands
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
from ldm_morph_jax.register import OBLIQUE_HELP, SLICE_HELP, SPACING_HELP, slice_argument

_POSITION = ("x", "y", "z")
_INDEX = ("slice", "row", "column")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm_morph_jax.warp",
        description="Carry an image, labels or points from the moving to the fixed image.",
        epilog="Conventions: docs/registering.md",
    )
    parser.add_argument(
        "--transform",
        type=Path,
        required=True,
        metavar="FILE",
        help="displacement.npz or displacement.nii.gz of register, or an ITK/ANTs field (.nii.gz)",
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="image, labels or points (.csv)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--interpolation",
        choices=("linear", "nearest"),
        default="linear",
        help="of images; nearest for labels (default: linear)",
    )
    parser.add_argument(
        "--inverse", action="store_true", help="from the fixed image to the moving one"
    )
    parser.add_argument(
        "--moving",
        type=Path,
        metavar="FILE",
        help="the moving image, where the transform does not tell its grid (a .nii.gz does not) "
        "and it is needed: --inverse of an image, points in pixels",
    )
    parser.add_argument("--slice", type=slice_argument, metavar="K|all", help=SLICE_HELP)
    parser.add_argument("--spacing", type=float, nargs="+", metavar="MM", help=SPACING_HELP)
    parser.add_argument("--oblique", action="store_true", help=OBLIQUE_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.out.exists() and not args.overwrite:
        raise ImageError(f"{args.out}: exists; add --overwrite to replace it")
    transform = read_transform(args.transform)
    if args.moving is not None:
        moving = _read(args, args.moving, labels=False)
        transform = Transform(
            transform.displacement_mm, transform.fixed, _geometry(moving, transform.moving)
        )
    if args.input.suffix.lower() == ".csv":
        warp_points(args, transform)
    else:
        warp_image(args, transform)


def warp_image(args, transform: Transform) -> None:
    """Warp an image or labels and write it with the geometry of where it went."""
    image = _read(args, args.input, labels=args.interpolation == "nearest")
    if args.inverse:
        _need_moving(transform, args)
        # the input lies on the fixed image's grid, and it is sampled through the inverse
        transform, residual = transform.inverse()
        print(
            f"inverse: residual {residual.max():.3g} mm at most (large where the transform folds)"
        )
    geometry = _geometry(image, transform.moving)
    warped = transform.warp(image.array, args.interpolation, geometry)
    if args.out.suffix.lower() in (".png", ".tif", ".tiff"):
        warped = round_to(warped, image.array.dtype)
    write_image(args.out, warped, transform.fixed)


def _read(args, path, *, labels) -> Image:
    return read_image(path, args.slice, spacing=args.spacing, oblique=args.oblique, labels=labels)


def _geometry(image: Image, recorded: Geometry | None) -> Geometry:
    """Where an image lies: as its file says, or else as the transform has recorded."""
    if image.position_known or recorded is None:
        return image.geometry
    return recorded


def warp_points(args, transform: Transform) -> None:
    """Move points of a CSV file; see the top of this file."""
    header, rows = _read_csv(args.input)
    n = transform.fixed.dimension
    positions, index = _POSITION[:n], _INDEX[-n:]
    columns = next((c for c in (positions, index) if set(c) <= set(header)), None)
    if columns is None:
        raise ImageError(
            f"{args.input}: columns are {', '.join(header)}; expected {', '.join(positions)} (mm) "
            f"or {', '.join(index)} (pixels)"
        )
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows]).reshape(-1, n)
    except (TypeError, ValueError):
        raise ImageError(f"{args.input}: holds coordinates that are not numbers") from None
    if not np.isfinite(points).all():
        raise ImageError(f"{args.input}: holds NaN or infinite coordinates")
    in_pixels = columns == index
    if in_pixels:
        _need_moving(transform, args)
        origin, target = transform.moving, transform.fixed
        if args.inverse:
            origin, target = target, origin
        points = origin.to_physical(points)
    if args.inverse:  # T itself leads from fixed to moving
        moved = transform.map_points(points)
    else:
        moved, residual = transform.map_points_back(points)
        print(
            f"residual {residual.max(initial=0):.3g} mm at most (large where the transform folds)"
        )
    if in_pixels:
        moved = target.to_index(moved)
    for row, values in zip(rows, moved, strict=True):
        row |= {c: f"{v:.6g}" for c, v in zip(columns, values, strict=True)}
    with atomic(args.out) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


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


def _need_moving(transform: Transform, args) -> None:
    if transform.moving is None:
        raise ImageError(
            f"{args.transform}: does not tell the moving image's grid; use the .npz or --moving"
        )


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
