"""Register two image files.

    python -m ldm_morph_jax.register --moving ed.nii.gz --fixed es.nii.gz --out out/

Writes to the out directory (docs/registering.md explains the conventions):

    warped.nii.gz            moving image on the fixed image's grid, original intensities, linear
    warped.png / .tif        the same, rounded, when the moving image was a PNG or TIFF
    warped_mask.nii.gz       with --moving-mask, nearest neighbour
    displacement.nii.gz      T(p) = p + d(p), mm, LPS: for ITK, ANTs, 3D Slicer
    displacement.npz         the same in pixels, (row, column): for SciPy
    inverse_displacement.*   with --inverse, on the moving image's grid
    jacobian.nii.gz          det dT/dp
    metrics.json, overview.png, report.html
"""

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_morph_jax import commands
from ldm_morph_jax.files.images import (
    Image,
    ImageError,
    atomic,
    read_image,
    round_to,
    write_image,
)
from ldm_morph_jax.files.transforms import write_transform
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

_STARTED = time.perf_counter()  # the slow imports come later
MASK_KEYS = ("moving_mask", "fixed_mask")
SUMMARY_COLUMNS = (
    "id status seconds correlation_before correlation_after dice_before dice_after "
    "nonpositive_jacobian_percent largest_displacement_mm error"
).split()
NOT_TRAINED_FOR_VELOCITY = (
    "--diffeomorphic: the network was trained to predict a displacement, not a velocity. Its "
    "prediction was integrated as if it were one (scaling and squaring): folds vanish, up to the "
    "grid's resolution; where motion is large the result departs from what the network meant"
)


@dataclass(frozen=True)
class Job:
    """One pair to register, and where to."""

    moving: Path
    fixed: Path
    out: Path
    moving_mask: Path | None = None
    fixed_mask: Path | None = None
    slice: int | str | None = None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm_morph_jax.register",
        description="Register a moving image to a fixed one (PNG, TIFF, NIfTI, NPZ, DICOM).",
        epilog="Conventions and the use of the results in other tools: docs/registering.md",
    )
    parser.add_argument("--moving", type=Path, metavar="FILE", help="image to be warped, e.g. ED")
    parser.add_argument("--fixed", type=Path, metavar="FILE", help="image to be matched, e.g. ES")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|DIR|FILE",
        help=f"name of shipped weights (default: {DEFAULT_MODEL}), run directory or weights file",
    )
    parser.add_argument(
        "--moving-mask", type=Path, metavar="FILE", help="labels of the moving image"
    )
    parser.add_argument("--fixed-mask", type=Path, metavar="FILE", help="labels of the fixed image")
    parser.add_argument("--slice", type=slice_argument, metavar="K|all", help=SLICE_HELP)
    parser.add_argument("--spacing", type=float, nargs="+", metavar="MM", help=SPACING_HELP)
    parser.add_argument("--oblique", action="store_true", help=OBLIQUE_HELP)
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
        default=0,
        metavar="N",
        help="steps of instance optimisation for this pair, from the network's prediction",
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
        "fixed_mask, slice; paths relative to the CSV; results in DIR/<id>/ and DIR/summary.csv",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    return parser


SLICE_HELP = "which slice of a 3-D file (from 0), or all"
SPACING_HELP = "pixel spacing in mm, one number or row and column, for files that do not tell it"
OBLIQUE_HELP = "accept slices that are tilted against the x-y plane; work in their own plane"


def slice_argument(text: str) -> int | str:
    """The type of --slice."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'") from None


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says. Returns whether every pair was registered."""
    if args.refine < 0:
        raise ValueError(f"--refine is {args.refine}, expected 0 or more steps")
    if args.batch:
        given = [
            n for n in ("moving", "fixed", *MASK_KEYS, "slice") if getattr(args, n) is not None
        ]
        if given:
            raise ValueError(f"--batch takes {', '.join(given)} from its CSV; drop the option")
        return run_batch(args, read_batch(args.batch, args.out))
    missing = [f"--{n}" for n in ("moving", "fixed") if getattr(args, n) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing (or use --batch)")
    masks = {key: getattr(args, key) for key in MASK_KEYS}
    job = Job(args.moving, args.fixed, args.out, **masks, slice=args.slice)
    images = read_pair(args, job)  # before the slow part, so that a mistake shows at once
    with staged(args.out, output_names(args, *images), args.overwrite) as stage:
        registrar, load_seconds = load_model(args.model)
        metrics = register_pair(args, registrar, images, stage, load_seconds)
    print(summary_text(metrics, args.out))
    return True


def load_model(name: str):
    """(registrar, seconds since the command began)."""
    commands.use_compilation_cache()
    import jax

    from ldm_morph_jax.registering.registrar import load

    # a single pair spends more on many small programs than on the network: keep those, too
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    registrar = load(name)
    return registrar, time.perf_counter() - _STARTED


def read_pair(args, job: Job) -> tuple[Image, Image, Image | None, Image | None]:
    """(moving, fixed, moving mask, fixed mask) of a job, checked."""
    options = {"slice": job.slice, "spacing": args.spacing, "oblique": args.oblique}
    moving, fixed = read_image(job.moving, **options), read_image(job.fixed, **options)
    masks = []
    for path, image in ((job.moving_mask, moving), (job.fixed_mask, fixed)):
        mask = None
        if path is not None:
            mask = read_image(path, **options, labels=True)
            if mask.array.shape != image.array.shape:
                raise ImageError(
                    f"{path}: mask is {mask.array.shape}, its image {image.source} "
                    f"{image.array.shape}; they must agree"
                )
        masks.append(mask)
    return moving, fixed, *masks


def output_names(args, moving: Image, fixed: Image, moving_mask, fixed_mask) -> list[str]:
    """Names of the files that registering this pair writes."""
    names = ["warped.nii.gz", "displacement.nii.gz", "displacement.npz", "jacobian.nii.gz"]
    names += ["metrics.json", "overview.png", "report.html"]
    suffix = picture_suffix(moving)
    names += [f"warped{suffix}"] if suffix else []
    names += ["warped_mask.nii.gz"] if moving_mask is not None else []
    names += ["inverse_displacement.nii.gz", "inverse_displacement.npz"] if args.inverse else []
    return names


ALL_NAMES = (
    "warped.nii.gz warped.png warped.tif warped_mask.nii.gz displacement.nii.gz displacement.npz "
    "inverse_displacement.nii.gz inverse_displacement.npz jacobian.nii.gz metrics.json "
    "overview.png report.html"
).split()


def picture_suffix(image: Image) -> str | None:
    """Suffix of the picture format the image came in, if it can hold the warped image, too."""
    suffix = Path(image.source).suffix.lower()
    if image.array.ndim != 2:
        return None
    if suffix == ".png" and image.array.dtype in (np.uint8, np.uint16):
        return ".png"
    if suffix in (".tif", ".tiff") and image.array.dtype in (np.uint8, np.uint16, np.float32):
        return ".tif"
    return None


@contextmanager
def staged(out: Path, names: list[str], overwrite: bool):
    """A folder to write `names` into; they move to `out` together when the block ends well.

    An earlier run's other results leave with them, so that `out` never mixes two runs.
    """
    if not overwrite:
        for name in names:
            if (out / name).exists():
                raise ImageError(f"{out / name}: exists; add --overwrite to replace it")
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    except OSError as error:
        raise ImageError(f"{out}: cannot write there ({error.strerror})") from None
    done = False
    try:
        yield stage
        for name in set(ALL_NAMES) - set(names) if overwrite else ():
            (out / name).unlink(missing_ok=True)
        for name in names:
            os.replace(stage / name, out / name)
        done = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if created and not done and not any(out.iterdir()):
            out.rmdir()


def register_pair(args, registrar, images, stage: Path, load_seconds: float | None) -> dict:
    """Register one pair, write every result into `stage`, return the metrics."""
    from ldm_morph_jax.report.registered import write_overview, write_report

    moving, fixed, moving_mask, fixed_mask = images
    start = time.perf_counter()
    registration = registrar.register_images(
        [(moving, fixed)],
        align=args.align,
        centre=None if args.centre is None else tuple(args.centre),
        refine=args.refine,
        diffeomorphic=args.diffeomorphic,
    )[0]
    seconds = {"start_and_weights": load_seconds, "registration": time.perf_counter() - start}
    start = time.perf_counter()
    transform, geometry = registration.transform, fixed.geometry
    write_image(stage / "warped.nii.gz", registration.warped, geometry)
    if picture_suffix(moving):
        picture = round_to(registration.warped, moving.array.dtype)
        write_image(stage / f"warped{picture_suffix(moving)}", picture, geometry)
    warped_mask = None
    if moving_mask is not None:
        warped_mask = transform.warp(moving_mask.array, "nearest")
        write_image(stage / "warped_mask.nii.gz", warped_mask, geometry)
    write_transform(stage / "displacement.nii.gz", transform)
    write_transform(stage / "displacement.npz", transform)
    determinant = transform.jacobian_determinant()
    write_image(stage / "jacobian.nii.gz", determinant.astype(np.float32), geometry)
    if args.inverse:
        for suffix in (".nii.gz", ".npz"):
            write_transform(stage / f"inverse_displacement{suffix}", registration.inverse[0])
    metrics = measure(args, registrar, registration, moving_mask, fixed_mask, warped_mask)
    masks = [None if mask is None else mask.array for mask in (moving_mask, fixed_mask)]
    write_overview(stage / "overview.png", registration, *masks)
    write_report(stage / "report.html", registration, metrics, *masks)
    seconds["files_and_report"] = time.perf_counter() - start
    seconds["total"] = sum(s for s in seconds.values() if s)
    metrics["seconds"] = {k: s and round(s, 3) for k, s in seconds.items()}
    text = json.dumps(without_nan(metrics), indent=2) + "\n"
    (stage / "metrics.json").write_text(text)
    return metrics


def measure(args, registrar, registration, moving_mask, fixed_mask, warped_mask) -> dict:
    """What metrics.json holds, less the seconds."""
    from ldm_morph_jax.ops.metrics import dice

    moving, fixed = registration.moving, registration.fixed
    grid, transform = registration.prepared.grid, registration.transform
    determinant = transform.jacobian_determinant()
    positive = determinant[determinant > 0]
    moved = np.linalg.norm(transform.displacement_mm - registration.start.displacement_mm, axis=-1)
    metrics = {
        "model": args.model,
        "method": registrar.method.name,
        **{
            name: {
                "file": image.source,
                "shape": list(image.array.shape),
                "spacing_mm": list(image.spacing) if image.spacing_known else None,
            }
            for name, image in (("moving", moving), ("fixed", fixed))
        },
        "model_grid": {
            "size": grid.size,
            "centre_on_fixed_pixel": list(grid.centre),
            "fixed_pixels_per_model_pixel": list(grid.scale),
        },
        "shift_before_registration_mm": registration.prepared.shift.tolist(),
        "correlation": {
            "before": registration.correlation(registration.start),
            "network": registration.correlation(registration.network_transform),
            "after": registration.correlation(transform),
        },
        "jacobian": {
            "nonpositive_percent": nonpositive_percent(transform),
            "smallest": float(determinant.min()),
            "largest": float(determinant.max()),
            "sd_log": float(np.std(np.log(positive))) if positive.size else float("nan"),
        },
        "displacement_mm": {"mean": float(moved.mean()), "largest": float(moved.max())},
    }
    if moving_mask is not None and fixed_mask is not None:
        before = registration.start.warp(moving_mask.array, "nearest")
        labels = [int(k) for k in np.unique(fixed_mask.array) if k != 0]
        # a stack's overlap is its volume's: dice counts pixels, however they are arranged
        planes = [a.reshape(-1, a.shape[-1]) for a in (before, warped_mask, fixed_mask.array)]
        scores = [dice(one, planes[2], labels) for one in planes[:2]]
        metrics["dice"] = {str(k): {"before": scores[0][k], "after": scores[1][k]} for k in labels}
    if args.refine:
        objective = registration.prediction.dissimilarity
        metrics["refinement"] = {
            "steps": args.refine,
            "objective_before": objective[:, 0].tolist(),
            "objective_after": objective[:, 1].tolist(),
            "nonpositive_percent_before": nonpositive_percent(registration.network_transform),
            "nonpositive_percent_after": nonpositive_percent(transform),
        }
    if args.inverse:
        inverse, residual = registration.inverse
        index = inverse.moving_indices()
        last = np.array(inverse.moving.shape) - 1
        seen = residual[((index >= 0) & (index <= last)).all(axis=-1)]
        metrics["inverse"] = {
            "residual_mm_mean": float(seen.mean()) if seen.size else float("nan"),
            "residual_mm_largest": float(seen.max()) if seen.size else float("nan"),
        }
    metrics["diffeomorphic"] = registration.diffeomorphic
    metrics["notes"] = notes(args, registrar, registration)
    return metrics


def nonpositive_percent(transform) -> float:
    return float(100 * (transform.jacobian_determinant() <= 0).mean())


def notes(args, registrar, registration) -> list[str]:
    """What the user should know about this result."""
    found = []
    if args.diffeomorphic and not registrar.method.predicts_velocity:
        found.append(NOT_TRAINED_FOR_VELOCITY)
    if registrar.method.spacing_mm is not None and not registration.fixed.spacing_known:
        found.append(
            f"{registration.fixed.source} does not tell its pixel spacing: the longer side was "
            "fitted to the model's grid, so the heart may not have the size that the network "
            "knows; --spacing helps"
        )
    if registration.fixed.plane is not None:
        found.append("oblique slice: x and y in the results are axes of the slice's own plane")
    return found


def without_nan(value):
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def summary_text(metrics: dict, out: Path) -> str:
    """What the command prints at the end."""
    lines = [f"{metrics['moving']['file']} -> {metrics['fixed']['file']}  ({metrics['model']})"]
    c = metrics["correlation"]
    refined = f" (network {c['network']:.3f})" if "refinement" in metrics else ""
    lines.append(f"correlation  {c['before']:.3f} before, {c['after']:.3f} after{refined}")
    for label, score in metrics.get("dice", {}).items():
        lines.append(f"DSC label {label}  {score['before']:.3f} before, {score['after']:.3f} after")
    lines.append(f"folding      {metrics['jacobian']['nonpositive_percent']:.2f} % of the pixels")
    if "inverse" in metrics:
        lines.append(
            f"inverse      residual {metrics['inverse']['residual_mm_largest']:.3g} mm at most"
        )
    lines += [f"note: {note}" for note in metrics["notes"]]
    s = metrics["seconds"]
    lines.append(f"wrote {out}/; look at {out / 'report.html'}")
    lines.append(
        f"{s['total']:.1f} s: {s['start_and_weights']:.1f} start and weights, "
        f"{s['registration']:.1f} registration (compilation included), "
        f"{s['files_and_report']:.1f} files and report"
    )
    return "\n".join(lines)


def read_batch(path: Path, out: Path) -> dict[str, Job]:
    """Jobs of a CSV by id. Raises ImageError on missing columns, bad or repeated ids."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = list(reader)
    allowed = ("id", "moving", "fixed", *MASK_KEYS, "slice")
    unknown = [c for c in columns if c not in allowed]
    if unknown or "moving" not in columns or "fixed" not in columns:
        raise ImageError(
            f"{path}: columns are {columns}, expected moving, fixed and, optionally, id, "
            "moving_mask, fixed_mask, slice"
        )
    if not rows:
        raise ImageError(f"{path}: lists no pairs")
    jobs: dict[str, Job] = {}
    for number, row in enumerate(rows, start=1):
        name = (row.get("id") or f"{number:04d}").strip()
        if name in jobs:
            raise ImageError(f"{path}: row {number} repeats the id {name!r}")
        if name in (".", "..") or "/" in name or "\\" in name or name.startswith(".writing"):
            raise ImageError(
                f"{path}: row {number} has the id {name!r}, not usable as a folder name"
            )
        if not row["moving"] or not row["fixed"]:
            raise ImageError(f"{path}: row {number} lacks moving or fixed")
        masks = {k: path.parent / row[k] for k in MASK_KEYS if row.get(k)}
        try:
            chosen = slice_argument(row["slice"]) if row.get("slice") else None
        except argparse.ArgumentTypeError as error:
            raise ImageError(f"{path}: row {number}: slice {error}") from None
        jobs[name] = Job(
            path.parent / row["moving"],
            path.parent / row["fixed"],
            out / name,
            **masks,
            slice=chosen,
        )
    return jobs


def run_batch(args, jobs: dict[str, Job]) -> bool:
    """Register every job; a bad pair is reported and the others go on."""
    summary = args.out / "summary.csv"
    if summary.exists() and not args.overwrite:
        raise ImageError(f"{summary}: exists; add --overwrite to replace it")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{args.out}: cannot write there ({error.strerror})") from None
    registrar, _ = load_model(args.model)
    rows, started = [], time.perf_counter()
    try:
        for number, (name, job) in enumerate(jobs.items(), start=1):
            begin = time.perf_counter()
            try:
                images = read_pair(args, job)
                names = output_names(args, *images)
                with staged(job.out, names, args.overwrite) as stage:
                    metrics = register_pair(args, registrar, images, stage, None)
                row = summary_row(name, metrics)
                told = f"correlation {row['correlation_before']} -> {row['correlation_after']}"
            except (ValueError, OSError) as error:
                row = {"id": name, "status": "failed", "error": " ".join(str(error).split())}
                told = f"failed: {row['error']}"
            row["seconds"] = f"{time.perf_counter() - begin:.2f}"
            rows.append(row)
            left = (time.perf_counter() - started) / number * (len(jobs) - number)
            eta = f", {left:.0f} s left" if number < len(jobs) else ""
            print(
                f"[{number}/{len(jobs)}] {name}: {told} ({row['seconds']} s{eta})",
                file=sys.stderr,
                flush=True,
            )
    finally:  # an interrupted batch leaves the table of what it has done
        if rows:
            with atomic(summary) as part, open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, SUMMARY_COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(rows)
    failed = sum(row["status"] == "failed" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pairs registered; table in {summary}")
    return not failed


def summary_row(name: str, metrics: dict) -> dict:
    """One line of summary.csv; Dice is the mean over labels."""
    row = {"id": name, "status": "ok"}
    for when in ("before", "after"):
        row[f"correlation_{when}"] = f"{metrics['correlation'][when]:.4f}"
        if metrics.get("dice"):
            row[f"dice_{when}"] = f"{np.nanmean([d[when] for d in metrics['dice'].values()]):.4f}"
    row["nonpositive_jacobian_percent"] = f"{metrics['jacobian']['nonpositive_percent']:.4f}"
    row["largest_displacement_mm"] = f"{metrics['displacement_mm']['largest']:.3f}"
    return row


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    def registered():
        if not run(args):
            sys.exit(1)

    commands.run(registered)


if __name__ == "__main__":
    main()
