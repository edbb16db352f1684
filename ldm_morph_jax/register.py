"""Register two image files (NIfTI, DICOM, MetaImage, PNG, ...), or a table of pairs.

    ldm-morph register --moving ed.nii.gz --fixed es.nii.gz --out out/
    ldm-morph register --example --out out/

A table (--batch) has the columns moving, fixed and, optionally, id, moving_mask, fixed_mask, slice
and frame. docs/registering.md explains the files that are written, the conventions, and the use of
the results in other tools.
"""

import time
from contextlib import nullcontext
from pathlib import Path

from ldm_morph_jax import commands
from ldm_morph_jax.files.errors import as_flags
from ldm_morph_jax.registering.options import PairOptions as Options

_STARTED = time.perf_counter()  # the slow imports come later


def run(options: Options) -> bool:
    """Register. Returns whether every pair was registered."""
    from ldm_morph_jax.registering import pair_files

    if options.batch:
        return commands.told_of_batch(
            *pair_files.register_table(options, load_model(options.model)), "pairs registered"
        )
    with drawing_apart(options.report) as draw:
        metrics = pair_files.register_files(
            options, lambda: load_model(options.model, "once"), _STARTED, draw
        )
    print(as_flags(pair_files.summary_text(metrics, options.out)))
    return True


def read_batch(table: str | Path, out: str | Path) -> dict[str, Options]:
    """The jobs of a table by their ids, see `registering.batch.read_jobs`; scripts of users read
    tables by it."""
    from ldm_morph_jax.registering.batch import read_jobs

    return read_jobs(Options(batch=Path(table), out=Path(out)))


def drawing_apart(wanted: bool):
    """A process that imports what pages are drawn with while this one registers."""
    from ldm_morph_jax.report.apart import Apart

    module = "ldm_morph_jax.report.registered"
    return Apart(module, "write_pages", "prepare") if wanted else nullcontext()


def load_model(name: str, calls: str = "often"):
    """The registrar of that name, its compiled programs kept for later processes."""
    from ldm_morph_jax.registering.method import load

    # a single pair spends more on many small programs than on the network: keep those, too
    commands.use_compilation_cache(at_least_seconds=0.0)
    return load(name, calls=calls)


def main(argv: list[str] | None = None) -> None:
    commands.main("register", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
