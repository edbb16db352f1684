"""Many jobs: the table of what to do, what is done already, the table of what came out."""

import csv
import functools
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ldm_morph_jax import __version__
from ldm_morph_jax.files.errors import FileError, as_flags
from ldm_morph_jax.files.tables import read_rows
from ldm_morph_jax.files.writing import atomic, json_text
from ldm_morph_jax.registering.options import AUTO, JobOptions
from ldm_morph_jax.runs.trained import TrainedMethod

# Options that change neither numbers nor files, or that a row does not have.
_WITHOUT_EFFECT = ("out", "overwrite", "batch", "shard")


def read_jobs(options: JobOptions) -> dict[str, JobOptions]:
    """Jobs of the table `options.batch` by id; results go to `options.out`/id.

    Raises FileError on what `read_rows` refuses, on bad or repeated ids, and on cells that cannot
    be read.
    """
    table, jobs = options.batch, {}
    rows = read_rows(table, options.REQUIRED, ("id", *options.COLUMNS))
    for number, (line, row) in enumerate(rows, start=1):
        where, name = f"{table}, line {line}", row["id"] or f"{number:04d}"
        if name in jobs:
            raise FileError(f"{where}: repeats the id {name!r}")
        if name.endswith(".csv") or name.startswith(".") or "/" in name or "\\" in name:
            raise FileError(f"{where}: the id {name!r} is not usable as a folder name")
        if not all(row[column] for column in options.REQUIRED):
            raise FileError(f"{where}: lacks {' or '.join(options.REQUIRED)}")
        values = {}
        for column in (*options.REQUIRED, *options.COLUMNS):
            parse = options.COLUMNS.get(column) or functools.partial(_path, table.parent)
            try:
                values |= {column: parse(row[column])} if row[column] else {}
            except ValueError as error:
                raise FileError(f"{where}: {column}: {error}") from None
        try:
            jobs[name] = replace(options, **values, out=options.out / name, batch=None, shard=None)
        except ValueError as error:
            raise FileError(f"{where}: {error}") from None
    if not jobs:
        raise FileError(f"{table}: lists no {options.NOUN}")
    return jobs


def _path(folder: Path, text: str) -> Path:
    """A path of a table in that folder, unless it is a word."""
    return AUTO if text == str(AUTO) else folder / text


# ---------------------------------------------------------------------------- records


def arguments(job: JobOptions, method: TrainedMethod | None) -> dict:
    """All that a result depends on, for JSON: options, files, weights and version."""
    values = {k: v for k, v in asdict(job).items() if k not in (*_WITHOUT_EFFECT, *job.INPUTS)}
    values["files"] = {
        name: fingerprint(path) for name in job.INPUTS if (path := getattr(job, name))
    }
    values["weights_sha256"] = None if method is None else method.weights_sha256
    values["version"] = __version__
    return json.loads(json_text(values))


def fingerprint(path: Path) -> dict[str, str]:
    """A path, and a digest of names, sizes and times of all files that belong to it."""
    digest = hashlib.sha256()
    for file in _belonging(path):
        status = file.stat()
        line = f"{file.relative_to(path.parent)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return {"path": str(path), "digest": digest.hexdigest()}


def _belonging(path: Path) -> list[Path]:
    """The files of a folder; a file, and others beside it that its header names."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    suffix = path.suffix.lower()
    if suffix in (".hdr", ".img"):  # Analyze and NIfTI pairs
        return sorted(path.parent.glob(f"{path.stem}.*"))
    if suffix in (".mhd", ".nhdr") and path.is_file():  # the data have names of their own
        header = path.read_text(encoding="utf-8", errors="replace")
        siblings = [file for file in path.parent.iterdir() if file.is_file()]
        named = [file for file in siblings if "%" in header or file.name in header]
        return sorted({path, *named})
    return [path] if path.exists() else []


def finished(job: JobOptions, expected: Mapping) -> dict | None:
    """The record of a result that the same `arguments` have made, if there is one."""
    try:
        content = json.loads((job.out / job.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("arguments") == expected else None


# ---------------------------------------------------------------------------- the work


def parse_shard(text: str | None) -> tuple[int, int]:
    """ "2/8" -> (2, 8): the second of eight parts; None: all; ValueError for anything else."""
    part, _, parts = (text or "1/1").partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard {text!r}, expected i/n with i from 1 to n")
    return int(part), int(parts)


def run_batch(
    options: JobOptions,
    method: TrainedMethod | None,
    work: Callable[[JobOptions], dict],
    to_row: Callable[[Mapping], dict[str, str]],
    columns: Sequence[str],
) -> tuple[list[dict[str, str]], Path]:
    """Do every job of the table `options.batch`, or of a shard of it.

    A job that fails, in whatever way, is a row that says why, and the others go on. What the same
    files, options and weights have made before is kept. Shard i of n has the rows i, i + n, ... and
    a table of its own. The table is written after every row, so that a process that is killed
    leaves what it has done. Progress goes to stderr.

    Args:
        options: of the command.
        method: what registers.
        work: does a job and returns its record.
        to_row: the row of a record.
        columns: of the table: id, status, seconds, error and those of `to_row`.

    Returns:
        The rows of the table and the CSV file that holds them.
    """
    part, parts = parse_shard(options.shard)
    jobs = list(read_jobs(options).items())[part - 1 :: parts]
    table = options.out / ("summary.csv" if parts == 1 else f"summary-{part}-of-{parts}.csv")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{options.out}: cannot write there ({error.strerror})") from None
    rows, computed, spent = [], 0, 0.0
    _write_table(table, columns, rows)  # of a shard without rows, too
    for number, (name, job) in enumerate(jobs, start=1):
        begin, kept = time.perf_counter(), None
        try:
            if not job.overwrite:
                kept = finished(job, arguments(job, method))
            record = kept or work(job)
            row = {"id": name, "status": "ok", **to_row(record)}
            row["seconds"] = f"{record['seconds']['total']:.2f}"
        except Exception as error:  # whatever it is, the other rows go on
            if os.environ.get("LDM_MORPH_DEBUG"):
                traceback.print_exc()
            row = {"id": name, "status": "failed", "error": _reason(error)}
            row["seconds"] = f"{time.perf_counter() - begin:.2f}"
        rows.append(row)
        _write_table(table, columns, rows)
        if kept is None:
            computed, spent = computed + 1, spent + time.perf_counter() - begin
        outcome = f"failed: {row['error']}" if "error" in row else row.get("verdict", "done")
        left = spent / max(computed, 1) * (len(jobs) - number)
        eta = ", kept" if kept else f", {left:.0f} s left" if left else ""
        print(
            f"[{number}/{len(jobs)}] {name}: {outcome} ({row['seconds']} s{eta})",
            file=sys.stderr,
            flush=True,
        )
    return rows, table


def _reason(error: Exception) -> str:
    """One line; an unexpected error is preceded by its type."""
    text = as_flags(" ".join(str(error).split()))
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _write_table(path: Path, columns: Sequence[str], rows: list[dict]) -> None:
    encoding = {"encoding": "utf-8", "errors": "backslashreplace"}  # file names may be any bytes
    with atomic(path) as part, open(part, "w", newline="", **encoding) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
