"""Many pairs: the table of what to register, and the table of what came out."""

import csv
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import ImageError, atomic, parse_slice
from ldm_morph_jax.registering.jobs import Job, Options, register_job
from ldm_morph_jax.registering.registrar import Registrar

MASKS = ("moving_mask", "fixed_mask")
SUMMARY_COLUMNS = (
    "id status seconds correlation_before correlation_after dice_before dice_after "
    "nonpositive_jacobian_percent largest_displacement_mm error"
).split()


def read_jobs(path: Path, out: Path) -> dict[str, Job]:
    """Jobs of a CSV by id; paths are relative to it, results go to `out`/id.

    Raises ImageError on missing columns, bad or repeated ids.
    """
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = list(reader)
    allowed = ("id", "moving", "fixed", *MASKS, "slice")
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
        masks = {k: path.parent / row[k] for k in MASKS if row.get(k)}
        try:
            chosen = parse_slice(row["slice"]) if row.get("slice") else None
        except ValueError as error:
            raise ImageError(f"{path}: row {number}: slice {error}") from None
        moving, fixed = path.parent / row["moving"], path.parent / row["fixed"]
        jobs[name] = Job(moving, fixed, out / name, **masks, slice=chosen)
    return jobs


def register_batch(
    jobs: Mapping[str, Job], options: Options, load: Callable[[], Registrar], out: Path
) -> tuple[list[dict], Path]:
    """Register every job; a bad pair is reported and the others go on.

    Returns the rows of the summary and the CSV file that holds them; progress goes to stderr.
    Raises ImageError where `out` is not writable or holds a summary that is not to be overwritten.
    """
    summary = _summary_path(out, options.overwrite)
    registrar = load()
    rows, started = [], time.perf_counter()
    try:
        for number, (name, job) in enumerate(jobs.items(), start=1):
            begin = time.perf_counter()
            try:
                row = summary_row(name, register_job(job, options, lambda: registrar))
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
    return rows, summary


def _summary_path(out: Path, overwrite: bool) -> Path:
    summary = out / "summary.csv"
    if summary.exists() and not overwrite:
        raise ImageError(f"{summary}: exists; add --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{out}: cannot write there ({error.strerror})") from None
    return summary


def summary_row(name: str, metrics: Mapping) -> dict[str, str]:
    """One line of summary.csv; Dice is the mean over labels."""
    row = {"id": name, "status": "ok"}
    for when in ("before", "after"):
        row[f"correlation_{when}"] = f"{metrics['correlation'][when]:.4f}"
        if metrics.get("dice"):
            row[f"dice_{when}"] = f"{np.nanmean([d[when] for d in metrics['dice'].values()]):.4f}"
    row["nonpositive_jacobian_percent"] = f"{metrics['jacobian']['nonpositive_percent']:.4f}"
    row["largest_displacement_mm"] = f"{metrics['displacement_mm']['largest']:.3f}"
    return row
