"""Track a cine, all slices of a stack, volumes, or a table of many, and write every result."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import VOLUME
from ldm_morph_jax.files.movies import Cine, cine_from_arrays, read_cine, read_frame_mask
from ldm_morph_jax.files.tables import numbers, read_rows
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.ops.beat import valves_told
from ldm_morph_jax.ops.segments import LETTERS, levels_of
from ldm_morph_jax.ops.strain import fractional_change
from ldm_morph_jax.registering import anatomy as anatomies
from ldm_morph_jax.registering import dicom_results
from ldm_morph_jax.registering.batch import arguments, finished, run_batch
from ldm_morph_jax.registering.finding import (
    Known,
    Seen,
    cavity_and_wall,
    find_heart,
    known_or_found,
    look,
)
from ldm_morph_jax.registering.heart import end_of_systole, twist_numbers
from ldm_morph_jax.registering.heart_result import track_heart
from ldm_morph_jax.registering.method import Registrar
from ldm_morph_jax.registering.options import CineOptions
from ldm_morph_jax.registering.outputs import (
    ALL_OF_CINE,
    ALL_OF_STACK,
    SUMMARY,
    draw_cine_pages,
    draw_stack_pages,
    software,
    time_name,
    write_curves,
    write_record,
    write_segments,
)
from ldm_morph_jax.registering.segments import merged, twist_of
from ldm_morph_jax.registering.verdict import judge_stack
from ldm_morph_jax.runs.anatomy import AnatomyModel, anatomy_network

Load = Callable[[], Registrar | None]
DOUBTFUL_TWIST = (
    "twist: the base moves through its slices, which then show other tissue; on the 3-D phantom "
    "twist was wrong by several degrees. `slice` volume follows tissue through the slices"
)
COLUMNS = (
    "id status verdict seconds frames end_systole fractional_area_change ejection_fraction "
    "circumferential_strain longitudinal_strain radial_strain drift_px error"
).split()


def track_files(options: CineOptions, load: Load) -> dict:
    """Track one cine and write every result.

    Args:
        options: the cine, and how.
        load: gives the method, or None for the default; called once the files have been read.

    Returns:
        The content of summary.json.

    Raises:
        ValueError, OSError: whatever keeps the cine from being tracked; nothing is left behind of
            the slice at hand.
    """
    if options.example:
        return _write(*_example(options), load)
    if options.slice == "all" or isinstance(options.slice, tuple):
        return _track_slices(options, load)
    cine = _read(options)
    if cine.frames.ndim == 4:
        replace(options, slice=VOLUME)  # refuses what is for slices
    return _write(options, _known_or_found(options, cine), load)


def track_table(options: CineOptions, registrar: Registrar | None) -> tuple[list[dict], Path]:
    """Track every cine of a table, see `batch.run_batch`."""

    def work(job):
        return track_files(job, lambda: registrar)

    return run_batch(options, registrar, work, row_of, COLUMNS)


def _example(options) -> tuple[CineOptions, Known]:
    """The built-in phantom's beat, short-axis or apical."""
    view = options.view or "sax"
    beat = phantom_cine(3, look={"sax": "sax", "apical": "echo"}[view])
    spacing = FIELD_OF_VIEW_MM / len(beat.frames[0])
    cine = cine_from_arrays(beat.frames, spacing=spacing, times=beat.times)
    name = f"phantom, {view}"
    cine = replace(cine, first=replace(cine.first, source=name))
    anatomy = anatomies.anatomy_of_mask(beat.masks[0], view, name)
    options = replace(options, example=False, cine=Path(name), period="whole")
    return options, Known(cine, options.reference, anatomy)


def _read(options) -> Cine:
    cine = read_cine(
        options.cine,
        options.slice,
        frame_times=_frame_times(options.frame_times),
        fps=options.fps,
        **options.reading,
    )
    cine.check_frame(options.reference or 0)  # before a network looks
    return cine


def _frame_times(path: Path | None) -> tuple[float, ...] | None:
    if path is None:
        return None
    rows = read_rows(path, ("time",))
    return tuple(numbers(row, ("time",), f"{path}, line {line} (seconds)")[0] for line, row in rows)


def _known_or_found(options, cine, seen: Seen | None = None) -> Known:
    """The heart that the options tell of, or that the network finds."""
    names = "reference view mask contours landmarks labels septum levels slice".split()
    told, model = {name: getattr(options, name) for name in names}, _network(options)
    if model is not None and seen is None:
        seen = _look(options, cine, model)
    return known_or_found(cine, model, seen=seen, **told)


def _network(options) -> AnatomyModel | None:
    return None if options.anatomy is None else anatomy_network(options.anatomy)


def _look(options, cine, model) -> Seen:
    """What the network sees in a cine; of volumes with a progress bar of their slices."""
    spacing = cine.first.spacing if cine.first.spacing_known else None
    progress = partial(tqdm, desc=f"{options.cine.name} heart", unit="slice", delay=1)
    return look(model, cine.frames, spacing, progress=progress)


def _write(options, known: Known, load) -> dict:
    """Track, measure, write."""
    cine, source = known.cine, None
    if options.dicom:
        source = dicom_results.source_of(options.cine, cine.first, len(cine.frames))
    shown = VOLUME if cine.frames.ndim == 4 else options.slice
    with staged(options.out, ALL_OF_CINE, options.overwrite, last=SUMMARY) as folder:
        registrar = load()
        begin = time.perf_counter()
        with _progress(f"{options.cine.name} {_slice_name(shown)}".strip(), cine) as tell:
            tracked = track_heart(
                known,
                registrar,
                period=options.period,
                progress=tell,
                model=options.model,
                slice=shown,
                valves=options.valves,
            )
        done = time.perf_counter()
        content = tracked.summary | {
            "software": software(tracked.weights_sha256),
            "arguments": arguments(options, registrar),
        }
        tracked.write(folder)
        written = time.perf_counter()
        figures = draw_cine_pages(folder, tracked, content) if options.report else []
        if source is not None:
            dicom_results.write_cine(folder / "dicom", source, tracked, content, figures)
        seconds = {
            "tracking": done - begin,
            "measures_and_files": written - done,
            "report": time.perf_counter() - written,
        }
        seconds["total"] = sum(seconds.values())
        content["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        write_record(folder, SUMMARY, content)
    return content


@contextlib.contextmanager
def _progress(name: str, cine) -> Iterator[Callable[[float], None]]:
    """A progress bar of the frames of a cine, on stderr."""
    with tqdm(total=len(cine.frames), desc=name, unit="frame", mininterval=1, delay=1) as bar:
        yield lambda share: bar.update(int(share * bar.total) - bar.n)


# ---------------------------------------------------------------------------- slices


def _track_slices(options, load) -> dict:
    """All or several slices of a stack, each in a folder of its own; finished ones are kept.

    The volume is the sum of the cavity's areas times the thickness that each slice stands for;
    segments are those of the levels, see `ops.segments`.
    """
    asked = options
    stack = _read(replace(options, slice="all"))
    if stack.frames.ndim == 3:
        return track_files(replace(options, slice=None), load)
    if options.contours or options.landmarks:
        raise ValueError("contours and landmarks are of one slice, expected a `slice` K")
    model, labels, named, source = _network(options), None, None, None
    seen = findings = None
    if model is not None:
        seen = _look(options, stack, model)
        findings = find_heart(model, seen, str(options.cine), reference=options.reference)
        labels, named = findings.labels, cavity_and_wall(model)
        options = replace(options, reference=findings.reference)
    elif options.mask:
        labels = read_frame_mask(options.mask, stack, options.reference, "all").array
        named = anatomies.structures(labels, str(options.mask), options.labels)
        options = replace(options, labels=named)
    view, view_by, of_view = _view_of_stack(options, model, labels, named)
    options = replace(options, view=view)
    jobs, levels, left_out = _jobs_of_slices(options, stack, labels, named)
    if options.dicom:
        source = dicom_results.source_of(options.cine, stack.first, len(stack.frames))
    spacing_known, distance = stack.first.spacing_known, stack.first.geometry.spacing[0]
    pixel = float(np.prod(stack.first.spacing)) if spacing_known else None
    del stack
    registrar = load()
    slices = []
    for job in jobs:
        record = None if options.overwrite else finished(job, arguments(job, registrar))
        if record is None:
            of_slice = seen and seen.of_slice(job.slice, options.reference, labels)
            record = _write(job, _known_or_found(job, _read(job), of_slice), lambda: registrar)
        slices.append(record)
    content = {
        "cine": slices[0]["cine"] | {"slice": options.slice},
        "software": software(None if registrar is None else registrar.weights_sha256),
        "method": slices[0]["method"],
        "model": options.model,
        "view": view,
        "view_by": view_by,
        "reference": options.reference,
        "slices": [job.out.name for job in jobs],
        "levels": levels.tolist(),
        "end_systole": None,
        "found": findings and findings.summary(pixel),
        **{k: slices[0][k] for k in ("heart_rate_per_min", "valves_ms") if k in slices[0]},
        "notes": [*(findings.notes if findings else ()), *left_out, *of_view],
        "arguments": arguments(asked, registrar),
        "seconds": {"total": round(sum(s["seconds"]["total"] for s in slices), 3)},
        "verdict": None,
    }
    curves, rows = {}, []
    if spacing_known:
        chosen = [job.slice for job in jobs]
        numbers, curves, rows = _of_ventricle(
            content, slices, chosen, distance, options.valves or {}
        )
        content |= numbers
    content["notes"] += [DOUBTFUL_TWIST] * ("twist" in content)
    times = np.array(content["cine"]["times"])
    column = time_name(content["cine"]["times_known"])
    with staged(options.out, (), True, all_names=ALL_OF_STACK, last=SUMMARY) as folder:
        if curves:
            write_curves(folder / "curves.csv", times, curves, column)
        if rows:
            write_segments(folder / "segments.csv", rows, column)
        parts = {name: name for name in content["slices"]}
        figures = draw_stack_pages(folder, content, rows, parts) if options.report else []
        if source is not None:
            (folder / "dicom").mkdir()
            dicom_results.write_findings(folder / "dicom", source, content, rows, figures)
        write_record(folder, SUMMARY, content)
    return content


def _of_ventricle(
    content: Mapping,
    slices: Sequence[Mapping],
    chosen: Sequence[int],
    distance: float,
    valves: Mapping[str, float],
) -> tuple[dict, dict[str, np.ndarray], list[dict]]:
    """Measure a ventricle by the slices `chosen` of a file whose slices are `distance` mm apart.

    Returns numbers of summary.json, columns of curves.csv and rows of segments.csv. `content` has
    the reference, and the levels and names of the slices. Without a cavity nothing is measured.
    """
    reference, names = content["reference"], content["slices"]
    times = np.array(content["cine"]["times"])

    places = distance * np.array(chosen)
    # half the way to both neighbours; the first and the last reach as far outwards as inwards
    thickness = np.gradient(places) if len(places) > 1 else [distance]

    def total(column):
        areas = (np.array(s["curves"].get(column, 0.0)) for s in slices)
        return sum(map(np.multiply, thickness, areas), np.zeros(len(times)))

    volume, wall = 1e-3 * total("cavity_area_mm2"), total("wall_area_mm2")
    if not volume[reference] > 0:
        return {}, {}, []
    smallest = int(volume.argmin())
    ends = {"reference": float(volume[reference]), "end_systole": float(volume[smallest])}
    change = float(wall[smallest] / wall[reference] - 1) if wall[reference] > 0 else None
    verdicts = {name: s["verdict"] for name, s in zip(names, slices, strict=True)}
    times -= times[reference]
    segments = merged(slices, times, end_of_systole(times, smallest, valves))
    numbers = {
        "verdict": judge_stack(verdicts, change),
        "end_systole": smallest,
        "volume_ml": ends,
        "ejection_fraction": float(fractional_change(*ends.values())),
        "strain": segments.summary(),
        "timing": segments.timing(),
    }
    curves = {"volume_ml": volume} | segments.table
    if twisted := twist_of(slices, content["levels"], places):
        twist, torsion = twisted["twist_deg"], twisted["torsion_deg_per_mm"]
        numbers["twist"] = {"slices": [chosen[k] for k in twisted["slices"]]} | twist_numbers(
            twist, torsion, "deg_per_mm", smallest
        )
        curves |= {"twist_deg": twist, "torsion_deg_per_mm": torsion}
    return numbers, curves, segments.rows() if segments.pixels else []


def _view_of_stack(options, model, labels, named) -> tuple[str, str, tuple[str, ...]]:
    """As `anatomy.seen_view`, of a mask of all slices: a single one near the valves may be open."""
    if model is not None and options.view is None:
        return model.view, "network", ()
    if labels is None:
        return options.view or "sax", "user" if options.view else "default", ()
    return anatomies.seen_view(options.view, anatomies.closure(labels, *named))


def _jobs_of_slices(
    options, stack, labels, named
) -> tuple[list[CineOptions], np.ndarray, list[str]]:
    """A job for every slice that was asked for, the level of each, and notes on those left out.

    Of a mask of all slices: one slice alone may not show every structure, nor its level, nor where
    the septum is.
    """
    count = stack.frames.shape[1]
    chosen = range(count) if options.slice == "all" else options.slice
    if max(chosen) >= count:
        raise ImageError(
            f"{options.cine}: has no slice {max(chosen)}; its slices are 0 to {count - 1}"
        )
    if options.levels and len(options.levels) != count:
        raise ValueError(
            f"`levels` has {len(options.levels)} letters, expected one for each of {count} slices"
        )
    levels = np.array([LETTERS[letter] for letter in options.levels or "-" * count])
    septum, with_septum = options.septum, np.ones(count, bool)
    left_out = {}
    if labels is not None:
        cavity, wall = named
        without = np.flatnonzero(~(labels == cavity).any(axis=(1, 2))).tolist()
        where = "in the mask" if options.mask else f"that {options.anatomy} finds"
        left_out = dict.fromkeys(without, f"has no cavity {where}")
        if options.view == "sax":
            if not options.levels:
                levels = levels_of(labels, cavity, wall)
            others = [k for k in np.unique(labels) if k not in (0, cavity, wall)]
            if septum is None and len(others) == 1:  # where a slice does not show it
                septum = tuple(np.argwhere(labels == others[0]).mean(axis=0)[1:].tolist())
                with_septum = ~(labels == others[0]).any(axis=(1, 2))
    left_out |= dict.fromkeys(stack.blank_slices, "is blank in every frame")
    shown = [k for k in chosen if k not in left_out]
    if not shown:
        raise ImageError(f"{options.cine}: every slice asked for is blank or without cavity")
    letters = {level: letter for letter, level in LETTERS.items()}
    jobs = [
        replace(
            options,
            slice=k,
            out=options.out / _slice_name(k),
            septum=septum if with_septum[k] else None,
            levels=letters[int(levels[k])] if options.view == "sax" else None,
        )
        for k in shown
    ]
    notes = [f"slice {k} {left_out[k]}: left out" for k in sorted(left_out) if k in chosen]
    return jobs, levels[shown], notes


def _slice_name(k) -> str:
    return f"slice-{k:02d}" if isinstance(k, int) else k or ""


# ---------------------------------------------------------------------------- what is told


def row_of(content: Mapping) -> dict[str, str]:
    """The row of a cine in summary.csv."""
    row = {"frames": str(content["cine"]["shape"][0])}
    if content["verdict"] is not None:
        row["verdict"] = content["verdict"]["level"]
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
    if "valves_ms" in content:
        lines.append(f"valves        {valves_told(content['valves_ms'])}")
    for key, title in (
        ("fractional_area_change", "area change"),
        ("ejection_fraction", "ejection"),
    ):
        if key in content:
            lines.append(f"{title:<13} {_percent(content[key], content.get(f'{key}_interval'))}")
    if "twist" in content:
        lines.append(f"peak twist    {content['twist']['peak_deg']:.1f} degrees")
    for strain in content.get("strain", {}).values():
        if strain["region"] in ("wall", "endocardium"):
            kind = "endocardial " * (strain["region"] == "endocardium") + strain["direction"]
            peak = _percent(strain["peak"], strain.get("peak_interval"))
            lines.append(f"peak strain   {peak}, {kind}")
    if content.get("intervals"):
        lines.append(f"in brackets   {content['intervals']['sentence']}")
    lines += [f"note: {note}" for note in content.get("notes", ())]
    if content["verdict"] is not None:
        lines.append(content["verdict"]["sentence"])
    lines.append(
        f"wrote {out}/"
        + (f"; look at {out / 'report.html'}" if (out / "report.html").exists() else "")
    )
    return "\n".join(lines)


def _percent(value: float, interval: Sequence[float] | None) -> str:
    """Such as "40.0 % (26.3 to 56.1)"."""
    ends = "" if interval is None else f" ({' to '.join(f'{100 * end:.1f}' for end in interval)})"
    return f"{100 * value:.1f} %{ends}"
