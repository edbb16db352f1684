"""Carry an image, labels or points through a saved transform.

    ldm-morph warp --transform out/displacement.npz --input ed_gt.nii.gz \\
        --interpolation nearest --out warped_gt.nii.gz

The input belongs to the moving image and the output to the fixed one; with --inverse the other way
round. That holds for points, too: their new place is where the tissue under them has moved. A CSV
of points has the columns x, y (and z) in mm, LPS, or row, column (and slice) in pixels; other
columns are kept. A table (--batch) has the columns transform, input and, optionally, id, moving,
interpolation, inverse, slice and frame. Conventions: docs/registering.md
"""

from ldm_morph_jax import commands
from ldm_morph_jax.files.errors import as_flags
from ldm_morph_jax.registering.options import WarpOptions as Options


def run(options: Options) -> bool:
    """Warp. Returns whether every input was carried."""
    from ldm_morph_jax.registering import saved

    if options.batch:
        return commands.told_of_batch(*saved.warp_table(options), "inputs carried")
    carried = saved.warp_file(options)
    if carried.residual_mm is not None:
        print(f"inverse: residual {carried.residual_mm:.3g} mm at most")
    for note in carried.notes:
        print(as_flags(f"note: {options.input}: {note}"))
    return True


def main(argv: list[str] | None = None) -> None:
    commands.main("warp", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
