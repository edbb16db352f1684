"""The single panels that figures of registered pairs are made of."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ldm_morph_jax.ops import metrics
from ldm_morph_jax.report.style import (
    DIFFERENCE_MAP,
    FIXED_COLOUR,
    FOLD_COLOUR,
    JACOBIAN_MAP,
    JACOBIAN_NORM,
    MOTION_MAP,
    MOVING_COLOUR,
    number,
)
from ldm_morph_jax.report.views import PairView, warp_labels

JACOBIAN_TICKS = (0.5, 1.0, 2.0)


def draw_pair(axes, view: PairView) -> None:
    """Moving, fixed, warped, the difference before and after, grid, Jacobian: an axis each."""
    moving, fixed, warped, before, after, grid, jacobian = axes
    draw_moving(moving, view)
    draw_fixed(fixed, view)
    draw_warped(warped, view)
    draw_difference(before, view, view.difference_before)
    draw_difference(after, view, view.difference_after)
    draw_grid(grid, view)
    draw_jacobian(jacobian, view)


def draw_moving(axis, view: PairView) -> None:
    show(axis, view.moving, view.aspect, vmax=view.window)
    draw_lines(axis, view.fixed_lines, FIXED_COLOUR, width=0.9, style=(0, (2, 1.6)))
    draw_lines(axis, view.moving_lines, MOVING_COLOUR)


def draw_fixed(axis, view: PairView) -> None:
    show(axis, view.fixed, view.aspect, vmax=view.window)
    draw_lines(axis, view.fixed_lines, FIXED_COLOUR)


def draw_warped(axis, view: PairView) -> None:
    show(axis, view.warped, view.aspect, vmax=view.window)
    draw_lines(axis, view.fixed_lines, FIXED_COLOUR)
    draw_lines(axis, view.warped_lines, MOVING_COLOUR)


def draw_difference(axis, view: PairView, difference, limit: float | None = None) -> None:
    limit = view.difference_limit if limit is None else limit
    show(axis, difference, view.aspect, cmap=DIFFERENCE_MAP, vmax=limit, interpolation="nearest")


def draw_grid(axis, view: PairView, norm: Normalize | None = None) -> None:
    show(axis, view.fixed, view.aspect, vmax=1.8 * view.window)
    segments = [s for line in view.grid for s in np.stack([line[:-1], line[1:]], axis=1)]
    if not segments:
        return
    segments = np.asarray(segments)
    axis.add_collection(
        LineCollection(
            segments[..., ::-1],
            array=view.magnitude_at(segments.mean(axis=1)),
            cmap=MOTION_MAP,
            norm=norm or Normalize(0, view.motion_limit),
            linewidths=0.8,
            capstyle="round",
        ),
        autolim=False,
    )


def draw_jacobian(axis, view: PairView) -> None:
    folded = np.ma.masked_less_equal(view.jacobian, 0)
    show(axis, folded, view.aspect, cmap=JACOBIAN_MAP, norm=JACOBIAN_NORM, interpolation="nearest")
    draw_lines(axis, view.fixed_lines, "#0f172a", width=0.7, halo=False)


def draw_scores(axis, view, moving_mask, fixed_mask, labels, spacing) -> None:
    """The key of the colours and the numbers of this pair, before and after."""
    axis.axis("off")
    rows = _score_rows(view, moving_mask, fixed_mask, labels, spacing)
    handles = legend_handles(
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
            present = np.union1d(moving_mask, fixed_mask)
            labels = {int(k): f"label {k}" for k in present if k != 0}
        moving_mask = moving_mask.reshape(view.moving.shape)
        fixed_mask = fixed_mask.reshape(view.moving.shape)
        warped_mask = warp_labels(moving_mask, view.displacement)
        before = metrics.dice(moving_mask, fixed_mask, labels)
        after = metrics.dice(warped_mask, fixed_mask, labels)
        for label, name in labels.items():
            rows.append((f"DSC {name}", number(before[label], 3), number(after[label], 3)))
        unit, spacing = ("px", (1, 1)) if spacing is None else ("mm", spacing)
        before = metrics.hd95(moving_mask, fixed_mask, labels, spacing)
        after = metrics.hd95(warped_mask, fixed_mask, labels, spacing)
        for label, name in labels.items():
            row = (f"HD95 {name}, {unit}", number(before[label], 1), number(after[label], 1))
            rows.append(row)
    root_before = float(np.sqrt(np.mean(view.difference_before**2)))
    root_after = float(np.sqrt(np.mean(view.difference_after**2)))
    rows.append(("RMS difference", number(root_before, 3), number(root_after, 3)))
    folds = metrics.nonpositive_jacobian_percent(view.displacement)
    rows.append(("Folding J ≤ 0, %", "", number(folds, 2)))
    rows.append(("SD of log J", "", number(metrics.sd_log_jacobian(view.displacement).value, 3)))
    rows.append(("Largest |u|, px", "", number(float(view.magnitude.max()), 1)))
    return rows


def legend_handles(*, outlines: bool, folds: bool) -> list:
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


def show(axis, image, aspect, *, cmap="gray", interpolation="bilinear", **scale) -> None:
    if "norm" not in scale:
        scale = {"vmin": 0.0, "vmax": 1.0} | scale
    axis.imshow(image, cmap=cmap, interpolation=interpolation, aspect=aspect, **scale)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_lines(axis, lines, colour, *, width=1.2, style="solid", halo=True) -> None:
    """Outlines; a dark halo keeps them readable on bright tissue."""
    points = [line[:, ::-1] for line in lines]
    if halo:
        under = LineCollection(points, colors="black", linewidths=width + 1.0, alpha=0.45)
        axis.add_collection(under, autolim=False)
    over = LineCollection(points, colors=colour, linewidths=width, linestyles=[style])
    axis.add_collection(over, autolim=False)


def colour_bar(axis, cmap, norm, label, **options):
    inset = axis.inset_axes([0.0, -0.055, 1.0, 0.03])
    mappable = ScalarMappable(norm, cmap)
    bar = axis.figure.colorbar(mappable, cax=inset, orientation="horizontal", **options)
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.outline.set_visible(False)
    inset.tick_params(labelsize=7.5, length=2, pad=1.5)
    if not options:
        inset.xaxis.set_major_locator(MaxNLocator(4))
    return inset


def jacobian_bar(axis) -> None:
    inset = colour_bar(
        axis, JACOBIAN_MAP, JACOBIAN_NORM, "tissue expands  ·  J  ·  contracts", ticks=[]
    )
    inset.xaxis.set_major_locator(FixedLocator(JACOBIAN_TICKS))
    inset.xaxis.set_minor_locator(NullLocator())
    inset.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
