"""Follow the tissue of a cine through the whole beat: motion, contours, areas, strain.

    ldm-morph track --cine cine.nii.gz --mask ed_mask.nii.gz --out out/
    ldm-morph track --example --out out/

A table (--batch) has the columns cine and, optionally, id, mask, contours, landmarks, slice,
reference and valves. docs/tracking.md has the definitions, the conventions and the files that are
written.
"""

from ldm_morph_jax import commands
from ldm_morph_jax.files.errors import as_flags
from ldm_morph_jax.registering.options import CineOptions as Options


def run(options: Options) -> bool:
    """Track. Returns whether every cine was tracked."""
    from ldm_morph_jax.registering import cine_files

    commands.use_compilation_cache(at_least_seconds=0.0)

    def load():
        from ldm_morph_jax.registering.method import load

        return None if options.model is None else load(options.model)

    if options.batch:
        return commands.told_of_batch(*cine_files.track_table(options, load()), "cines tracked")
    summary = cine_files.track_files(options, load)
    print(as_flags(cine_files.summary_text(summary, options.out)))
    return True


def main(argv: list[str] | None = None) -> None:
    commands.main("track", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
