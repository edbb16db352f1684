"""The files that a tracked cine becomes, all of them or none; `frame_007` is frame 7, from 0.

displacement/frame_007.nii.gz          T(p) = p + d(p), mm, LPS: brings frame 7 to the reference
inverse_displacement/frame_007.nii.gz  brings the reference to frame 7
warped/frame_007.nii.gz                frame 7 brought to the reference, original intensities
masks/frame_007.nii.gz                 the mask carried to frame 7 (with a mask or contours)
contours.csv, landmarks.csv            carried to every frame, pixels and mm (where there are any)
curves.csv                             areas, volumes, strain and strain rate over time
summary.json                           fractions, peaks, drift, settings
curves.png, beat.gif, report.html
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.images import write_image
from ldm_morph_jax.files.transforms import sample_vectors, write_transform
from ldm_morph_jax.files.writing import json_text
from ldm_morph_jax.registering.cine.anatomy import Anatomy
from ldm_morph_jax.registering.cine.measures import Measures, main_strain, strain_maps
from ldm_morph_jax.registering.cine.tracked import Tracked

SUMMARY = "summary.json"
NAMES = (
    "displacement inverse_displacement warped masks contours.csv landmarks.csv curves.csv "
    f"{SUMMARY} curves.png beat.gif report.html"
).split()
_GRID_LINES = 16  # along the longer side


def write_frames(folder: Path, tracked: Tracked, anatomy: Anatomy) -> None:
    """Transforms, warped frames and masks, one file per frame."""
    with_mask = anatomy.labels is not None
    for name in ("displacement", "inverse_displacement", "warped", *["masks"] * with_mask):
        (folder / name).mkdir()
    digits = max(3, len(str(len(tracked.times) - 1)))
    for t in range(len(tracked.times)):
        file = f"frame_{t:0{digits}d}.nii.gz"
        write_transform(folder / "displacement" / file, tracked.transform(t))
        write_transform(folder / "inverse_displacement" / file, tracked.inverse_transform(t))
        write_image(folder / "warped" / file, tracked.warped(t), tracked.geometry)
        if with_mask:
            labels = tracked.carried(anatomy.labels, t)
            write_image(folder / "masks" / file, labels, tracked.geometry)


def write_tables(folder: Path, tracked: Tracked, measures: Measures) -> None:
    """curves.csv, contours.csv, landmarks.csv."""
    write_curves(folder / "curves.csv", tracked.times, measures.curves, time_name(tracked))
    place = tracked.geometry.to_physical
    for name, kind, carried in (
        ("contours.csv", "contour", measures.contours),
        ("landmarks.csv", "landmark", {k: p[:, None] for k, p in measures.landmarks.items()}),
    ):
        if not carried:
            continue
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["frame", time_name(tracked), kind, "row", "column", "x_mm", "y_mm"])
            for t, time in enumerate(tracked.times):
                for which, points in carried.items():
                    for point, position in zip(points[t], place(points[t]), strict=True):
                        numbers = [f"{value:.4f}" for value in (*point, *position)]
                        writer.writerow([t, f"{time:.6g}", which, *numbers])


def time_name(tracked: Tracked) -> str:
    """The column of times: seconds, or nothing but the number of the frame."""
    return "time_frames" if tracked.cine.times is None else "time_s"


def write_curves(path: Path, times, curves: Mapping[str, np.ndarray], time_column: str) -> None:
    """A row per frame, a column per curve."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", time_column, *curves])
        for t, values in enumerate(zip(times, *curves.values(), strict=True)):
            writer.writerow([t, *(f"{value:.6g}" for value in values)])


def write_summary(folder: Path, content: Mapping) -> None:
    """summary.json."""
    (folder / SUMMARY).write_text(json_text(content), encoding="utf-8")


def write_pages(
    folder: Path, tracked: Tracked, anatomy: Anatomy, measures: Measures, content: Mapping
) -> None:
    """curves.png, beat.gif and report.html."""
    from ldm_morph_jax.report import tracked as report

    groups = report.curve_groups(measures.curves)
    time_label = "time, s" if tracked.cine.times is not None else "frame"
    if groups:
        figure = report.curves_figure(tracked.times, groups, time_label, measures.end_systole)
        (folder / "curves.png").write_bytes(report.png_bytes(figure))
    seconds = tracked.times if tracked.cine.times is not None else tracked.times / 25
    pages = []

    def pictures():
        for view in _views(tracked, anatomy, measures):
            pages.append(report.frame_page(view))
            yield report.frame_picture(view)

    report.write_animation(folder / "beat.gif", pictures(), seconds)
    report.write_report(
        folder / "report.html",
        frames=pages,
        shape=tracked.geometry.shape,
        spacing=tracked.spacing,
        times=tracked.times,
        seconds=seconds,
        time_label=time_label,
        groups=groups,
        strain_name=main_strain(anatomy.view),
        summary=content,
    )


def _views(tracked, anatomy, measures) -> Iterator[dict]:
    """What `report.tracked` draws of every frame: everything lies on that frame."""
    low, high = np.percentile(tracked.cine.frames[tracked.reference], [0.5, 99.5])
    lines = _tissue_lines(tracked.geometry.shape)
    for t, strain in enumerate(strain_maps(tracked, anatomy)):
        image = tracked.cine.frames[t].astype(np.float32)
        yield {
            "image": np.clip((image - low) / max(high - low, 1e-12), 0, 1),
            "contours": {name: points[t] for name, points in measures.contours.items()},
            "closed": anatomy.closed,
            "landmarks": np.array([points[t] for points in measures.landmarks.values()]),
            "grid": [line + sample_vectors(tracked.displacement[t], line) for line in lines],
            "strain": strain,
            "spacing": tracked.spacing,
        }


def _tissue_lines(shape) -> list[np.ndarray]:
    """A regular grid on the reference frame, polylines `[N, 2]`; it moves with the tissue."""
    step = max(shape) / _GRID_LINES
    rows, columns = (np.arange(step / 2, n - 1, step) for n in shape)
    along = [np.linspace(0, n - 1, 2 * _GRID_LINES + 1) for n in shape]
    lines = [np.stack([np.full_like(along[1], row), along[1]], axis=-1) for row in rows]
    return lines + [np.stack([along[0], np.full_like(along[0], c)], axis=-1) for c in columns]
