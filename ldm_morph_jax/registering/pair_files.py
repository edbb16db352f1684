"""Register a pair of files, or a table of them, and write every result."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import VOLUME, Image, read_image, read_mask
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.registering import dicom_results
from ldm_morph_jax.registering.batch import arguments, run_batch
from ldm_morph_jax.registering.method import Registrar
from ldm_morph_jax.registering.options import PairOptions
from ldm_morph_jax.registering.outputs import (
    ALL_OF_PAIR,
    METRICS,
    software,
    write_record,
)

COLUMNS = (
    "id status verdict seconds correlation_before correlation_after dice_before dice_after "
    "nonpositive_jacobian_percent largest_displacement_mm error"
).split()
_EXAMPLES = Path(__file__).parents[1] / "examples"


def register_files(
    options: PairOptions,
    load: Callable[[], Registrar],
    started: float | None = None,
    draw: Callable | None = None,
) -> dict:
    """Register one pair and write every result.

    Args:
        options: the pair, and how.
        load: gives the registrar; called once the files have been read, so that a mistake shows
            at once.
        started: `time.perf_counter()` when the command began, to count what came before.
        draw: in place of `report.registered.write_pages`.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError, OSError: whatever keeps the pair from being registered; nothing is left behind.
    """
    if options.example:
        names = {"moving": "ed", "fixed": "es", "moving_mask": "ed_mask", "fixed_mask": "es_mask"}
        files = {field: _EXAMPLES / f"{name}.nii.gz" for field, name in names.items()}
        options = replace(options, example=False, **files)
    moving, fixed, moving_mask, fixed_mask = read_pair(options)
    sources = None
    if options.dicom:
        files = zip((options.moving, options.fixed), (moving, fixed), options.frames, strict=True)
        sources = [dicom_results.source_of(path, image, frame=k) for path, image, k in files]
    with staged(options.out, ALL_OF_PAIR, options.overwrite, last=METRICS) as folder:
        registrar = load()
        loaded = time.perf_counter()
        result = registrar(
            moving,
            fixed,
            moving_mask=moving_mask,
            fixed_mask=fixed_mask,
            slice=options.slice,
            align=options.align,
            centre=options.centre,
            refine=options.refine,
            anatomy=options.anatomy,
            affine=options.affine,
        )
        registered, inverse = time.perf_counter(), options.inverse
        metrics = result.measured(inverse=inverse)
        metrics |= {"report": options.report, "software": software(registrar.weights_sha256)}
        for name, frame in zip(("moving", "fixed"), options.frames, strict=True):
            metrics[name] |= {"slice": options.slice, "frame": frame}
        metrics["arguments"] = arguments(options, registrar)
        wait = result.write(folder, metrics, inverse=inverse, draw=draw)
        if sources is not None:
            [registration] = result.registrations
            dicom_results.write_pair(folder, registration, *sources, moving_mask, inverse=inverse)
        wait()
        seconds = {
            "start_and_weights": None if started is None else loaded - started,
            "registration": registered - loaded,
            "files_and_report": time.perf_counter() - registered,
        }
        seconds["total"] = sum(s for s in seconds.values() if s is not None)
        metrics["seconds"] = {k: None if s is None else round(s, 3) for k, s in seconds.items()}
        write_record(folder, METRICS, metrics)
    return metrics


def register_table(options: PairOptions, registrar: Registrar) -> tuple[list[dict], Path]:
    """Register every pair of a table, see `batch.run_batch`."""

    def work(job):
        return register_files(job, lambda: registrar)

    return run_batch(options, registrar, work, row_of, COLUMNS)


def read_pair(options: PairOptions) -> tuple[Image, Image, Image | None, Image | None]:
    """(moving, fixed, moving mask, fixed mask) of a job, checked."""
    images, masks = [], []
    for image_file, mask_file, frame in zip(
        (options.moving, options.fixed),
        (options.moving_mask, options.fixed_mask),
        options.frames,
        strict=True,
    ):
        which = VOLUME if options.slice is None else options.slice
        image = read_image(image_file, which, frame=frame, **options.reading)
        images.append(image)
        masks.append(None if mask_file is None else read_mask(mask_file, image, which, frame=frame))
    return *images, *masks


def row_of(metrics: Mapping) -> dict[str, str]:
    """The row of a pair in summary.csv; Dice is the mean over labels."""
    row = {"verdict": metrics["verdict"]["level"]}
    for when in ("before", "after"):
        correlation = metrics["correlation"][when]
        row[f"correlation_{when}"] = "nan" if correlation is None else f"{correlation:.4f}"
        if metrics.get("dice"):
            scores = [score[when] for score in metrics["dice"].values()]
            row[f"dice_{when}"] = f"{np.nanmean(np.array(scores, float)):.4f}"
    row["nonpositive_jacobian_percent"] = f"{metrics['jacobian']['nonpositive_percent']:.4f}"
    row["largest_displacement_mm"] = f"{metrics['displacement_mm']['largest']:.3f}"
    return row


def summary_text(metrics: dict, out: Path) -> str:
    """What `register` prints at the end."""
    lines = [f"{metrics['moving']['file']} -> {metrics['fixed']['file']}  ({metrics['model']})"]
    if "affine" in metrics:
        lines.append(f"{metrics['affine']['kind']:<12} {metrics['affine']['sentence']}")
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
