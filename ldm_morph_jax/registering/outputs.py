"""Write the files of a result, all of them or none.

docs/registering.md lists those of a pair, docs/tracking.md those of a cine and of a stack.
"""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm_morph_jax import __version__
from ldm_morph_jax.files.geometry import inside
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import sample, sample_vectors, write_affine, write_transform
from ldm_morph_jax.files.writing import json_text, round_to, write_image
from ldm_morph_jax.registering.grid import grey_limits
from ldm_morph_jax.registering.result import Registration, Tracked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldm_morph_jax.registering.heart_result import TrackedHeart

# The record of a result, written last: all other files are there where it is.
METRICS, SUMMARY = "metrics.json", "summary.json"
_INVERSE = ("inverse_displacement.nii.gz", "inverse_displacement.npz")
_AFFINE = "affine.tfm"
ALL_OF_PAIR = (
    *("warped.nii.gz", "displacement.nii.gz", "displacement.npz", "jacobian.nii.gz", METRICS),
    *(*_INVERSE, _AFFINE, "overview.png", "report.html"),
    *("warped.png", "warped.tif", "warped_mask.nii.gz"),
    *("displacement.dcm", "inverse_displacement.dcm", "warped_mask.dcm"),
)
ALL_OF_CINE = (
    "displacement inverse_displacement warped masks contours.csv landmarks.csv curves.csv "
    f"segments.csv dicom {SUMMARY} curves.png beat.gif bullseye.png report.html"
).split()
ALL_OF_STACK = ("curves.csv", "segments.csv", "bullseye.png", "report.html", "dicom", SUMMARY)
_GRID_LINES = 16  # along the longer side


def software(weights_sha256: str | None) -> dict[str, str | None]:
    """Name, version, date (UTC) and weights of the software that makes a result."""
    return {
        "name": "ldm-morph",
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights_sha256": weights_sha256,
    }


def write_record(folder: Path, name: str, content: Mapping) -> None:
    """metrics.json or summary.json."""
    (folder / name).write_text(json_text(content), encoding="utf-8")


# ---------------------------------------------------------------------------- pairs


def _picture_suffix(image: Image) -> str | None:
    """Suffix of the picture format the image came in, if it can hold the warped image, too."""
    suffix = Path(image.source).suffix.lower()
    if image.array.ndim != 2:
        return None
    if suffix == ".png" and image.array.dtype in (np.uint8, np.uint16):
        return ".png"
    if suffix in (".tif", ".tiff") and image.array.dtype in (np.uint8, np.uint16, np.float32):
        return ".tif"
    return None


def write_images(
    folder: Path, registration: Registration, moving_mask: Image | None, *, inverse: bool
) -> None:
    """Warped image and mask, transforms, Jacobian."""
    transform, geometry = registration.transform, registration.fixed.geometry
    write_image(folder / "warped.nii.gz", registration.warped, geometry)
    if suffix := _picture_suffix(registration.moving):
        picture = round_to(registration.warped, registration.moving.array.dtype)
        write_image(folder / f"warped{suffix}", picture, geometry)
    if moving_mask is not None:
        warped_mask = transform.warp(moving_mask.array, "nearest")
        write_image(folder / "warped_mask.nii.gz", warped_mask, geometry)
    write_transform(folder / "displacement.nii.gz", transform)
    write_transform(folder / "displacement.npz", transform)
    if registration.alignment is not None:
        write_affine(folder / _AFFINE, registration.alignment.whole)
    determinant = transform.jacobian_determinant().astype(np.float32)
    write_image(folder / "jacobian.nii.gz", determinant, geometry)
    for name in _INVERSE if inverse else ():
        write_transform(folder / name, registration.inverse.transform)


def drawn(
    registration: Registration, moving_mask: np.ndarray | None, fixed_mask: np.ndarray | None
) -> tuple[list[dict], dict[str, dict]]:
    """What `report.registered` draws: slices of the page, and rows of the overview by caption.

    The rows are the slices or, of a volume, planes.
    """
    arrays = _arrays(registration, moving_mask, fixed_mask)
    spacing = registration.fixed.geometry.spacing
    planes = _planes(arrays, spacing) if registration.in_space else None
    arrays["displacement"] = arrays["displacement"][..., -2:]
    stack = registration.fixed.array.ndim == 3
    slices = [
        {name: array if array is None or not stack else array[k] for name, array in arrays.items()}
        | {"spacing": spacing[-2:]}
        for k in range(len(registration.fixed.array) if stack else 1)
    ]
    return slices, planes or {f"slice {k}": one for k, one in enumerate(slices)}


def _arrays(registration, moving_mask, fixed_mask) -> dict[str, np.ndarray | None]:
    """What `report.registered` draws, all on the fixed image's grid, arguments of `pair_view`.

    The moving image stands where it lay before registration; the displacement is what came on top.
    What the motion leads to is given, too, where it does not follow from what is drawn: in a volume
    it leads out of the planes, and an affine map may bring in what lay outside.
    """

    def warped(transform, mask):
        image = transform.warp(registration.moving.array)
        return image, None if mask is None else transform.warp(mask, "nearest")

    moving, mask = warped(registration.start, moving_mask)
    arrays = {
        "moving": _unit(moving),
        "fixed": _unit(registration.fixed.array),
        "displacement": registration.pixel_displacement,
        "moving_mask": mask,
        "fixed_mask": fixed_mask,
    }
    if registration.in_space or registration.alignment is not None:
        image, mask = warped(registration.transform, moving_mask)
        arrays |= {
            "warped": _unit(image, moving),
            "warped_mask": mask,
            "jacobian": registration.transform.jacobian_determinant(),
        }
    return arrays


def _planes(arrays, spacing) -> dict[str, dict]:
    """Three planes through the middle of a volume (of its mask, if there is one), by caption.

    All on pixels as large as the smallest side of a voxel, in frames of one size.
    """
    space, pixel = arrays["fixed"].shape, min(spacing)
    mask = arrays["fixed_mask"]
    middle = [n // 2 for n in space]
    if mask is not None and mask.any():
        middle = [round(float(np.median(where))) for where in np.nonzero(mask)]
    side = math.ceil(max(n * s for n, s in zip(space, spacing, strict=True)) / pixel)

    def plane(name, axis):
        array = arrays[name]
        if array is None:
            return None
        array, others = array.take(middle[axis], axis=axis), [a for a in range(3) if a != axis]
        if name == "displacement":
            array = array[..., others] * [spacing[a] / pixel for a in others]
        at = [
            (np.arange(side) - (side - 1) / 2) * pixel / spacing[a] + (space[a] - 1) / 2
            for a in others
        ]
        at = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1)
        if name == "displacement":
            return sample_vectors(array, at)
        values = sample(array, at, "nearest" if name.endswith("mask") else "linear")
        beyond = 1 if name == "jacobian" else 0
        return np.where(inside(at, array.shape), values, beyond).astype(values.dtype)

    return {
        f"{text} {middle[axis]}": {name: plane(name, axis) for name in arrays}
        for axis, text in enumerate(("slice", "row", "column"))
    }


def _unit(array, like=None) -> np.ndarray:
    """To [0, 1], on the scale of `like` (or itself), ignoring a few very bright pixels."""
    like = array if like is None else like
    low, high = grey_limits(like, (0.2, 99.8))
    return np.clip((array - low) / (high - low), 0, 1).astype(np.float32)


# ---------------------------------------------------------------------------- cines


def write_frames(folder: Path, heart: "TrackedHeart") -> None:
    """Transforms, warped frames and masks, one file per frame."""
    with_mask = heart.anatomy.labels is not None
    for name in ("displacement", "inverse_displacement", "warped", *["masks"] * with_mask):
        (folder / name).mkdir()
    digits = max(3, len(str(len(heart.times) - 1)))
    for t in range(len(heart.times)):
        file = f"frame_{t:0{digits}d}.nii.gz"
        write_transform(folder / "displacement" / file, heart.transform(t))
        write_transform(folder / "inverse_displacement" / file, heart.inverse_transform(t))
        write_image(folder / "warped" / file, heart.warped(t), heart.geometry)
        if with_mask:
            labels = heart.carried(heart.anatomy.labels, t)
            write_image(folder / "masks" / file, labels, heart.geometry)


def write_tables(folder: Path, heart: "TrackedHeart") -> None:
    """curves.csv, contours.csv, landmarks.csv, segments.csv."""
    column, measures = time_name(heart.cine.times is not None), heart.measures
    write_curves(folder / "curves.csv", heart.times, measures.table, column)
    landmarks = {name: points[:, None] for name, points in measures.landmarks.items()}
    for kind, carried in (("contour", measures.contours), ("landmark", landmarks)):
        if carried:
            header = ["frame", column, kind, "row", "column", "x_mm", "y_mm"]
            _write_csv(folder / f"{kind}s.csv", header, _rows_of_points(heart, carried))
    if rows := heart.segment_rows:
        write_segments(folder / "segments.csv", rows, column)


def _rows_of_points(tracked: Tracked, carried: Mapping[str, np.ndarray]) -> Iterator[list]:
    """Positions of points, name -> `[T, N, 2]`, in pixels and mm."""
    for t, time in enumerate(tracked.times):
        for name, points in carried.items():
            for place in np.hstack([points[t], tracked.geometry.to_physical(points[t])]):
                yield [t, f"{time:.6g}", name, *(f"{value:.4f}" for value in place)]


def time_name(known: bool) -> str:
    """The column of times: seconds where they are known, else numbers of frames."""
    return "time_s" if known else "time_frames"


def write_curves(path: Path, times, curves: Mapping[str, np.ndarray], time_column: str) -> None:
    """A row per frame, a column per curve."""
    table = enumerate(zip(times, *curves.values(), strict=True))
    rows = ([t, *(f"{value:.6g}" for value in values)] for t, values in table)
    _write_csv(path, ["frame", time_column, *curves], rows)


def write_segments(path: Path, rows: Sequence[Mapping], time_column: str) -> None:
    """A row per segment; times in the unit of `time_column`. Opens in a spreadsheet."""
    unit = time_column.removeprefix("time")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    header = [n + unit if n.endswith("time_to_peak") else n for n in columns]
    _write_csv(path, header, ([_cell(row.get(name)) for name in columns] for row in rows))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def draw_cine_pages(folder: Path, heart: "TrackedHeart", content: Mapping) -> list["Figure"]:
    """curves.png, beat.gif and report.html; of volumes bullseye.png, too.

    `content` is of summary.json. Returns the figure of curves.png, if there is one.
    """
    from ldm_morph_jax.registering.heart import main_strain
    from ldm_morph_jax.report import stack
    from ldm_morph_jax.report import tracked as report
    from ldm_morph_jax.report.style import png_bytes

    figures, rows = cine_figures(heart, content), heart.segment_rows
    for figure in figures:
        (folder / "curves.png").write_bytes(png_bytes(figure))
    seconds = heart.times if heart.cine.times is not None else heart.times / 25
    pictures, pages, outlines = [], [], []
    in_space = heart.geometry.dimension == 3
    names, *sectors = ([],) if in_space else _sectors(heart)
    if in_space and (maps := stack.bullseyes(rows)):
        (folder / "bullseye.png").write_bytes(png_bytes(maps[0]))
    for view in (_views_of_volume if in_space else _views)(heart, *sectors):
        pictures.append(report.frame_picture(view))
        pages.append(report.frame_page(view))
        outlines += (line for lines in view["contours"].values() for line in lines)
    report.write_animation(folder / "beat.gif", pictures, seconds)
    report.write_report(
        folder / "report.html",
        frames=pages,
        shape=view["image"].shape,
        spacing=heart.spacing[-2:],
        outlines=outlines,
        times=heart.times,
        seconds=seconds,
        time_label=_time_label(heart),
        curves=heart.measures.curves,
        strain_name=main_strain(heart.anatomy.view),
        sectors=names,
        maps=stack.bullseye_maps(rows) if in_space else (),
        summary=content,
    )
    return figures


def cine_figures(heart: "TrackedHeart", content: Mapping) -> list["Figure"]:
    """The plot of the curves; none where nothing was measured. `content` is of summary.json."""
    from ldm_morph_jax.report import tracked as report

    curves = heart.measures.curves
    groups = report.curve_groups(curves)
    if not groups:
        return []
    moments = report.moments(content, curves, heart.times)
    return [report.curves_figure(heart.times, groups, _time_label(heart), moments)]


def _time_label(tracked) -> str:
    return "time, s" if tracked.cine.times is not None else "frame"


def draw_stack_pages(
    folder: Path, content: Mapping, rows: Sequence[Mapping], parts: Mapping[str, str]
) -> list["Figure"]:
    """bullseye.png and report.html of a stack, or of apical views.

    `parts` are the names of slices or views, and where their results are. Returns the figures of
    the bull's-eyes.
    """
    from ldm_morph_jax.report import stack
    from ldm_morph_jax.report.style import png_bytes

    figures = stack.bullseyes(rows)
    if figures:
        (folder / "bullseye.png").write_bytes(png_bytes(figures[0]))
    stack.write_report(folder / "report.html", content, rows, parts)
    return figures


def _sectors(heart) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """(names of sectors, where they stand `[K, 2]`, lines between sectors) on the reference."""
    from ldm_morph_jax.registering.heart import wall_sectors
    from ldm_morph_jax.report.views import sector_labels, sector_lines

    if not (heart.anatomy.has_wall and heart.anatomy.has_cavity):
        return [], np.empty((0, 2)), []
    numbers, names = wall_sectors(heart, heart.anatomy)
    labels = sector_labels(numbers)
    seen = np.isfinite(labels).all(axis=1)
    names = [name for name, there in zip(names, seen, strict=False) if there]
    return names, labels[seen], sector_lines(numbers)


def _views(heart, labels, sectors) -> Iterator[dict]:
    """What `report.tracked` draws of every frame: everything lies on that frame."""
    from ldm_morph_jax.registering.heart import strain_maps

    lines, measures = _tissue_lines(heart.geometry.shape), heart.measures

    def carried(points, t):
        return points + sample_vectors(heart.displacement[t], points)

    shown = _window(heart)
    for t, strain in enumerate(strain_maps(heart, heart.anatomy)):
        yield {
            "image": shown(heart.cine.frames[t]),
            "contours": {name: [points[t]] for name, points in measures.contours.items()},
            "closed": heart.anatomy.closed,
            "landmarks": np.array([points[t] for points in measures.landmarks.values()]),
            "grid": [carried(line, t) for line in lines],
            "sectors": [carried(line, t) for line in sectors],
            "labels": carried(labels, t) if len(labels) else labels,
            "strain": strain,
            "spacing": heart.spacing,
        }


def _window(heart) -> Callable[[np.ndarray], np.ndarray]:
    """Brings grey values of any frame to [0, 1] on one scale."""
    low, high = np.percentile(heart.cine.frames[heart.reference], [0.5, 99.5])

    def shown(frame):
        return np.clip((frame.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)

    return shown


def _views_of_volume(heart) -> Iterator[dict]:
    """As `_views`: a slice of the basal, the middle and the apical third side by side, around the
    heart, with the outlines of what the mask has been carried to."""
    from ldm_morph_jax.registering.anatomy import closed_outline
    from ldm_morph_jax.registering.heart import strain_maps

    anatomy = heart.anatomy
    slices, box = _shown_slices(anatomy, heart.geometry.shape)
    width = box[1].stop - box[1].start

    def beside(volume):
        return np.concatenate([volume[k][box] for k in slices], axis=1)

    def outlines(mask):
        planes = [(k * width, mask[s][box]) for k, s in enumerate(slices)]
        return [closed_outline(plane) + [0, left] for left, plane in planes if plane.any()]

    shown = _window(heart)
    for t, strain in enumerate(strain_maps(heart, anatomy)):
        contours = {}
        if anatomy.has_cavity:
            carried = heart.carried(anatomy.cavity + 2 * anatomy.wall, t)
            contours["endo"] = outlines(carried == 1)
            contours |= {"epi": outlines(carried > 0)} if anatomy.has_wall else {}
        yield {
            "image": beside(shown(heart.cine.frames[t])),
            "contours": contours,
            "closed": True,
            "landmarks": np.empty((0, 2)),
            "grid": [],
            "sectors": [],
            "labels": np.empty((0, 2)),
            "strain": None if strain is None else beside(strain),
            "spacing": heart.spacing[1:],
        }


def _shown_slices(anatomy, shape) -> tuple[list[int], tuple[slice, slice]]:
    """(The middle slice of each third, base first; the part of a slice around the heart)."""
    if not (anatomy.has_cavity and anatomy.levels):
        return [shape[0] * k // 4 for k in (1, 2, 3)], np.s_[: shape[1], : shape[2]]
    thirds = [np.flatnonzero(np.equal(anatomy.levels, level)) for level in (1, 2, 3)]
    middle = np.flatnonzero(anatomy.levels).mean()  # of two in the middle of a third the inner one
    slices = [
        min(k.tolist(), key=lambda one, k=k: (abs(one - k.mean()), abs(one - middle)))
        for k in thirds
        if len(k)
    ]
    places = np.argwhere(anatomy.labels)[:, 1:]
    margin = np.ptp(places, axis=0) // 4 + 2
    first = np.maximum(places.min(axis=0) - margin, 0)
    last = np.minimum(places.max(axis=0) + margin + 1, shape[1:])
    return slices, tuple(map(slice, first, last))


def _tissue_lines(shape) -> list[np.ndarray]:
    """A regular grid on the reference frame, polylines `[N, 2]`; it moves with the tissue."""
    step = max(shape) / _GRID_LINES
    rows, columns = (np.arange(step / 2, n - 1, step) for n in shape)
    along = [np.linspace(0, n - 1, 2 * _GRID_LINES + 1) for n in shape]
    lines = [np.stack([np.full_like(along[1], row), along[1]], axis=-1) for row in rows]
    return lines + [np.stack([along[0], np.full_like(along[0], c)], axis=-1) for c in columns]
