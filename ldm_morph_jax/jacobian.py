"""Jacobian determinant of a saved transform.

    python -m ldm_morph_jax.jacobian --transform out/displacement.nii.gz --out jacobian.nii.gz

det dT/dp on the fixed image, a ratio of areas in mm^2: below 1 tissue expands from moving to fixed
image, above 1 it contracts, at or below 0 the transform folds.
"""

import argparse
from pathlib import Path

import numpy as np

from ldm_morph_jax import commands
from ldm_morph_jax.files.images import ImageError, read_image, write_image
from ldm_morph_jax.files.transforms import read_transform


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm_morph_jax.jacobian",
        description="Map and statistics of the Jacobian determinant of a transform.",
        epilog="Conventions: docs/registering.md",
    )
    parser.add_argument(
        "--transform",
        type=Path,
        required=True,
        metavar="FILE",
        help="displacement.npz or .nii.gz of register, or an ITK/ANTs field (.nii.gz)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="map to write (.nii.gz, .npz, .tif)"
    )
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="count only where this mask is not 0"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.out is not None and args.out.exists() and not args.overwrite:
        raise ImageError(f"{args.out}: exists; add --overwrite to replace it")
    transform = read_transform(args.transform)
    determinant = transform.jacobian_determinant()
    counted = determinant.ravel()
    if args.mask is not None:
        whole = "all" if determinant.ndim == 3 else None
        mask = read_image(args.mask, whole, oblique=True, labels=True).array != 0
        if mask.shape != determinant.shape:
            raise ImageError(
                f"{args.mask}: mask is {mask.shape}, the transform {determinant.shape}; "
                "they must agree"
            )
        counted = determinant[mask]
        if not counted.size:
            raise ImageError(f"{args.mask}: the mask is empty")
    if args.out is not None:
        write_image(args.out, determinant.astype(np.float32), transform.fixed)
    positive = counted[counted > 0]
    spread = float(np.std(np.log(positive))) if positive.size else float("nan")
    folds = int((counted <= 0).sum())
    print(
        f"J <= 0: {100 * folds / counted.size:.4f} % ({folds} of {counted.size} pixels)\n"
        f"J from {counted.min():.4f} to {counted.max():.4f}, mean {counted.mean():.4f}\n"
        f"SD of log J: {spread:.4f} (over J > 0)"
    )


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
