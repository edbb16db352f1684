"""Apical views of one heart in one bull's-eye: longitudinal strain of the 16 segments.

    ldm-morph views --four-chamber out4/ --two-chamber out2/ --three-chamber out3/ --out heart/

Takes two or three results of `ldm-morph track --view apical`. Where two views see a segment, it has
their mean; global longitudinal strain is the mean of the segments. docs/tracking.md
"""

from ldm_morph_jax import commands
from ldm_morph_jax.registering.options import ViewsOptions as Options


def run(options: Options) -> None:
    """Write the merged result, print its numbers."""
    from ldm_morph_jax.registering.apical import merge_views

    summary = merge_views(options)
    wall = summary["strain"]["longitudinal_strain"]
    print(f"global longitudinal strain  {100 * wall['peak']:.1f} %")
    for note in summary["notes"]:
        print(f"note: {note}")
    print(f"wrote {options.out}/; look at {options.out}/report.html")


def main(argv: list[str] | None = None) -> None:
    commands.main("views", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
