"""Carry an image, labels or points through a saved transform.

    ldm-morph warp --transform out/displacement.npz --input ed_gt.nii.gz \\
        --interpolation nearest --out warped_gt.nii.gz

The input belongs to the moving image and the output to the fixed one; with --inverse the other way
round. That holds for points, too: their new place is where the tissue under them has moved. A CSV
of points has the columns x, y (and z) in mm, LPS, or row, column (and slice) in pixels; other
columns are kept.
"""

import argparse
from pathlib import Path

from ldm_morph_jax import commands


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph warp",
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
    commands.add_reading_options(parser)
    commands.add_frame_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from ldm_morph_jax.registering.saved import warp_file

    carried = warp_file(
        args.transform,
        args.input,
        args.out,
        interpolation=args.interpolation,
        inverse=args.inverse,
        moving=args.moving,
        overwrite=args.overwrite,
        slice=args.slice,
        frame=args.frame,
        spacing=args.spacing,
        oblique=args.oblique,
    )
    if carried.residual_mm is not None:
        print(f"inverse: residual {carried.residual_mm:.3g} mm at most")
    for note in carried.notes:
        print(f"note: {args.input}: {note}")


def main(argv: list[str] | None = None) -> None:
    args = commands.parse(build_parser(), argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
