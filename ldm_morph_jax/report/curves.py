"""Training curves."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ldm_morph_jax.report.style import series_colours, style_axis, text_colour

# stage -> quantity -> "training" or "validation" -> (steps, values)
Curves = Mapping[str, Mapping[str, Mapping[str, tuple[list, list]]]]


def curves_figure(curves: Curves, *, dark: bool = False) -> Figure:
    """One row of panels per stage, one panel per quantity, training and validation in one.

    Axes are logarithmic where a quantity is positive and spans more than a factor of 20. NaN are
    gaps.

    Args:
        curves: what `runs.metrics.read_curves` reads of a run; not empty.
        dark: light text for a dark page.
    """
    stages = {name: quantities for name, quantities in curves.items() if quantities}
    if not stages:
        raise ValueError("curves: found nothing to draw, expected stage -> quantity -> values")
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
            style_axis(axis, dark)
            axis.set_title(name, loc="left", fontsize=8.5, color=text_colour(dark))
        for axis in panels[len(quantities) :]:
            axis.set_axis_off()
    return figure


def _draw_curve(axis, lines, dark) -> None:
    palette = series_colours(dark)
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
        colour = text_colour(dark)
        axis.legend(fontsize=7.5, frameon=False, labelcolor=colour, handlelength=1.4)


def _running_median(values, width):
    padded = np.pad(values, width // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    missing = np.isnan(windows).all(axis=1)
    median = np.full(len(values), np.nan)
    median[~missing] = np.nanmedian(windows[~missing], axis=1)
    return median
