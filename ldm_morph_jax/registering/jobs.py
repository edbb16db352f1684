"""One pair from files to files."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_morph_jax.files.images import Image, read_image, read_mask
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.registering.measures import measure, notes
from ldm_morph_jax.registering.outputs import (
    ALL,
    draw_pages,
    output_names,
    write_images,
    write_metrics,
)
from ldm_morph_jax.registering.registrar import Registrar
from ldm_morph_jax.registering.verdict import judge


@dataclass(frozen=True)
class Job:
    """One pair to register, and where to.

    moving, fixed: image files.
    out: the folder of the results.
    moving_mask, fixed_mask: label files.
    slice: which slice of 3-D files, or "all".
    frames: of the moving and of the fixed file, where they hold several in time.
    """

    moving: Path
    fixed: Path
    out: Path
    moving_mask: Path | None = None
    fixed_mask: Path | None = None
    slice: int | str | None = None
    frames: tuple[int | None, int | None] = (None, None)


def frames_of(numbers: Sequence[int] | None) -> tuple[int | None, int | None]:
    """(moving, fixed) frame of one number for both, of two, or of none; ValueError for others."""
    numbers = tuple(numbers or (None,))
    if len(numbers) > 2:
        raise ValueError(f"frame: found {len(numbers)} numbers, expected one or two")
    return numbers[0], numbers[-1]


@dataclass(frozen=True)
class Options:
    """How pairs are read, registered and written: the options of `register`.

    model: what `load` is given, for metrics.json.
    spacing, oblique: see `files.images.read_image`.
    align, centre: see `grid.prepare`.
    refine, diffeomorphic: see `registrar.Registrar`.
    inverse: write the inverse transform, too.
    report: write overview.png and report.html.
    overwrite: replace earlier results.
    """

    model: str
    spacing: float | tuple[float, float] | None = None
    oblique: bool = False
    align: str = "auto"
    centre: tuple[float, float] | None = None
    refine: int | None = None
    diffeomorphic: bool = False
    inverse: bool = False
    report: bool = True
    overwrite: bool = False


def register_job(
    job: Job,
    options: Options,
    load: Callable[[], Registrar],
    started: float | None = None,
    draw: Callable | None = None,
) -> dict:
    """Register one pair and write every result.

    Args:
        job: the pair.
        options: how.
        load: gives the registrar; called once the files have been read, so that a mistake shows
            at once.
        started: `time.perf_counter()` when the command began, to count what came before.
        draw: in place of `report.registered.write_pages`.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError, OSError: whatever keeps the pair from being registered; nothing is left behind.
    """
    moving, fixed, moving_mask, fixed_mask = read_pair(job, options)
    names = output_names(
        moving, moving_mask=moving_mask, inverse=options.inverse, report=options.report
    )
    with staged(job.out, names, options.overwrite, all_names=ALL) as folder:
        registrar = load()
        loaded, steps = time.perf_counter(), registrar.steps(options.refine)
        registration = registrar.register_images(
            [(moving, fixed)],
            align=options.align,
            centre=options.centre,
            refine=steps,
            diffeomorphic=options.diffeomorphic,
        )[0]
        registered = time.perf_counter()
        masks = [None if mask is None else mask.array for mask in (moving_mask, fixed_mask)]
        metrics = {
            "model": options.model,
            "method": registrar.method.name,
            "report": options.report,
            **measure(
                registration,
                moving_mask=masks[0],
                fixed_mask=masks[1],
                steps=steps,
                inverse=options.inverse,
            ),
            "notes": notes(
                registration,
                registrar.method,
                steps=steps,
                diffeomorphic=options.diffeomorphic,
            ),
        }
        described = registrar.card.get("appearance")
        metrics["verdict"] = judge(registration, metrics, described)
        for name, frame in zip(("moving", "fixed"), job.frames, strict=True):
            metrics[name] |= {"slice": job.slice, "frame": frame}
        if options.report:
            wait = draw_pages(folder, registration, metrics, *masks, draw)
        write_images(folder, registration, moving_mask, inverse=options.inverse)
        if options.report:
            wait()
        seconds = {
            "start_and_weights": None if started is None else loaded - started,
            "registration": registered - loaded,
            "files_and_report": time.perf_counter() - registered,
        }
        seconds["total"] = sum(s for s in seconds.values() if s is not None)
        metrics["seconds"] = {k: None if s is None else round(s, 3) for k, s in seconds.items()}
        write_metrics(folder, metrics)
    return metrics


def read_pair(job: Job, options: Options) -> tuple[Image, Image, Image | None, Image | None]:
    """(moving, fixed, moving mask, fixed mask) of a job, checked."""
    reading = {"spacing": options.spacing, "oblique": options.oblique}
    images, masks = [], []
    for image_file, mask_file, frame in zip(
        (job.moving, job.fixed), (job.moving_mask, job.fixed_mask), job.frames, strict=True
    ):
        image = read_image(image_file, job.slice, frame=frame, **reading)
        images.append(image)
        masks.append(
            None if mask_file is None else read_mask(mask_file, image, job.slice, frame=frame)
        )
    return *images, *masks


def summary_text(metrics: dict, out: Path) -> str:
    """What `register` prints at the end."""
    lines = [f"{metrics['moving']['file']} -> {metrics['fixed']['file']}  ({metrics['model']})"]
    c = metrics["correlation"]
    lines.append(f"correlation  {c['before']:.3f} before, {c['after']:.3f} after")
    for label, score in metrics.get("dice", {}).items():
        lacking = f" ({score['lacking']} lacks it)" if "lacking" in score else ""
        before, after = (f"{score[when]:.3f} {when}" for when in ("before", "after"))
        lines.append(f"DSC label {label}  {before}, {after}{lacking}")
    lines.append(f"folding      {metrics['jacobian']['nonpositive_percent']:.2f} % of the pixels")
    if "inverse" in metrics:
        i = metrics["inverse"]
        missing = f"; none at {i['missing_pixels']} pixels" if i["missing_pixels"] else ""
        lines.append(f"inverse      residual {i['residual_mm_largest']:.3g} mm at most{missing}")
    lines.append(metrics["verdict"]["sentence"])
    lines += [f"note: {note}" for note in metrics["notes"]]
    s = metrics["seconds"]
    report = out / "report.html"
    look = f"; look at {report}" if metrics["report"] else ""
    lines.append(f"wrote {out}/{look}")
    lines.append(
        f"{s['total']:.1f} s: {s['start_and_weights']:.1f} start and weights, "
        f"{s['registration']:.1f} registration (compilation included), "
        f"{s['files_and_report']:.1f} files and report"
    )
    return "\n".join(lines)
