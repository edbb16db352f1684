"""Many pairs: the table of what to register, and the table of what came out."""

import csv
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import ImageError, atomic, parse_slice
from ldm_morph_jax.files.tables import read_rows
from ldm_morph_jax.registering.jobs import Job, Options, frames_of, register_job
from ldm_morph_jax.registering.registrar import Registrar

MASKS = ("moving_mask", "fixed_mask")
_SUMMARY = "summary.csv"
SUMMARY_COLUMNS = (
    "id status verdict seconds correlation_before correlation_after dice_before dice_after "
    "nonpositive_jacobian_percent largest_displacement_mm error"
).split()


def read_jobs(path: Path, out: Path) -> dict[str, Job]:
    """Jobs of a CSV by id; paths are relative to it, results go to `out`/id.

    Columns are moving, fixed and, optionally, id, moving_mask, fixed_mask, slice, frame; others are
    left alone. Raises FileError on what `read_rows` refuses, and on bad or repeated ids.
    """
    rows = read_rows(path, ("moving", "fixed"), ("id", *MASKS, "slice", "frame"))
    if not rows:
        raise ImageError(f"{path}: lists no pairs")
    jobs: dict[str, Job] = {}
    for number, (line, row) in enumerate(rows, start=1):
        name, where = row["id"] or f"{number:04d}", f"{path}, line {line}"
        if name in jobs:
            raise ImageError(f"{where}: repeats the id {name!r}")
        if name == _SUMMARY or name.startswith(".") or "/" in name or "\\" in name:
            raise ImageError(f"{where}: the id {name!r} is not usable as a folder name")
        if not row["moving"] or not row["fixed"]:
            raise ImageError(f"{where}: lacks moving or fixed")
        try:
            chosen = parse_slice(row["slice"]) if row["slice"] else None
            frames = frames_of([int(k) for k in row["frame"].split()])
        except ValueError as error:
            raise ImageError(f"{where}: slice or frame: {error}") from None
        jobs[name] = Job(
            path.parent / row["moving"],
            path.parent / row["fixed"],
            out / name,
            **{k: path.parent / row[k] for k in MASKS if row[k]},
            slice=chosen,
            frames=frames,
        )
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
                told = (
                    f"correlation {row['correlation_before']} -> {row['correlation_after']}, "
                    f"{row['verdict']}"
                )
            except Exception as error:  # whatever it is, the other pairs are not to suffer
                if os.environ.get("LDM_MORPH_DEBUG"):
                    traceback.print_exc()
                row = {"id": name, "status": "failed", "error": _reason(error)}
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
            _write_summary(summary, rows)
    return rows, summary


def _reason(error: Exception) -> str:
    """One line; that of an error that nobody foresaw begins with what it is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _write_summary(path: Path, rows: list[dict]) -> None:
    encoding = {"encoding": "utf-8", "errors": "backslashreplace"}  # file names may be any bytes
    with atomic(path) as part, open(part, "w", newline="", **encoding) as file:
        writer = csv.DictWriter(file, SUMMARY_COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _summary_path(out: Path, overwrite: bool) -> Path:
    summary = out / _SUMMARY
    if summary.exists() and not overwrite:
        raise ImageError(f"{summary}: exists; add --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{out}: cannot write there ({error.strerror})") from None
    return summary


def summary_row(name: str, metrics: Mapping) -> dict[str, str]:
    """One line of summary.csv; Dice is the mean over labels."""
    row = {"id": name, "status": "ok", "verdict": metrics["verdict"]["level"]}
    for when in ("before", "after"):
        row[f"correlation_{when}"] = f"{metrics['correlation'][when]:.4f}"
        if metrics.get("dice"):
            row[f"dice_{when}"] = f"{np.nanmean([d[when] for d in metrics['dice'].values()]):.4f}"
    row["nonpositive_jacobian_percent"] = f"{metrics['jacobian']['nonpositive_percent']:.4f}"
    row["largest_displacement_mm"] = f"{metrics['displacement_mm']['largest']:.3f}"
    return row
