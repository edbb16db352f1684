"""Figures with matplotlib's objects (no pyplot, no global state; any backend, any thread).

Colours mean the same everywhere: amber is the moving image and what became of it, cyan is the fixed
image, green is folding.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ldm_morph_jax.ops import metrics
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.report.views import PairView, deformed_grid_lines, pair_view

__all__ = [
    "box_plot",
    "curves",
    "deformed_grid_lines",
    "image_grid",
    "methods_sheet",
    "pair_figure",
    "pairs_sheet",
    "png_bytes",
    "sweep_plot",
]

MOVING_COLOUR = "#ffb000"
FIXED_COLOUR = "#22d3ee"
FOLD_COLOUR = "#35e000"
MOTION_MAP = LinearSegmentedColormap.from_list(
    "motion", ["#b6c2d1", "#fde047", "#f97316", "#e11d48"]
)
DIFFERENCE_MAP = colormaps["inferno"]
JACOBIAN_MAP = colormaps["RdBu_r"].with_extremes(bad=FOLD_COLOUR)
JACOBIAN_NORM = LogNorm(1 / 3, 3, clip=True)
JACOBIAN_TICKS = (0.5, 1.0, 2.0)

_BEFORE, _AFTER, _SERIES = "#9aa5b1", "#0e7490", ("#0e7490", "#d97706", "#7c3aed", "#be123c")
_DARK_SERIES = ("#22d3ee", "#fbbf24", "#a78bfa", "#fb7185")


def pair_figure(
    moving,
    fixed,
    displacement,
    *,
    moving_mask=None,
    fixed_mask=None,
    labels: Mapping[int, str] | None = None,
    spacing=None,
    title: str = "",
) -> Figure:
    """Everything about one registration on one page.

    Moving, fixed and warped image with outlines, scores; |difference| before and after on one
    scale, the deformed grid (see `deformed_grid_lines`) and the Jacobian determinant with folds in
    green. The three images share one window for display, see `PairView.window`.

    Args:
        moving, fixed: `[H, W]` or `[H, W, 1]` in [0, 1].
        displacement: `[H, W, 2]`, pixels, pull-back.
        moving_mask, fixed_mask: integer labels of the same size, or None.
        labels: label -> name of the structures to outline and score; None for all but 0.
        spacing: pixel size (row, column) in mm, for the proportions and HD95 in mm.
        title: e.g. the id of the pair.
    """
    view = pair_view(
        moving,
        fixed,
        displacement,
        moving_mask=moving_mask,
        fixed_mask=fixed_mask,
        labels=labels,
        spacing=spacing,
    )
    height = 2.6 * view.aspect * view.moving.shape[0] / view.moving.shape[1]
    top, bottom, between = 0.32 + 0.34 * bool(title), 0.5, 0.4
    size = (4 * 2.6 + 0.62, 2 * height + top + bottom + between)
    figure = Figure(figsize=size, dpi=150)
    axes = figure.subplots(2, 4)
    figure.subplots_adjust(
        left=0.13 / size[0],
        right=1 - 0.13 / size[0],
        top=1 - top / size[1],
        bottom=bottom / size[1],
        wspace=0.12 / 2.6,
        hspace=between / height,
    )
    _draw_moving(axes[0, 0], view)
    _draw_fixed(axes[0, 1], view)
    _draw_warped(axes[0, 2], view)
    _draw_scores(axes[0, 3], view, moving_mask, fixed_mask, labels, spacing)
    _draw_difference(axes[1, 0], view, view.difference_before)
    _draw_difference(axes[1, 1], view, view.difference_after)
    _draw_grid(axes[1, 2], view)
    _draw_jacobian(axes[1, 3], view)
    titles = ("Moving", "Fixed", "Warped moving", None)
    titles += ("|difference| before", "|difference| after", "Deformed grid", "Jacobian determinant")
    for axis, name in zip(axes.flat, titles, strict=True):
        axis.set_title(name, fontsize=10, fontweight="bold", loc="left", pad=5)
    for axis in axes[1, :2]:
        _bar(axis, DIFFERENCE_MAP, Normalize(0, view.difference_limit), "intensity")
    _bar(axes[1, 2], MOTION_MAP, _motion_norm(view), "displacement, px")
    _jacobian_bar(axes[1, 3])
    if title:
        x, y = 0.13 / size[0], 1 - 0.1 / size[1]
        figure.text(x, y, title, fontsize=12, fontweight="bold", va="top")
    return figure


def pairs_sheet(
    moving,
    fixed,
    displacement,
    *,
    moving_mask=None,
    fixed_mask=None,
    labels: Mapping[int, str] | None = None,
    spacing=None,
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Several registered pairs, one row each, in the columns of `pair_figure`.

    Args:
        moving, fixed: `[B, H, W, 1]` in [0, 1].
        displacement: `[B, H, W, 2]`, pixels, pull-back.
        moving_mask, fixed_mask: integer labels `[B, H, W, 1]`, or None.
        labels: label -> name of the structures to outline; None for all but 0.
        spacing: `[B, 2]` pixel sizes (row, column), for the proportions.
        captions: one text per pair, left of its row.
        title: text above.
    """
    count = len(moving)
    lengths = {"fixed": len(fixed), "displacement": len(displacement)}
    lengths |= {} if captions is None else {"captions": len(captions)}
    for name, length in lengths.items():
        if length != count or not count:
            raise ValueError(f"{name}: found {length} entries, expected {count} (> 0) as `moving`")
    views = [
        pair_view(
            moving[i],
            fixed[i],
            displacement[i],
            moving_mask=None if moving_mask is None else moving_mask[i],
            fixed_mask=None if fixed_mask is None else fixed_mask[i],
            labels=labels,
            spacing=None if spacing is None else spacing[i],
        )
        for i in range(count)
    ]
    view = views[0]
    height = 1.75 * view.aspect * view.moving.shape[0] / view.moving.shape[1]
    top, bottom, left = 0.28 + 0.3 * bool(title), 0.62, 0.38 * (captions is not None)
    size = (7 * 1.75 + left + 0.06, count * height + top + bottom)
    figure = Figure(figsize=size, dpi=120)
    axes = figure.subplots(count, 7, squeeze=False)
    figure.subplots_adjust(
        left=(left + 0.03) / size[0],
        right=1 - 0.03 / size[0],
        top=1 - top / size[1],
        bottom=bottom / size[1],
        wspace=0.03,
        hspace=0.03,
    )
    for row, view in zip(axes, views, strict=True):
        _draw_moving(row[0], view)
        _draw_fixed(row[1], view)
        _draw_warped(row[2], view)
        _draw_difference(row[3], view, view.difference_before)
        _draw_difference(row[4], view, view.difference_after)
        _draw_grid(row[5], view)
        _draw_jacobian(row[6], view)
    titles = ("Moving", "Fixed", "Warped", "|difference| before", "after", "Grid", "Jacobian")
    for axis, name in zip(axes[0], titles, strict=True):
        axis.set_title(name, fontsize=9.5, fontweight="bold", pad=4)
    for axis, caption in zip(axes[:, 0], captions or (), strict=False):
        axis.set_ylabel(caption, fontsize=8, labelpad=5)
    _jacobian_bar(axes[-1, 6])
    handles = _legend_handles(
        outlines=any(view.moving_lines or view.fixed_lines for view in views),
        folds=any((view.jacobian <= 0).any() for view in views),
    )
    if handles:
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=((left + 0.03) / size[0], 0.12 / size[1]),
            borderaxespad=0,
            ncols=len(handles),
            fontsize=8.5,
            frameon=False,
            handlelength=1.6,
        )
    if title:
        x, y = (left + 0.03) / size[0], 1 - 0.1 / size[1]
        figure.text(x, y, title, fontsize=12, fontweight="bold", va="top")
    return figure


def methods_sheet(
    moving,
    fixed,
    displacements: Mapping[str, np.ndarray],
    *,
    moving_mask=None,
    fixed_mask=None,
    labels: Mapping[int, str] | None = None,
    spacing=None,
    captions: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """One pair under several methods, a column each: warped, |difference| to fixed, deformed grid.

    The first column is the pair itself: moving, |difference| before, fixed. All differences share
    one scale, and so do all grids.

    Args:
        moving, fixed: `[H, W]` or `[H, W, 1]` in [0, 1].
        displacements: name of a method -> `[H, W, 2]`, pixels, pull-back.
        moving_mask, fixed_mask: integer labels of the same size, or None.
        labels: label -> name of the structures to outline; None for all but 0.
        spacing: pixel size (row, column), for the proportions.
        captions: name of a method -> text below its name, e.g. its scores.
        title: text above.
    """
    if not displacements:
        raise ValueError("displacements: found none, expected method -> displacement")
    views = {
        name: pair_view(
            moving,
            fixed,
            displacement,
            moving_mask=moving_mask,
            fixed_mask=fixed_mask,
            labels=labels,
            spacing=spacing,
        )
        for name, displacement in displacements.items()
    }
    pair = next(iter(views.values()))
    limit = max(view.difference_limit for view in views.values())
    norm = Normalize(0, max(_motion_norm(view).vmax for view in views.values()))
    width, columns = 1.6, 1 + len(views)
    height = width * pair.aspect * pair.moving.shape[0] / pair.moving.shape[1]
    top, bottom, left = 0.3 + 0.16 * bool(captions) + 0.3 * bool(title), 0.45, 0.24
    size = (columns * width + left + 0.06, 3 * height + top + bottom)
    figure = Figure(figsize=size, dpi=120)
    axes = figure.subplots(3, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / size[0],
        right=1 - 0.03 / size[0],
        top=1 - top / size[1],
        bottom=bottom / size[1],
        wspace=0.03,
        hspace=0.03,
    )
    _draw_moving(axes[0, 0], pair)
    _draw_difference(axes[1, 0], pair, pair.difference_before, limit)
    _draw_fixed(axes[2, 0], pair)
    for (name, view), column in zip(views.items(), axes[:, 1:].T, strict=True):
        _draw_warped(column[0], view)
        _draw_difference(column[1], view, view.difference_after, limit)
        _draw_grid(column[2], view, norm)
        caption = (captions or {}).get(name, "")
        # `name` is bold, the line below it is not: two texts
        column[0].set_title(name + "\n" * bool(captions), fontsize=9, fontweight="bold", pad=4)
        column[0].text(
            *(0.5, 1.0),
            caption,
            transform=column[0].transAxes,
            ha="center",
            va="bottom",
            fontsize=7.5,
        )
    axes[0, 0].set_title("Moving", fontsize=9, fontweight="bold", pad=4)
    for axis, name in zip(
        axes[:, 0], ("moving, warped", "|difference|", "fixed, grid"), strict=True
    ):
        axis.set_ylabel(name, fontsize=8.5, labelpad=4)
    _bar(axes[2, -1], MOTION_MAP, norm, "displacement, px")
    _bar(axes[2, 0], DIFFERENCE_MAP, Normalize(0, limit), "|difference|")
    if title:
        x, y = left / size[0], 1 - 0.1 / size[1]
        figure.text(x, y, title, fontsize=12, fontweight="bold", va="top")
    return figure


def sweep_plot(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    xlabel: str,
    dark: bool = False,
) -> Figure:
    """Lines with dots over one quantity, a panel each: panel -> line -> (x, y)."""
    if not any(len(x) for lines in panels.values() for x, _ in lines.values()):
        raise ValueError("panels: found nothing to draw, expected panel -> line -> (x, y)")
    figure = Figure(figsize=(3.9 * len(panels), 3.2), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    palette = _DARK_SERIES if dark else _SERIES
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for i, (line, (x, y)) in enumerate(lines.items()):
            colour = palette[i % len(palette)]
            axis.plot(
                x, y, color=colour, linewidth=1.6, marker="o", ms=4, label=line, clip_on=False
            )
        _style(figure, axis, dark)
        axis.set(xlabel=xlabel, ylabel=name)
        if axis.get_ylim()[0] < 0 <= min(value for _, y in lines.values() for value in y):
            axis.set_ylim(bottom=0)  # a margin below zero looks as if there were such scores
    axes[0].legend(fontsize=8, frameon=False, labelcolor=_text_colour(dark))
    return figure


def image_grid(
    images,
    *,
    columns: int = 8,
    row_names: Sequence[str] = (),
    value_range: tuple[float, float] = (0.0, 1.0),
    title: str = "",
) -> Figure:
    """Images in reading order. For reconstructions, concatenate inputs and outputs, name the rows.

    Args:
        images: `[N, H, W, 1]`, N > 0.
        columns: images per row.
        row_names: names of the first rows, left of them.
        value_range: the values shown black and white.
        title: text above.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] != 1 or not len(images):
        raise ValueError(f"images: found shape {images.shape}, expected [N, H, W, 1] with N > 0")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = 1.3 * images.shape[1] / images.shape[2]
    top, left = 0.34 if title else 0.04, 0.28 if row_names else 0.04
    size = (columns * 1.3 + left + 0.04, rows * height + top + 0.04)
    figure = Figure(figsize=size, dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / size[0],
        right=1 - 0.04 / size[0],
        top=1 - top / size[1],
        bottom=0.04 / size[1],
        wspace=0.04,
        hspace=0.04,
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.axis("on")
        _show(axis, image[..., 0], 1.0, vmin=value_range[0], vmax=value_range[1])
    for axis, name in zip(axes[:, 0], row_names, strict=False):
        axis.set_ylabel(name, fontsize=8.5, labelpad=4)
    if title:
        x, y = left / size[0], 1 - 0.08 / size[1]
        figure.text(x, y, title, fontsize=11, fontweight="bold", va="top")
    return figure


def box_plot(
    values_by_name: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]],
    *,
    ylabel: str,
    title: str = "",
    dark: bool = False,
) -> Figure:
    """Distributions side by side: quartile box, median, dotted mean, whiskers to 1.5 IQR, dots.

    Args:
        values_by_name: name -> values, or name -> {"before": values, "after": values} for boxes
            that belong together. NaN are left out and said so under the name.
        ylabel: quantity and unit.
        title: text above.
        dark: light text for a dark page.
    """
    if not values_by_name:
        raise ValueError("values_by_name: found nothing to draw, expected name -> values")
    grouped = {
        name: dict(values) if isinstance(values, Mapping) else {"": values}
        for name, values in values_by_name.items()
    }
    series = list(dict.fromkeys(kind for group in grouped.values() for kind in group))
    palette = _DARK_SERIES if dark else _SERIES
    colours = dict(
        zip(series, [_BEFORE, palette[0]] if len(series) == 2 else palette, strict=False)
    )
    figure, axis = _plot_figure((max(3.6, 1.0 + 0.95 * sum(map(len, grouped.values()))), 3.4), dark)

    ticks, names, position = [], [], 0.0
    for name, group in grouped.items():
        start, excluded = position, 0
        for kind, values in group.items():
            values = np.asarray(values, np.float64)
            used = values[~np.isnan(values)]
            excluded = max(excluded, values.size - used.size)
            if used.size:
                _box(axis, position, used, colours.get(kind, palette[0]))
            position += 0.8
        ticks.append((start + position - 0.8) / 2)
        names.append(name + (f"\n({excluded} without a value)" if excluded else ""))
        position += 0.45
    axis.set_xticks(ticks, names)
    axis.set_xlim(-0.65, position - 0.6)
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel(ylabel)
    if len(series) > 1:
        handles = [Patch(facecolor=colours[kind], alpha=0.55, label=kind) for kind in series]
        figure.legend(
            handles=handles,
            loc="outside upper right",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            labelcolor=_text_colour(dark),
        )
    if title:
        axis.set_title(title, loc="left", fontsize=10, color=_text_colour(dark))
    return figure


def curves(path, *, dark: bool = False) -> Figure:
    """Training curves from the metrics.jsonl of a run: one row of panels per stage.

    A panel shows one quantity; "validation/x" and "x" share one. Axes are logarithmic where a
    quantity is positive and spans more than a factor of 20. Missing values (null) are gaps.

    Args:
        path: a metrics.jsonl, or a directory with one in it or in its direct sub-directories (the
            stages, drawn in the order in which they were trained).
        dark: light text for a dark page.

    Raises:
        ValueError: when there is no metrics.jsonl, or a line is not a JSON object with a "step". A
            last line cut off by a kill is left out.
    """
    stages = {file.parent.name: _read_metrics(file) for file in metrics_files(path)}
    stages = {name: quantities for name, quantities in stages.items() if quantities}
    if not stages:
        raise ValueError(
            f"{path}: found no metrics.jsonl with numbers in it, expected at least one"
        )
    columns = min(4, max(map(len, stages.values())))
    rows = sum(math.ceil(len(quantities) / columns) for quantities in stages.values())
    figure = Figure(figsize=(2.9 * columns, 2.15 * rows + 0.2), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False)
    row = 0
    for stage, quantities in stages.items():
        used = math.ceil(len(quantities) / columns)
        panels = axes[row : row + used].ravel()
        row += used
        for axis, (quantity, lines) in zip(panels, quantities.items(), strict=False):
            _draw_curve(axis, lines, dark)
            name = quantity.replace("_", " ")
            name = f"{stage}: {name}" if len(stages) > 1 else name
            _style(figure, axis, dark)
            axis.set_title(name, loc="left", fontsize=8.5, color=_text_colour(dark))
        for axis in panels[len(quantities) :]:
            axis.set_axis_off()
    return figure


def metrics_files(path) -> list[Path]:
    """The metrics.jsonl that `path` is or holds, oldest first; see `curves`."""
    path = Path(path)
    if path.is_file():
        return [path]
    files = {*path.glob("metrics.jsonl"), *path.glob("*/metrics.jsonl")}
    return sorted(files, key=lambda file: (file.stat().st_mtime, file))


def png_bytes(figure: Figure, *, dpi: float = 150, transparent: bool = False) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent)
    return buffer.getvalue()


# -- panels of a pair


def _draw_moving(axis, view: PairView) -> None:
    _show(axis, view.moving, view.aspect, vmax=view.window)
    _lines(axis, view.fixed_lines, FIXED_COLOUR, width=0.9, style=(0, (2, 1.6)))
    _lines(axis, view.moving_lines, MOVING_COLOUR)


def _draw_fixed(axis, view: PairView) -> None:
    _show(axis, view.fixed, view.aspect, vmax=view.window)
    _lines(axis, view.fixed_lines, FIXED_COLOUR)


def _draw_warped(axis, view: PairView) -> None:
    _show(axis, view.warped, view.aspect, vmax=view.window)
    _lines(axis, view.fixed_lines, FIXED_COLOUR)
    _lines(axis, view.warped_lines, MOVING_COLOUR)


def _draw_difference(axis, view: PairView, difference, limit: float | None = None) -> None:
    limit = view.difference_limit if limit is None else limit
    _show(axis, difference, view.aspect, cmap=DIFFERENCE_MAP, vmax=limit, interpolation="nearest")


def _draw_grid(axis, view: PairView, norm: Normalize | None = None) -> None:
    _show(axis, view.fixed, view.aspect, vmax=1.8 * view.window)
    segments = [s for line in view.grid for s in np.stack([line[:-1], line[1:]], axis=1)]
    if not segments:
        return
    segments = np.asarray(segments)
    axis.add_collection(
        LineCollection(
            segments[..., ::-1],
            array=sample(view.magnitude, segments.mean(axis=1)),
            cmap=MOTION_MAP,
            norm=norm or _motion_norm(view),
            linewidths=0.8,
            capstyle="round",
        ),
        autolim=False,
    )


def _draw_jacobian(axis, view: PairView) -> None:
    folded = np.ma.masked_less_equal(view.jacobian, 0)
    _show(axis, folded, view.aspect, cmap=JACOBIAN_MAP, norm=JACOBIAN_NORM, interpolation="nearest")
    _lines(axis, view.fixed_lines, "#0f172a", width=0.7, halo=False)


def _draw_scores(axis, view, moving_mask, fixed_mask, labels, spacing) -> None:
    """The key of the colours and the numbers of this pair, before and after."""
    axis.axis("off")
    rows = _score_rows(view, moving_mask, fixed_mask, labels, spacing)
    handles = _legend_handles(
        outlines=bool(view.moving_lines or view.fixed_lines), folds=(view.jacobian <= 0).any()
    )
    if handles:
        axis.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 0),
            borderaxespad=0,
            frameon=False,
            fontsize=8.5,
            handlelength=1.6,
        )
    for x, text in ((0.72, "before"), (1.0, "after")):
        axis.text(x, 1.0, text, ha="right", va="top", fontsize=8.5, color="#64748b")
    step = min(0.085, (0.92 - 0.075 * len(handles)) / len(rows))
    for i, (name, before, after) in enumerate(rows, start=1):
        y = 1.0 - i * step - 0.02
        axis.text(0.0, y, name, va="top", fontsize=8.5)
        axis.text(0.72, y, before, ha="right", va="top", fontsize=8.5, color="#64748b")
        axis.text(1.0, y, after, ha="right", va="top", fontsize=8.5, fontweight="bold")
    axis.set(xlim=(0, 1), ylim=(0, 1))


def _score_rows(view, moving_mask, fixed_mask, labels, spacing) -> list[tuple[str, str, str]]:
    rows = []
    if moving_mask is not None and fixed_mask is not None:
        moving_mask, fixed_mask = np.asarray(moving_mask), np.asarray(fixed_mask)
        if labels is None:
            labels = {int(k): f"label {k}" for k in np.unique(fixed_mask) if k != 0}
        warped_mask = np.asarray(
            warp(
                moving_mask.reshape(1, *view.moving.shape, 1),
                view.displacement[None],
                interpolation="nearest",
            )
        )[0]
        before = metrics.dice(moving_mask, fixed_mask, labels)
        after = metrics.dice(warped_mask, fixed_mask, labels)
        for label, name in labels.items():
            rows.append((f"DSC {name}", _number(before[label], 3), _number(after[label], 3)))
        unit, spacing = ("px", (1, 1)) if spacing is None else ("mm", spacing)
        before = metrics.hd95(moving_mask, fixed_mask, labels, spacing)
        after = metrics.hd95(warped_mask, fixed_mask, labels, spacing)
        for label, name in labels.items():
            row = (f"HD95 {name}, {unit}", _number(before[label], 1), _number(after[label], 1))
            rows.append(row)
    root_before = float(np.sqrt(np.mean(view.difference_before**2)))
    root_after = float(np.sqrt(np.mean(view.difference_after**2)))
    rows.append(("RMS difference", _number(root_before, 3), _number(root_after, 3)))
    folds = metrics.nonpositive_jacobian_percent(view.displacement)
    rows.append(("Folding J ≤ 0, %", "", _number(folds, 2)))
    rows.append(("SD of log J", "", _number(metrics.sd_log_jacobian(view.displacement).value, 3)))
    rows.append(("Largest |u|, px", "", _number(float(view.magnitude.max()), 1)))
    return rows


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def sample(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values `[H, W]` at the pixels nearest to `points` `[N, 2]` (row, column)."""
    row, column = np.rint(points).astype(int).T
    return values[row.clip(0, values.shape[0] - 1), column.clip(0, values.shape[1] - 1)]


def _motion_norm(view: PairView) -> Normalize:
    """0 to the largest displacement, at least 1 px so that a small one looks small."""
    return Normalize(0, max(float(view.magnitude.max()), 1.0))


def _legend_handles(*, outlines: bool, folds: bool) -> list:
    handles = []
    if outlines:
        dashed = {"linestyle": (0, (2, 1.6)), "color": FIXED_COLOUR}
        handles += [
            Line2D([], [], color=MOVING_COLOUR, label="moving, then warped outline"),
            Line2D([], [], color=FIXED_COLOUR, label="fixed outline"),
            Line2D([], [], **dashed, label="fixed outline on the moving image"),
        ]
    if folds:
        handles.append(Patch(facecolor=FOLD_COLOUR, label="folding, J ≤ 0"))
    return handles


def _show(axis, image, aspect, *, cmap="gray", interpolation="bilinear", **scale) -> None:
    if "norm" not in scale:
        scale = {"vmin": 0.0, "vmax": 1.0} | scale
    axis.imshow(image, cmap=cmap, interpolation=interpolation, aspect=aspect, **scale)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _lines(axis, lines, colour, *, width=1.2, style="solid", halo=True) -> None:
    """Outlines; a dark halo keeps them readable on bright tissue."""
    points = [line[:, ::-1] for line in lines]
    if halo:
        under = LineCollection(points, colors="black", linewidths=width + 1.0, alpha=0.45)
        axis.add_collection(under, autolim=False)
    over = LineCollection(points, colors=colour, linewidths=width, linestyles=[style])
    axis.add_collection(over, autolim=False)


def _bar(axis, cmap, norm, label, **options):
    inset = axis.inset_axes([0.0, -0.055, 1.0, 0.03])
    mappable = ScalarMappable(norm, cmap)
    bar = axis.figure.colorbar(mappable, cax=inset, orientation="horizontal", **options)
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.outline.set_visible(False)
    inset.tick_params(labelsize=7.5, length=2, pad=1.5)
    if not options:
        inset.xaxis.set_major_locator(MaxNLocator(4))
    return inset


def _jacobian_bar(axis) -> None:
    inset = _bar(axis, JACOBIAN_MAP, JACOBIAN_NORM, "tissue expands  ·  J  ·  contracts", ticks=[])
    inset.xaxis.set_major_locator(FixedLocator(JACOBIAN_TICKS))
    inset.xaxis.set_minor_locator(NullLocator())
    inset.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


# -- plots


def _plot_figure(size, dark):
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axis = figure.subplots()
    _style(figure, axis, dark)
    return figure, axis


def _text_colour(dark) -> str:
    return "#e2e8f0" if dark else "#1e293b"


def _style(figure, axis, dark) -> None:
    text, faint = _text_colour(dark), "#334155" if dark else "#e2e8f0"
    figure.patch.set_facecolor("#0f172a" if dark else "white")
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(faint)
    axis.tick_params(colors=text, labelsize=8)
    axis.xaxis.label.set(color=text, fontsize=9)
    axis.yaxis.label.set(color=text, fontsize=9)
    axis.grid(axis="y", color=faint, linewidth=0.7)
    axis.set_axisbelow(True)


def _box(axis, position, values, colour) -> None:
    line = {"color": colour, "linewidth": 1.3}
    axis.boxplot(
        [values],
        positions=[position],
        widths=0.52,
        showfliers=False,
        showmeans=True,
        meanline=True,
        patch_artist=True,
        boxprops={"facecolor": (colour, 0.28), "edgecolor": colour, "linewidth": 1.3},
        medianprops=line | {"linewidth": 2.2},
        meanprops=line | {"linestyle": (0, (1.5, 1.2))},
        whiskerprops=line,
        capprops=line,
        manage_ticks=False,
    )
    # jitter that depends on the rank only: the same figure every time
    jitter = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.34
    order = np.argsort(values, kind="stable")
    alpha = 0.65 if len(values) < 200 else 0.3
    axis.scatter(
        position + jitter, values[order], s=9, color=colour, alpha=alpha, linewidths=0, zorder=3
    )


def _read_metrics(path: Path) -> dict[str, dict[str, tuple[list, list]]]:
    """quantity -> {"training" or "validation": (steps, values)} of one stage, in file order."""
    lines = path.read_text().split("\n")
    quantities: dict[str, dict[str, tuple[list, list]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # a line without its end: the process was killed while writing
                continue
            found = f"{path}:{number}: found {line[:80]!r}, expected a JSON object with a step"
            raise ValueError(found) from error
        for name, value in record.items():
            if value is None or isinstance(value, int | float):
                kind, _, quantity = name.rpartition("/")
                kind = kind or "training"
                steps, values = quantities.setdefault(quantity, {}).setdefault(kind, ([], []))
                steps.append(step)
                values.append(math.nan if value is None else value)
    return quantities


def _draw_curve(axis, lines, dark) -> None:
    palette = _DARK_SERIES if dark else _SERIES
    for colour, (kind, (steps, values)) in zip(palette * len(lines), lines.items(), strict=False):
        values = np.asarray(values, np.float64)
        marker = "o" if len(values) < 30 else None
        if len(values) >= 100:  # noisy: the values pale, their running median on top
            axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            values = _running_median(values, len(values) // 50 * 2 + 1)
        axis.plot(steps, values, color=colour, linewidth=1.4, marker=marker, ms=2.5, label=kind)
    finite = np.concatenate([np.asarray(values, np.float64) for _, values in lines.values()])
    finite = finite[np.isfinite(finite)]
    if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    )
    if len(lines) > 1:
        colour = _text_colour(dark)
        axis.legend(fontsize=7.5, frameon=False, labelcolor=colour, handlelength=1.4)


def _running_median(values, width):
    padded = np.pad(values, width // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    missing = np.isnan(windows).all(axis=1)
    median = np.full(len(values), np.nan)
    median[~missing] = np.nanmedian(windows[~missing], axis=1)
    return median
