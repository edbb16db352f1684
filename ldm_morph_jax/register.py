"""Register two image files.

    ldm-morph register --moving ed.nii.gz --fixed es.nii.gz --out out/
    ldm-morph register --example --out out/

`registering/outputs.py` lists the files that it writes, docs/registering.md explains them.
"""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

from ldm_morph_jax import commands
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

_STARTED = time.perf_counter()  # the slow imports come later
EXAMPLES = Path(__file__).parent / "examples"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph register",
        description="Register a moving image to a fixed one (NIfTI, DICOM, MetaImage, PNG, ...).",
        epilog="Conventions and the use of the results in other tools: docs/registering.md",
    )
    parser.add_argument("--moving", type=Path, metavar="FILE", help="image to be warped, e.g. ED")
    parser.add_argument("--fixed", type=Path, metavar="FILE", help="image to be matched, e.g. ES")
    parser.add_argument(
        "--example", action="store_true", help="register two images that come with the package"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|DIR|FILE",
        help=f"name of shipped weights (default: {DEFAULT_MODEL}) or of an iterative method "
        "(lddmm, syn), run directory or weights file",
    )
    parser.add_argument(
        "--moving-mask", type=Path, metavar="FILE", help="labels of the moving image"
    )
    parser.add_argument("--fixed-mask", type=Path, metavar="FILE", help="labels of the fixed image")
    commands.add_reading_options(parser)
    commands.add_frame_option(parser, "+")
    parser.add_argument(
        "--align",
        choices=("auto", "world", "centre"),
        default="auto",
        help="how the images lie on each other before registration: as their files say (world), or "
        "centre on centre; auto: world where both files tell",
    )
    parser.add_argument(
        "--centre",
        type=float,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="pixel of the fixed image to centre the model's grid on, e.g. the heart "
        "(default: the image's centre)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        metavar="N",
        help="steps of refinement on the whole image, from what the network predicts "
        "(default: 82; 0: the network alone; iterative methods are not refined)",
    )
    parser.add_argument("--inverse", action="store_true", help="write the inverse transform, too")
    parser.add_argument(
        "--diffeomorphic",
        action="store_true",
        help="integrate a predicted displacement as a velocity (scaling and squaring), against "
        "folds; networks trained to predict velocities always do",
    )
    parser.add_argument(
        "--batch",
        type=Path,
        metavar="CSV",
        help="register many pairs: columns moving, fixed and, optionally, id, moving_mask, "
        "fixed_mask, slice, frame; paths relative to the CSV; results in DIR/<id>/ and "
        "DIR/summary.csv",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="leave out overview.png and report.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says. Returns whether every pair was registered."""
    _check(args)
    if args.example:
        args.moving, args.fixed = EXAMPLES / "ed.nii.gz", EXAMPLES / "es.nii.gz"
        args.moving_mask, args.fixed_mask = EXAMPLES / "ed_mask.nii.gz", EXAMPLES / "es_mask.nii.gz"

    from ldm_morph_jax.registering.batch import read_jobs, register_batch
    from ldm_morph_jax.registering.jobs import Job, Options, frames_of, register_job, summary_text

    options = Options(
        model=args.model,
        spacing=args.spacing,
        oblique=args.oblique,
        align=args.align,
        centre=None if args.centre is None else tuple(args.centre),
        refine=args.refine,
        diffeomorphic=args.diffeomorphic,
        inverse=args.inverse,
        report=not args.no_report,
        overwrite=args.overwrite,
    )
    if args.batch:
        jobs = read_jobs(args.batch, args.out)
        rows, summary = register_batch(jobs, options, lambda: load_model(args.model), args.out)
        failed = sum(row["status"] == "failed" for row in rows)
        print(f"{len(rows) - failed} of {len(rows)} pairs registered; table in {summary}")
        return not failed
    job = Job(
        args.moving,
        args.fixed,
        args.out,
        moving_mask=args.moving_mask,
        fixed_mask=args.fixed_mask,
        slice=args.slice,
        frames=frames_of(args.frame),
    )
    with drawing_apart(options.report) as draw:
        metrics = register_job(job, options, lambda: load_model(args.model, "once"), _STARTED, draw)
    print(summary_text(metrics, args.out))
    return True


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError where options are missing or do not go together."""
    if args.refine is not None and args.refine < 0:
        raise ValueError(f"--refine is {args.refine}, expected 0 or more steps")
    files = ("moving", "fixed", "moving_mask", "fixed_mask", "slice", "frame")
    given = [name for name in files if getattr(args, name) is not None]
    if args.batch and args.example:
        raise ValueError("--batch and --example: expected one of them")
    for option, source in (("batch", "its CSV"), ("example", "the package")):
        if getattr(args, option) and given:
            raise ValueError(f"--{option} takes {', '.join(given)} from {source}; drop the option")
    missing = [f"--{name}" for name in ("moving", "fixed") if name not in given]
    if missing and not (args.batch or args.example):
        raise ValueError(f"{' and '.join(missing)} missing (or use --batch or --example)")


def drawing_apart(wanted: bool):
    """A process that imports what pages are drawn with while this one registers."""
    from ldm_morph_jax.report.apart import Apart

    module = "ldm_morph_jax.report.registered"
    return Apart(module, "write_pages", "prepare") if wanted else nullcontext()


def load_model(name: str, calls: str = "often"):
    """The registrar of that name, its compiled programs kept for later processes."""
    from ldm_morph_jax.registering.registrar import load

    # a single pair spends more on many small programs than on the network: keep those, too
    commands.use_compilation_cache(at_least_seconds=0.0)
    return load(name, calls=calls)


def main(argv: list[str] | None = None) -> None:
    args = commands.parse(build_parser(), argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
