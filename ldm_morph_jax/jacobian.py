"""Jacobian determinant of a saved transform.

    ldm-morph jacobian --transform out/displacement.nii.gz --out jacobian.nii.gz

det dT/dp on the fixed image, a ratio of areas in mm^2: below 1 tissue expands from moving to fixed
image, above 1 it contracts, at or below 0 the transform folds.
"""

import argparse
from pathlib import Path

from ldm_morph_jax import commands


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph jacobian",
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
    commands.add_slice_option(parser)
    commands.add_frame_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from ldm_morph_jax.registering.saved import jacobian_file

    j = jacobian_file(
        args.transform,
        args.out,
        mask=args.mask,
        slice=args.slice,
        frame=args.frame,
        overwrite=args.overwrite,
    )
    print(
        f"J <= 0: {j['nonpositive_percent']:.4f} % "
        f"({j['nonpositive_pixels']} of {j['pixels']} pixels)\n"
        f"J from {j['smallest']:.4f} to {j['largest']:.4f}, mean {j['mean']:.4f}\n"
        f"SD of log J: {j['sd_log']:.4f} (over J > 0)"
    )


def main(argv: list[str] | None = None) -> None:
    args = commands.parse(build_parser(), argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
