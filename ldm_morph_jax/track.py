"""Follow the tissue of a cine through the whole beat: motion, contours, areas, strain.

    ldm-morph track --cine cine.nii.gz --mask ed_mask.nii.gz --out out/
    ldm-morph track --example --out out/

`registering/cine/outputs.py` lists the files that it writes, docs/tracking.md explains them.
"""

import argparse
from pathlib import Path

from ldm_morph_jax import commands


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph track",
        description="Follow the tissue of a cine through the beat: motion, contours, strain.",
        epilog="Definitions, conventions and files: docs/tracking.md",
    )
    parser.add_argument(
        "--cine",
        type=Path,
        metavar="FILE|FOLDER",
        help="4-D volume, multi-frame DICOM, stack, video, or a folder of single frames",
    )
    parser.add_argument(
        "--example", action="store_true", help="track the built-in phantom (--view says which)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--model",
        metavar="NAME|DIR|FILE",
        help="where the search starts: name of shipped weights, run directory or weights file; or "
        "an iterative method (lddmm, syn) in its place. Default: the search from no motion",
    )
    parser.add_argument(
        "--reference",
        type=int,
        default=0,
        metavar="K",
        help="frame whose tissue is followed, usually end-diastole (from 0; default: 0)",
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="labels of the reference frame")
    parser.add_argument(
        "--contours",
        type=Path,
        metavar="CSV",
        help="in place of a mask: columns contour (endo, epi), row, column",
    )
    parser.add_argument(
        "--landmarks",
        type=Path,
        metavar="CSV",
        help="points of the reference frame to carry along: columns row, column, optionally name",
    )
    parser.add_argument(
        "--labels",
        type=int,
        nargs=2,
        metavar=("CAVITY", "WALL"),
        help="of the mask (default: wall 2, cavity what it encloses)",
    )
    parser.add_argument(
        "--view",
        choices=("sax", "apical"),
        default="sax",
        help="short-axis (radial, circumferential strain) or apical (longitudinal, volume)",
    )
    parser.add_argument(
        "--septum",
        type=float,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="pixel in the direction of the middle of the septum, for sectors (default: the "
        "mask's right ventricle)",
    )
    parser.add_argument(
        "--period",
        type=_period,
        metavar="whole|SECONDS",
        help="of the beat: whole, if the last frame shows what the first one does; its length, if "
        "that is known; by default the motion need not repeat",
    )
    parser.add_argument(
        "--frame-times", type=Path, metavar="CSV", help="column time: seconds, a row per frame"
    )
    parser.add_argument("--fps", type=float, metavar="N", help="frames per second")
    commands.add_reading_options(parser)
    parser.add_argument(
        "--batch",
        type=Path,
        metavar="CSV",
        help="track many: columns cine and, optionally, id, mask, contours, landmarks, slice, "
        "reference; paths relative to the CSV; results in DIR/<id>/ and DIR/summary.csv",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N parts of the batch, from 1"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="leave out curves.png, beat.gif and report.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says. Returns whether every cine was tracked."""
    _check(args)
    from ldm_morph_jax.registering.cine import jobs

    commands.use_compilation_cache(at_least_seconds=0.0)
    options = jobs.Options(
        model=args.model,
        spacing=args.spacing,
        oblique=args.oblique,
        frame_times=_frame_times(args.frame_times),
        fps=args.fps,
        view=args.view,
        period=args.period,
        labels=None if args.labels is None else tuple(args.labels),
        septum=None if args.septum is None else tuple(args.septum),
        report=not args.no_report,
        overwrite=args.overwrite,
    )

    def load():
        from ldm_morph_jax.registering.registrar import load

        return None if args.model is None else load(args.model)

    if args.batch:
        shard = (1, 1) if args.shard is None else jobs.parse_shard(args.shard)
        listed = jobs.read_jobs(args.batch, args.out)
        rows, table = jobs.track_batch(listed, options, load, args.out, shard)
        failed = sum(row["status"] == "failed" for row in rows)
        print(f"{len(rows) - failed} of {len(rows)} cines tracked; table in {table}")
        return not failed
    if args.example:
        content = jobs.track_example(args.out, options, load)
    else:
        job = jobs.Job(
            args.cine,
            args.out,
            mask=args.mask,
            contours=args.contours,
            landmarks=args.landmarks,
            slice=args.slice,
            reference=args.reference,
        )
        content = jobs.track_job(job, options, load)
    print(jobs.summary_text(content, args.out))
    return True


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError where options are missing or do not go together."""
    sources = [name for name in ("cine", "batch", "example") if getattr(args, name)]
    if len(sources) != 1:
        found = " and ".join(f"--{name}" for name in sources) or "none"
        raise ValueError(f"found {found}, expected one of --cine, --batch and --example")
    [source] = sources
    of_a_cine = ["mask", "contours", "landmarks", "slice", "septum"]
    of_files = ["labels", "frame_times", "fps", "spacing", "oblique", "period"]
    taken = {"cine": [], "batch": of_a_cine, "example": [*of_a_cine, *of_files]}[source]
    given = [
        f"--{name.replace('_', '-')}" for name in taken if getattr(args, name) not in (None, False)
    ]
    if args.reference and source != "cine":
        given.append("--reference")
    if given:
        raise ValueError(f"--{source} does not go with {', '.join(given)}")
    if args.shard and not args.batch:
        raise ValueError("--shard needs --batch")


def _period(text: str) -> float | str:
    if text == "whole":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither seconds nor 'whole'") from None


def _frame_times(path: Path | None) -> tuple[float, ...] | None:
    from ldm_morph_jax.files.errors import FileError
    from ldm_morph_jax.files.tables import read_rows

    if path is None:
        return None
    try:
        return tuple(float(row["time"]) for _, row in read_rows(path, ("time",)))
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: {error}, expected seconds in the column time") from None


def main(argv: list[str] | None = None) -> None:
    args = commands.parse(build_parser(), argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
