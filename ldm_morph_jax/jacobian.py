"""Jacobian determinant of a saved transform: its statistics, and a map.

    ldm-morph jacobian --transform out/displacement.nii.gz --out jacobian.nii.gz

det dT/dp on the fixed image, a ratio of areas in mm^2: below 1 tissue expands from moving to fixed
image, above 1 it contracts, at or below 0 the transform folds. Conventions: docs/registering.md
"""

from ldm_morph_jax import commands
from ldm_morph_jax.registering.options import JacobianOptions as Options


def run(options: Options) -> None:
    """Print the statistics, write the map."""
    from ldm_morph_jax.registering.saved import jacobian_file

    j = jacobian_file(options)
    print(
        f"J <= 0: {j['nonpositive_percent']:.4f} % "
        f"({j['nonpositive_pixels']} of {j['pixels']} pixels)\n"
        f"J from {j['smallest']:.4f} to {j['largest']:.4f}, mean {j['mean']:.4f}\n"
        f"SD of log J: {j['sd_log']:.4f} (over J > 0)"
    )


def main(argv: list[str] | None = None) -> None:
    commands.main("jacobian", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
