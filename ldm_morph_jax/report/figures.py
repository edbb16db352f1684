"""Pictures of registered pairs, and grids of images."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ldm_morph_jax.report.panels import (
    colour_bar,
    draw_difference,
    draw_fixed,
    draw_grid,
    draw_moving,
    draw_pair,
    draw_scores,
    draw_warped,
    jacobian_bar,
    legend_handles,
    show,
)
from ldm_morph_jax.report.style import DIFFERENCE_MAP, MOTION_MAP
from ldm_morph_jax.report.views import PairView, pair_view


def pair_figure(
    moving,
    fixed,
    displacement,
    *,
    labels: Mapping[int, str] | None = None,
    title: str = "",
    **more,
) -> Figure:
    """Everything about one registration on one page.

    Moving, fixed and warped image with outlines, scores; |difference| before and after on one
    scale, the deformed grid (see `deformed_grid_lines`) and the Jacobian determinant with folds in
    green. The three images share one window for display, see `PairView.window`.

    Args:
        moving, fixed, displacement: see `pair_view`.
        labels: label -> name of the structures to outline and score; None for all but 0.
        title: e.g. the id of the pair.
        more: arguments of `pair_view`; HD95 is in mm where there is a spacing.
    """
    view = pair_view(moving, fixed, displacement, labels=labels, **more)
    masks = more.get("moving_mask"), more.get("fixed_mask")
    height = 2.6 * view.aspect * view.moving.shape[0] / view.moving.shape[1]
    top = 0.32 + 0.34 * bool(title)
    figure, axes = _panels(
        2,
        4,
        (2.6, height),
        top=top,
        bottom=0.5,
        left=0.13,
        right=0.13,
        gap=(0.12, 0.4),
        dpi=150,
    )
    draw_pair([*axes[0, :3], *axes[1]], view)
    draw_scores(axes[0, 3], view, *masks, labels, more.get("spacing"))
    titles = ("Moving", "Fixed", "Warped moving", None)
    titles += ("|difference| before", "|difference| after", "Deformed grid", "Jacobian determinant")
    for axis, name in zip(axes.flat, titles, strict=True):
        axis.set_title(name, fontsize=10, fontweight="bold", loc="left", pad=5)
    for axis in axes[1, :2]:
        colour_bar(axis, DIFFERENCE_MAP, Normalize(0, view.difference_limit), "intensity")
    colour_bar(axes[1, 2], MOTION_MAP, Normalize(0, view.motion_limit), "displacement, px")
    jacobian_bar(axes[1, 3])
    _title(figure, title, 0.13)
    return figure


def pairs_sheet(
    moving,
    fixed,
    displacement,
    *,
    labels: Mapping[int, str] | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
    **more,
) -> Figure:
    """Several registered pairs, one row each, in the columns of `pair_figure`.

    Args:
        moving, fixed: `[B, H, W, 1]` in [0, 1].
        displacement: `[B, H, W, 2]`, pixels, pull-back.
        labels: label -> name of the structures to outline; None for all but 0.
        captions: one text per pair, left of its row.
        title: text above.
        more: arguments of `pair_view`, each with an entry for every pair, or None.
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
            labels=labels,
            **{name: None if value is None else value[i] for name, value in more.items()},
        )
        for i in range(count)
    ]
    view = views[0]
    height = 1.75 * view.aspect * view.moving.shape[0] / view.moving.shape[1]
    top, bottom, left = 0.28 + 0.3 * bool(title), 0.62, 0.03 + 0.38 * (captions is not None)
    figure, axes = _panels(count, 7, (1.75, height), top=top, bottom=bottom, left=left, right=0.03)
    for row, view in zip(axes, views, strict=True):
        draw_pair(row, view)
    titles = ("Moving", "Fixed", "Warped", "|difference| before", "after", "Grid", "Jacobian")
    for axis, name in zip(axes[0], titles, strict=True):
        axis.set_title(name, fontsize=9.5, fontweight="bold", pad=4)
    for axis, caption in zip(axes[:, 0], captions or (), strict=False):
        axis.set_ylabel(caption, fontsize=8, labelpad=5)
    jacobian_bar(axes[-1, 6])
    handles = legend_handles(
        outlines=any(view.moving_lines or view.fixed_lines for view in views),
        folds=any((view.jacobian <= 0).any() for view in views),
    )
    if handles:
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=np.array([left, 0.12]) / figure.get_size_inches(),
            borderaxespad=0,
            ncols=len(handles),
            fontsize=8.5,
            frameon=False,
            handlelength=1.6,
        )
    _title(figure, title, left)
    return figure


def methods_sheet(
    views: Mapping[str, PairView], *, captions: Mapping[str, str], title: str
) -> Figure:
    """One pair under several methods, a column each: warped, |difference| to fixed, deformed grid.

    The first column is the pair itself: moving, |difference| before, fixed. All differences share
    one scale, and so do all grids.

    Args:
        views: name of a method -> the pair as it registered it.
        captions: name of a method -> text below its name, e.g. its scores.
        title: text above.
    """
    pair = next(iter(views.values()))
    limit = max(view.difference_limit for view in views.values())
    norm = Normalize(0, max(view.motion_limit for view in views.values()))
    width, columns = 1.6, 1 + len(views)
    height = width * pair.aspect * pair.moving.shape[0] / pair.moving.shape[1]
    left = 0.24
    figure, axes = _panels(
        3, columns, (width, height), top=0.76, bottom=0.45, left=left, right=0.03
    )
    draw_moving(axes[0, 0], pair)
    draw_difference(axes[1, 0], pair, pair.difference_before, limit)
    draw_fixed(axes[2, 0], pair)
    for (name, view), column in zip(views.items(), axes[:, 1:].T, strict=True):
        draw_warped(column[0], view)
        draw_difference(column[1], view, view.difference_after, limit)
        draw_grid(column[2], view, norm)
        # `name` is bold, the line below it is not: two texts
        column[0].set_title(f"{name}\n", fontsize=9, fontweight="bold", pad=4)
        column[0].text(
            *(0.5, 1.0),
            captions[name],
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
    colour_bar(axes[2, -1], MOTION_MAP, norm, "displacement, px")
    colour_bar(axes[2, 0], DIFFERENCE_MAP, Normalize(0, limit), "|difference|")
    _title(figure, title, left)
    return figure


def image_grid(
    images,
    *,
    columns: int = 8,
    row_names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Images in reading order. For reconstructions, concatenate inputs and outputs, name the rows.

    Args:
        images: `[N, H, W, 1]` in [0, 1], N > 0; of volumes `[N, D, H, W, 1]` the middle planes.
        columns: images per row.
        row_names: names of the first rows, left of them.
        title: text above.
    """
    images = np.asarray(images, np.float32)
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    if images.ndim != 4 or images.shape[-1] != 1 or not len(images):
        raise ValueError(f"images: found shape {images.shape}, expected [N, H, W, 1] with N > 0")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = 1.3 * images.shape[1] / images.shape[2]
    top, left = 0.34 if title else 0.04, 0.28 if row_names else 0.04
    figure, axes = _panels(
        rows, columns, (1.3, height), top=top, bottom=0.04, left=left, right=0.04
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.axis("on")
        show(axis, image[..., 0], 1.0, vmin=0, vmax=1)
    for axis, name in zip(axes[:, 0], row_names, strict=False):
        axis.set_ylabel(name, fontsize=8.5, labelpad=4)
    _title(figure, title, left, size=11)
    return figure


def _panels(rows, columns, size, *, top, bottom, left, right, gap=(0.05, 0.05), dpi=120):
    """A figure of `rows` x `columns` panels of one size; all lengths (width, height) in inches."""
    width = columns * size[0] + (columns - 1) * gap[0] + left + right
    height = rows * size[1] + (rows - 1) * gap[1] + top + bottom
    figure = Figure(figsize=(width, height), dpi=dpi)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap[0] / size[0],
        hspace=gap[1] / size[1],
    )
    return figure, axes


def _title(figure, title: str, left: float, size: float = 12) -> None:
    """Text at the upper left, `left` inches from the side."""
    if title:
        width, height = figure.get_size_inches()
        figure.text(
            left / width, 1 - 0.1 / height, title, fontsize=size, fontweight="bold", va="top"
        )
