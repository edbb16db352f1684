"""Two or three apical views of one heart merged: longitudinal strain of the 16 segments."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.ops.segments import REGIONS, VIEWS
from ldm_morph_jax.registering.heart import APICAL_SEGMENTS, end_of_systole, strain_column
from ldm_morph_jax.registering.options import ViewsOptions
from ldm_morph_jax.registering.outputs import (
    SUMMARY,
    draw_stack_pages,
    software,
    time_name,
    write_curves,
    write_record,
    write_segments,
)
from ldm_morph_jax.registering.segments import WALL, Segments

_FILES = ("curves.csv", "segments.csv", "bullseye.png", "report.html", SUMMARY)
_DIRECTION = "longitudinal"
_OTHER_BEAT = 0.15  # heart rates that differ more are noted


def merge_views(options: ViewsOptions) -> dict:
    """Write curves.csv, segments.csv, bullseye.png, report.html and summary.json; returns the last.

    Raises ImageError where a folder has no result of an apical view with a wall, where fewer than
    two views are given, and where there are results that must not be overwritten.
    """
    folders = {view: folder for view, folder in options.folders.items() if folder is not None}
    if len(folders) < 2:
        raise ImageError(
            f"views: found {len(folders)}, expected two or three, each of another view"
        )
    records = {view: _record(folder) for view, folder in folders.items()}
    segments, times = merged_segments(records)
    first = next(iter(records.values()))
    names = {view: os.path.relpath(folder, options.out) for view, folder in folders.items()}
    content = {
        "cine": first["cine"] | {"file": " and ".join(folders), "shape": [len(times)]},
        "software": software(first["software"]["weights_sha256"]),
        "method": first["method"],
        "view": "apical",
        "views": {view: str(folder) for view, folder in folders.items()},
        "end_systole": int(np.abs(times - segments.end_systole).argmin()),
        **({"valves_ms": first["valves_ms"]} if "valves_ms" in first else {}),
        "strain": segments.summary(),
        "timing": segments.timing(),
        "notes": [*_notes(records), *(f"{v}: {n}" for v, r in records.items() for n in r["notes"])],
    }
    rows = segments.rows()
    column = time_name(content["cine"]["times_known"])
    with staged(options.out, _FILES, options.overwrite, last=SUMMARY) as folder:
        write_curves(folder / "curves.csv", times, segments.table, column)
        write_segments(folder / "segments.csv", rows, column)
        draw_stack_pages(folder, content, rows, names)
        write_record(folder, SUMMARY, content)
    return content


def merged_segments(records: Mapping[str, Mapping]) -> tuple[Segments, np.ndarray]:
    """The 16 segments of views' summaries, and the times of their curves `[T]`.

    The beats of two views differ in length. Time runs from the reference frame, and is stretched
    from there to end-systole (where told, to the closure of the aortic valve) so that all views
    reach it together; after it, diastole is only shifted. The times are those of the first view
    which all views have.

    Args:
        records: "4ch", "2ch" or "3ch" -> summary of `track`.
    """
    first = next(iter(records))
    _, end_systole = _times(records[first])
    aligned = {view: _aligned(record, end_systole) for view, record in records.items()}
    start, end = max(t[0] for t in aligned.values()), min(t[-1] for t in aligned.values())
    times = aligned[first]
    times = times[(times >= start - 1e-6) & (times <= end + 1e-6)]

    seen: dict[int, list[np.ndarray]] = {}  # by the segment's number
    pixels: dict[int, int] = {}
    for view, record in records.items():
        for number, region in zip(VIEWS[view], APICAL_SEGMENTS, strict=True):
            curve = record["curves"].get(strain_column(_DIRECTION, region))
            if curve is not None:
                curve = np.interp(times, aligned[view], np.array(curve, np.float64))
                seen.setdefault(number, []).append(curve)
                pixels[number] = pixels.get(number, 0) + record["segment_pixels"][region]
    names = {number: REGIONS[number - 1] for number in sorted(seen)}
    curves = {(_DIRECTION, name): np.mean(seen[k], axis=0) for k, name in names.items()}
    wall = {(_DIRECTION, WALL): np.mean(list(curves.values()), axis=0)}
    sizes = {WALL: sum(pixels.values())} | {name: pixels[k] for k, name in names.items()}
    nearest = times[np.abs(times - end_systole).argmin()]
    ends = nearest if abs(nearest - end_systole) < 1e-6 else end_systole
    return Segments(wall | curves, sizes, times, ends), times


def _record(folder: Path) -> dict:
    path = folder / SUMMARY
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ImageError(f"{path}: no result of track, which writes it") from None
    if record.get("view") != "apical":
        raise ImageError(f"{path}: the view is {record.get('view')!r}, expected 'apical'")
    if not any(strain_column(_DIRECTION, region) in record["curves"] for region in APICAL_SEGMENTS):
        raise ImageError(f"{path}: no longitudinal strain of segments; it needs a mask with a wall")
    return record


def _times(record) -> tuple[np.ndarray, float]:
    """(Times of a view's frames, that of its end-systole), from the reference frame."""
    times = np.array(record["cine"]["times"], np.float64)
    times -= times[record["reference"]]
    return times, end_of_systole(times, record["end_systole"], record.get("valves_ms", {}))


def _aligned(record, end_systole: float) -> np.ndarray:
    """Times of a view's frames, its end-systole moved to `end_systole`."""
    times, own = _times(record)
    if not (own > 0 and end_systole > 0):  # the reference is not before end-systole: leave it
        return times
    return np.where(times <= own, times * end_systole / own, times - own + end_systole)


def _notes(records) -> list[str]:
    notes = []
    rates = {v: r["heart_rate_per_min"] for v, r in records.items() if r.get("heart_rate_per_min")}
    if rates and max(rates.values()) > (1 + _OTHER_BEAT) * min(rates.values()):
        told = ", ".join(f"{view} {rate:.0f}" for view, rate in rates.items())
        notes.append(f"heart rates differ ({told} per minute): the views show different beats")
    doubted = [
        v for v, r in records.items() if (r.get("verdict") or {}).get("level") != "plausible"
    ]
    if doubted:
        notes.append(f"{' and '.join(doubted)}: not plausible by itself; see its page")
    if missing := set(VIEWS) - set(records):
        notes.append(f"without {' and '.join(sorted(missing))}: not every segment is seen")
    return notes
