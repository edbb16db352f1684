"""Track a cine, all slices of a stack, or a table of many, and write every result."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.images import ImageError, in_region
from ldm_morph_jax.files.movies import (
    Cine,
    cine_from_arrays,
    note_on_period,
    read_cine,
    read_frame_mask,
)
from ldm_morph_jax.files.tables import read_rows
from ldm_morph_jax.files.writing import atomic, staged
from ldm_morph_jax.ops.strain import fractional_change
from ldm_morph_jax.registering import anatomy as anatomies
from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.batch import arguments, finished, run_batch
from ldm_morph_jax.registering.heart import measure, summary
from ldm_morph_jax.registering.method import Registrar
from ldm_morph_jax.registering.options import CineOptions
from ldm_morph_jax.registering.outputs import (
    ALL_OF_CINE,
    SUMMARY,
    draw_cine_pages,
    write_curves,
    write_frames,
    write_record,
    write_tables,
)
from ldm_morph_jax.registering.tracking import track_cine

Load = Callable[[], Registrar | None]
COLUMNS = (
    "id status seconds frames end_systole fractional_area_change ejection_fraction "
    "circumferential_strain longitudinal_strain radial_strain drift_px error"
).split()


def track_files(options: CineOptions, load: Load) -> dict:
    """Track one cine and write every result.

    Args:
        options: the cine, and how.
        load: gives the method, or None for the search alone; called once the files have been read.

    Returns:
        The content of summary.json.

    Raises:
        ValueError, OSError: whatever keeps the cine from being tracked; nothing is left behind of
            the slice at hand.
    """
    if options.example:
        return _write(*_example(options), load)
    if options.slice == "all":
        return _track_slices(options, load)
    cine = _read(options)
    return _write(cine, _anatomy(options, cine), options, load)


def _with_scale_of(cine: Cine, anatomy: Anatomy) -> Cine:
    """With the spacing of the ultrasound region in which the heart lies, if there are several."""
    if anatomy.labels is None:
        return cine
    return replace(cine, first=in_region(cine.first, anatomy.labels != 0))


def track_table(options: CineOptions, registrar: Registrar | None) -> tuple[list[dict], Path]:
    """Track every cine of a table, see `batch.run_batch`."""

    def work(job):
        return track_files(job, lambda: registrar)

    return run_batch(options, registrar, work, row_of, COLUMNS)


def _example(options) -> tuple[Cine, Anatomy, CineOptions]:
    """The built-in phantom's beat, short-axis or apical."""
    beat = phantom_cine(3, look={"sax": "sax", "apical": "echo"}[options.view])
    spacing = FIELD_OF_VIEW_MM / len(beat.frames[0])
    cine = cine_from_arrays(beat.frames, spacing=spacing, times=beat.times)
    name = f"phantom, {options.view}"
    cine = replace(cine, first=replace(cine.first, source=name))
    anatomy = anatomies.anatomy_of_mask(beat.masks[0], options.view, name)
    return cine, anatomy, replace(options, example=False, cine=Path(name), period="whole")


def _read(options) -> Cine:
    return read_cine(
        options.cine,
        options.slice,
        frame_times=_frame_times(options.frame_times),
        fps=options.fps,
        **options.reading,
    )


def _frame_times(path: Path | None) -> tuple[float, ...] | None:
    if path is None:
        return None
    try:
        return tuple(float(row["time"]) for _, row in read_rows(path, ("time",)))
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{path}: {error}, expected seconds in the column time") from None


def _anatomy(options, cine) -> Anatomy:
    shape, view, septum = cine.first.array.shape, options.view, options.septum
    if septum and not all(0 <= s <= n - 1 for s, n in zip(septum, shape, strict=True)):
        raise ImageError(f"{options.cine}: septum {septum} lies outside its {shape} pixels")
    anatomy = Anatomy(view, septum=septum)
    if options.mask:
        labels = read_frame_mask(options.mask, cine, options.reference, options.slice).array
        anatomy = anatomies.anatomy_of_mask(
            labels, view, str(options.mask), cavity_and_wall=options.labels, septum=septum
        )
    elif options.contours:
        anatomy = anatomies.anatomy_of_contours(options.contours, shape, view, septum)
    if options.landmarks:
        landmarks = anatomies.read_landmarks(options.landmarks, shape)
        anatomy = replace(anatomy, landmarks=landmarks)
    return anatomy


def _write(cine, anatomy, options, load) -> dict:
    """Track, measure, write."""
    cine = _with_scale_of(cine, anatomy)
    with staged(options.out, ALL_OF_CINE, options.overwrite, last=SUMMARY) as folder:
        registrar = load()
        begin = time.perf_counter()
        with _progress(f"{options.cine.name} {_slice_name(options.slice)}".strip(), cine) as tell:
            tracked = track_cine(
                cine,
                registrar,
                reference=options.reference,
                period=options.period,
                progress=tell,
            )
        done = time.perf_counter()
        measures = measure(tracked, anatomy)
        content = {
            "cine": {
                "file": str(options.cine),
                "slice": options.slice,
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
            "notes": [*cine.first.notes, *_notes_on_period(options, cine), *measures.notes],
            "arguments": arguments(options, registrar),
            "curves": {name: values.tolist() for name, values in measures.table.items()},
        }
        write_frames(folder, tracked, anatomy)
        write_tables(folder, tracked, measures)
        written = time.perf_counter()
        if options.report:
            draw_cine_pages(folder, tracked, anatomy, measures, content)
        seconds = {
            "tracking": done - begin,
            "measures_and_files": written - done,
            "report": time.perf_counter() - written,
        }
        seconds["total"] = sum(seconds.values())
        content["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        write_record(folder, SUMMARY, content)
    return content


def _notes_on_period(options, cine) -> tuple[str, ...]:
    given = options.period
    return () if cine.times is None or given in (None, "whole") else note_on_period(float(given))


@contextlib.contextmanager
def _progress(name: str, cine) -> Iterator[Callable[[float], None]]:
    """Tells on stderr how much of a cine is done and how long the rest will take."""
    with tqdm(total=len(cine.frames), desc=name, unit="frame", mininterval=1, delay=1) as bar:
        yield lambda share: bar.update(int(share * bar.total) - bar.n)


# ---------------------------------------------------------------------------- slices


def _track_slices(options, load) -> dict:
    """Every slice of a stack in a folder of its own; finished ones are kept.

    The volume is the sum of the cavity's areas times the distance of slices.
    """
    stack = _read(options)
    if stack.frames.ndim == 3:
        return track_files(replace(options, slice=None), load)
    if options.contours or options.landmarks:
        raise ValueError("contours and landmarks are of one slice, expected --slice K")
    shown = [k for k in range(stack.frames.shape[1]) if k not in stack.blank_slices]
    depth, blank = stack.first.geometry.spacing[0], stack.blank_slices
    if not 0 <= options.reference < len(stack.frames):
        raise ImageError(f"{options.cine}: has no frame {options.reference}")
    of_slices = options
    if options.mask:  # of all slices at once: one slice may not show every structure
        labels = read_frame_mask(options.mask, stack, options.reference, "all").array
        known_labels = anatomies.structures(labels, str(options.mask), options.labels)
        of_slices = replace(options, labels=known_labels)
    spacing_known = stack.first.spacing_known
    del stack
    registrar = load()
    slices = []
    for k in shown:
        job = replace(of_slices, slice=k, out=options.out / _slice_name(k))
        content = None if options.overwrite else finished(job, arguments(job, registrar))
        if content is None:
            cine = _read(job)
            content = _write(cine, _anatomy_of_slice(job, cine), job, lambda: registrar)
        slices.append(content)
    content = {
        "cine": slices[0]["cine"] | {"slice": "all"},
        "method": slices[0]["method"],
        "reference": options.reference,
        "slices": [_slice_name(k) for k in shown],
        "notes": [f"slice {k} is blank in every frame: left out" for k in blank],
        "end_systole": None,
        "arguments": arguments(options, registrar),
        "seconds": {"total": round(sum(s["seconds"]["total"] for s in slices), 3)},
    }
    areas = [np.array(s["curves"].get("cavity_area_mm2", 0.0)) for s in slices]
    volume = 1e-3 * depth * (np.zeros(len(content["cine"]["times"])) + sum(areas))
    if spacing_known and volume[options.reference] > 0:
        smallest = int(volume.argmin())
        content["end_systole"] = smallest
        values = float(volume[options.reference]), float(volume[smallest])
        content["volume_ml"] = dict(zip(("reference", "end_systole"), values, strict=True))
        content["ejection_fraction"] = float(fractional_change(*values))
        column = "time_s" if content["cine"]["times_known"] else "time_frames"
        with atomic(options.out / "curves.csv") as part:
            write_curves(part, content["cine"]["times"], {"volume_ml": volume}, column)
    with atomic(options.out / SUMMARY) as part:
        write_record(part.parent, SUMMARY, content)
    return content


def _anatomy_of_slice(options, cine) -> Anatomy:
    """A slice beyond the ventricle has no cavity: it is tracked, and nothing measured."""
    if options.mask:
        labels = read_frame_mask(options.mask, cine, options.reference, options.slice).array
        if not (labels == options.labels[0]).any():
            return Anatomy(options.view, labels if labels.any() else None)
    return _anatomy(options, cine)


def _slice_name(k) -> str:
    return "" if k is None else f"slice-{k:02d}"


# ---------------------------------------------------------------------------- what is told


def row_of(content: Mapping) -> dict[str, str]:
    """The row of a cine in summary.csv."""
    row = {"frames": str(content["cine"]["shape"][0])}
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
    for strain in content.get("strain", {}).values():
        if strain["region"] in ("wall", "endocardium"):
            kind = "endocardial " * (strain["region"] == "endocardium") + strain["direction"]
            lines.append(f"peak strain   {100 * strain['peak']:.1f} % {kind}")
    lines += [f"note: {note}" for note in content.get("notes", ())]
    lines.append(
        f"wrote {out}/"
        + (f"; look at {out / 'report.html'}" if (out / "report.html").exists() else "")
    )
    return "\n".join(lines)
