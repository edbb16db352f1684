"""Cines from files to files: one, all slices of a stack, a table of many."""

import contextlib
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.images import ImageError, parse_slice, read_mask
from ldm_morph_jax.files.movies import Cine, read_cine
from ldm_morph_jax.files.tables import read_rows
from ldm_morph_jax.files.writing import atomic, json_text, staged
from ldm_morph_jax.ops.strain import fractional_change
from ldm_morph_jax.registering.cine import anatomy as anatomies
from ldm_morph_jax.registering.cine.anatomy import Anatomy
from ldm_morph_jax.registering.cine.measures import measure, summary
from ldm_morph_jax.registering.cine.outputs import (
    NAMES,
    SUMMARY,
    write_curves,
    write_frames,
    write_pages,
    write_summary,
    write_tables,
)
from ldm_morph_jax.registering.cine.tracked import cine_from_arrays, track_cine
from ldm_morph_jax.registering.registrar import Registrar

Load = Callable[[], Registrar | None]
FILES = ("mask", "contours", "landmarks")
SUMMARY_COLUMNS = (
    "id status seconds frames end_systole fractional_area_change ejection_fraction "
    "circumferential_strain longitudinal_strain radial_strain drift_px error"
).split()


@dataclass(frozen=True)
class Job:
    """One cine to track, and where to.

    cine: the file or folder.
    out: the folder of the results.
    mask, contours, landmarks: of the reference frame; a mask or contours, not both.
    slice: which slice of a stack, or "all".
    reference: the frame whose tissue is followed.
    """

    cine: Path
    out: Path
    mask: Path | None = None
    contours: Path | None = None
    landmarks: Path | None = None
    slice: int | str | None = None
    reference: int = 0


@dataclass(frozen=True)
class Options:
    """How cines are read, tracked and written: the options of `track`.

    model: what `load` is given; None: the search alone.
    spacing, oblique, frame_times, fps: see `files.movies.read_cine`.
    view: "sax" or "apical".
    period: see `tracked.track_cine`.
    labels: (cavity, wall) of masks; None: found out, see `anatomy.anatomy_of_mask`.
    septum: (row, column), see `anatomy.Anatomy`.
    report: whether to draw curves, animation and page.
    overwrite: replace earlier results.
    """

    model: str | None = None
    spacing: float | tuple[float, float] | None = None
    oblique: bool = False
    frame_times: tuple[float, ...] | None = None
    fps: float | None = None
    view: str = "sax"
    period: float | str | None = None
    labels: tuple[int, int] | None = None
    septum: tuple[float, float] | None = None
    report: bool = True
    overwrite: bool = False


def track_job(job: Job, options: Options, load: Load, *, keep: bool = False) -> dict:
    """Track one cine and write every result.

    Args:
        job: the cine.
        options: how.
        load: gives the method; called once the files have been read.
        keep: leave a result that the same files and options have made before as it is.

    Returns:
        The content of summary.json.

    Raises:
        ValueError, OSError: whatever keeps the cine from being tracked; nothing is left behind of
            the slice at hand.
    """
    if job.mask and job.contours:
        raise ValueError("a mask and contours given, expected one of them")
    if job.slice == "all":
        return _track_slices(job, options, load)
    arguments = _arguments(job, options)
    if keep and (finished := _finished(job.out, arguments)):
        return finished
    cine = _read(job, options)
    anatomy = _anatomy(job, options, cine)
    return _write(cine, anatomy, job, options, load, arguments)


def track_example(out: Path, options: Options, load: Load) -> dict:
    """Track the built-in phantom's beat, short-axis or apical."""
    look = {"sax": "sax", "apical": "echo"}[options.view]
    beat = phantom_cine(3, look=look)
    spacing = FIELD_OF_VIEW_MM / len(beat.frames[0])
    cine = cine_from_arrays(beat.frames, spacing=spacing, times=beat.times)
    name = f"phantom, {options.view}"
    cine = replace(cine, first=replace(cine.first, source=name))
    anatomy = anatomies.anatomy_of_mask(beat.masks[0], options.view, name)
    job = Job(Path(name), out)
    options = replace(options, period="whole")
    return _write(cine, anatomy, job, options, load, _arguments(job, options))


def _read(job, options, **changes) -> Cine:
    return read_cine(
        job.cine,
        changes.get("slice", job.slice),
        frame_times=options.frame_times,
        fps=options.fps,
        spacing=options.spacing,
        oblique=options.oblique,
    )


def _anatomy(job, options, cine) -> Anatomy:
    shape, view, septum = cine.first.array.shape, options.view, options.septum
    if septum and not all(0 <= s <= n - 1 for s, n in zip(septum, shape, strict=True)):
        raise ImageError(f"{job.cine}: septum {septum} lies outside its {shape} pixels")
    anatomy = Anatomy(view, septum=septum)
    if job.mask:
        labels = read_mask(job.mask, cine.first, job.slice).array
        anatomy = anatomies.anatomy_of_mask(
            labels, view, str(job.mask), cavity_and_wall=options.labels, septum=septum
        )
    elif job.contours:
        anatomy = anatomies.anatomy_of_contours(job.contours, shape, view, septum)
    if job.landmarks:
        landmarks = anatomies.read_landmarks(job.landmarks, shape)
        anatomy = replace(anatomy, landmarks=landmarks)
    return anatomy


def _write(cine, anatomy, job, options, load, arguments) -> dict:
    """Track, measure, write."""
    with staged(job.out, NAMES, options.overwrite, last=SUMMARY) as folder:
        registrar = load()
        begin = time.perf_counter()
        with _progress(f"{job.cine.name} {_slice_name(job.slice)}".strip(), cine) as progress:
            tracked = track_cine(
                cine,
                registrar,
                reference=job.reference,
                period=options.period,
                progress=progress,
            )
        done = time.perf_counter()
        measures = measure(tracked, anatomy)
        content = {
            "cine": {
                "file": str(job.cine),
                "slice": job.slice,
                "shape": list(cine.frames.shape),
                "spacing_mm": list(cine.first.spacing) if cine.first.spacing_known else None,
                "times": list(map(float, tracked.times)),
                "times_known": cine.times is not None,
            },
            "method": tracked.method,
            "model": options.model,
            "view": anatomy.view,
            "period": tracked.period,
            **summary(tracked, anatomy, measures),
            "notes": [*cine.first.notes, *measures.notes],
            "arguments": arguments,
        }
        write_frames(folder, tracked, anatomy)
        write_tables(folder, tracked, measures)
        written = time.perf_counter()
        if options.report:
            write_pages(folder, tracked, anatomy, measures, content)
        seconds = {
            "tracking": done - begin,
            "measures_and_files": written - done,
            "report": time.perf_counter() - written,
        }
        content["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        write_summary(folder, content)
    return content


@contextlib.contextmanager
def _progress(name: str, cine) -> Iterator[Callable[[float], None]]:
    """Tells on stderr how much of a cine is done and how long the rest will take."""
    with tqdm(total=len(cine.frames), desc=name, unit="frame", mininterval=1, delay=1) as bar:
        yield lambda share: bar.update(int(share * bar.total) - bar.n)


# ---------------------------------------------------------------------------- slices


def _track_slices(job, options, load) -> dict:
    """Every slice of a stack in a folder of its own; finished ones are kept.

    The volume is the sum of the cavity's areas times the distance of slices.
    """
    stack = _read(job, options)
    if stack.frames.ndim == 3:
        return track_job(replace(job, slice=None), options, load)
    if job.contours or job.landmarks:
        raise ValueError("contours and landmarks are of one slice, expected --slice K")
    count, depth = stack.frames.shape[1], stack.first.geometry.spacing[0]
    if not 0 <= job.reference < len(stack.frames):
        raise ImageError(f"{job.cine}: has no frame {job.reference}")
    if job.mask:  # of all slices at once: one slice may not show every structure
        labels = read_mask(job.mask, stack.first, "all").array
        options = replace(
            options, labels=anatomies.structures(labels, str(job.mask), options.labels)
        )
    known = stack.first.spacing_known
    del stack
    registrar = None

    def load_once():
        nonlocal registrar
        registrar = registrar or load()
        return registrar

    slices, volumes = [], []
    for k in range(count):
        one = replace(job, slice=k, out=job.out / _slice_name(k))
        arguments = _arguments(one, options)
        content = None if options.overwrite else _finished(one.out, arguments)
        if content is None:
            cine = _read(one, options)
            anatomy = _anatomy_of_slice(one, options, cine)
            content = _write(cine, anatomy, one, options, load_once, arguments)
        slices.append(content)
        curves = read_rows(one.out / "curves.csv", ("frame",), ("cavity_area_mm2",))
        volumes.append([float(row["cavity_area_mm2"] or 0) for _, row in curves])
    times = np.array(slices[0]["cine"]["times"])
    volume = 1e-3 * depth * np.sum(volumes, axis=0)
    content = {
        "cine": slices[0]["cine"] | {"slice": "all"},
        "method": slices[0]["method"],
        "reference": job.reference,
        "slices": [_slice_name(k) for k in range(count)],
        "end_systole": None,
    }
    if known and volume[job.reference] > 0:
        smallest = int(volume.argmin())
        content["end_systole"] = smallest
        values = float(volume[job.reference]), float(volume[smallest])
        content["volume_ml"] = dict(zip(("reference", "end_systole"), values, strict=True))
        content["ejection_fraction"] = float(fractional_change(*values))
        column = "time_s" if content["cine"]["times_known"] else "time_frames"
        with atomic(job.out / "curves.csv") as part:
            write_curves(part, times, {"volume_ml": volume}, column)
    with atomic(job.out / SUMMARY) as part:
        part.write_text(json_text(content), encoding="utf-8")
    return content


def _anatomy_of_slice(job, options, cine) -> Anatomy:
    """A slice beyond the ventricle has no cavity: it is tracked, and nothing measured."""
    if job.mask:
        labels = read_mask(job.mask, cine.first, job.slice).array
        if not (labels == options.labels[0]).any():
            return Anatomy(options.view, labels if labels.any() else None)
    return _anatomy(job, options, cine)


def _slice_name(k) -> str:
    return "" if k is None else f"slice-{k:02d}"


def _arguments(job, options) -> dict:
    """What a result depends on, as JSON has it."""
    files = {}
    for name in ("cine", *FILES):
        path = getattr(job, name)
        if path and path.exists():
            found = path.stat()
            files[name] = {"path": str(path), "bytes": found.st_size, "changed": found.st_mtime_ns}
    told = {k: v for k, v in asdict(options).items() if k not in ("overwrite",)}
    told |= {"files": files, "slice": job.slice, "reference": job.reference}
    return json.loads(json_text(told))


def _finished(out: Path, arguments: dict) -> dict | None:
    """The summary of a result that the same arguments have made, if there is one."""
    try:
        content = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("arguments") == arguments else None


# ---------------------------------------------------------------------------- tables


def read_jobs(path: Path, out: Path) -> dict[str, Job]:
    """Jobs of a CSV by id; paths are relative to it, results go to `out`/id.

    Raises FileError on missing columns, bad or repeated ids, numbers that are none.
    """
    jobs: dict[str, Job] = {}
    rows = read_rows(path, ("cine",), ("id", *FILES, "slice", "reference"))
    for number, (line, row) in enumerate(rows, start=1):
        where, name = f"{path}, line {line}", row["id"] or f"{number:04d}"
        if name in jobs:
            raise FileError(f"{where}: repeats the id {name!r}")
        if name.startswith(".") or "/" in name or "\\" in name:
            raise FileError(f"{where}: has the id {name!r}, not usable as a folder name")
        if not row["cine"]:
            raise FileError(f"{where}: lacks cine")
        try:
            chosen = parse_slice(row["slice"]) if row["slice"] else None
            reference = int(row["reference"] or 0)
        except ValueError as error:
            raise FileError(f"{where}: slice or reference: {error}") from None
        files = {k: path.parent / row[k] for k in FILES if row[k]}
        jobs[name] = Job(
            path.parent / row["cine"], out / name, slice=chosen, reference=reference, **files
        )
    if not jobs:
        raise FileError(f"{path}: lists no cine")
    return jobs


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8): the second of eight parts; ValueError for anything else."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard {text!r}, expected i/n with i from 1 to n")
    return int(part), int(parts)


def track_batch(
    jobs: Mapping[str, Job],
    options: Options,
    load: Load,
    out: Path,
    shard: tuple[int, int] = (1, 1),
) -> tuple[list[dict], Path]:
    """Track every job of a shard; one that fails is reported and the others go on.

    What the same files and options have made before is kept.

    Returns the rows of the table and the CSV file that holds them.
    """
    part, parts = shard
    table = out / ("summary.csv" if parts == 1 else f"summary-{part}-of-{parts}.csv")
    out.mkdir(parents=True, exist_ok=True)
    registrar, rows = load(), []
    mine = list(jobs.items())[part - 1 :: parts]
    try:
        for number, (name, job) in enumerate(mine, start=1):
            begin = time.perf_counter()
            try:
                content = track_job(job, options, lambda: registrar, keep=not options.overwrite)
                row = _row(name, content)
            except (ValueError, OSError) as error:
                row = {"id": name, "status": "failed", "error": " ".join(str(error).split())}
            row["seconds"] = f"{time.perf_counter() - begin:.2f}"
            rows.append(row)
            told = row.get("error") or f"{row['seconds']} s"
            print(f"[{number}/{len(mine)}] {name}: {told}", file=sys.stderr, flush=True)
    finally:  # an interrupted batch leaves the table of what it has done
        if rows:
            with atomic(table) as part_file, open(part_file, "w", newline="") as file:
                writer = csv.DictWriter(file, SUMMARY_COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(rows)
    return rows, table


def _row(name: str, content: Mapping) -> dict[str, str]:
    row = {"id": name, "status": "ok", "frames": str(content["cine"]["shape"][0])}
    if content["end_systole"] is not None:
        row["end_systole"] = str(content["end_systole"])
    for key in ("fractional_area_change", "ejection_fraction"):
        if key in content:
            row[key] = f"{content[key]:.4f}"
    strains = content.get("strain", {})
    for key in ("circumferential_strain", "longitudinal_strain", "radial_strain"):
        if key in strains:
            row[key] = f"{strains[key]['peak']:.4f}"
    if "drift_px" in content:
        row["drift_px"] = f"{content['drift_px']['registered_alone']:.3f}"
    return row


def summary_text(content: Mapping, out: Path) -> str:
    """What `track` prints at the end."""
    cine = content["cine"]
    lines = [f"{cine['file']}: {cine['shape'][0]} frames ({content['method']})"]
    if content["end_systole"] is not None:
        lines.append(
            f"frames        reference {content['reference']}, end-systole {content['end_systole']}"
        )
    for key, title in (
        ("fractional_area_change", "area change"),
        ("ejection_fraction", "ejection"),
    ):
        if key in content:
            lines.append(f"{title:<13} {100 * content[key]:.1f} %")
    for name, one in content.get("strain", {}).items():
        if name.endswith("_strain"):
            kind = name.removesuffix("_strain").replace("_", " ")
            lines.append(f"peak strain   {100 * one['peak']:.1f} % {kind}")
    lines += [f"note: {note}" for note in content.get("notes", ())]
    lines.append(
        f"wrote {out}/"
        + (f"; look at {out / 'report.html'}" if (out / "report.html").exists() else "")
    )
    return "\n".join(lines)
