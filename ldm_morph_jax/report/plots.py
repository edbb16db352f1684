"""Plots of scores: distributions side by side, and scores over a setting."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ldm_morph_jax.report.style import BEFORE_COLOUR, series_colours, style_axis, text_colour
from ldm_morph_jax.report.tables import structure_columns


def box_plot(
    values_by_name: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]],
    *,
    ylabel: str,
    dark: bool = False,
) -> Figure:
    """Distributions side by side: quartile box, median, dotted mean, whiskers to 1.5 IQR, dots.

    Args:
        values_by_name: name -> values, or name -> {"before": values, "after": values} for boxes
            that belong together. NaN are left out and said so under the name.
        ylabel: quantity and unit.
        dark: light text for a dark page.
    """
    if not values_by_name:
        raise ValueError("values_by_name: found nothing to draw, expected name -> values")
    grouped = {
        name: dict(values) if isinstance(values, Mapping) else {"": values}
        for name, values in values_by_name.items()
    }
    series = list(dict.fromkeys(kind for group in grouped.values() for kind in group))
    palette = series_colours(dark)
    colours = dict(
        zip(series, [BEFORE_COLOUR, palette[0]] if len(series) == 2 else palette, strict=False)
    )
    boxes = sum(map(len, grouped.values()))
    figure = Figure(figsize=(max(3.6, 1.0 + 0.95 * boxes), 3.4), layout="constrained", dpi=150)
    axis = figure.subplots()
    style_axis(axis, dark)

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
            labelcolor=text_colour(dark),
        )
    return figure


def structures_plot(
    rows: Sequence[Mapping],
    labels: Mapping[int, str],
    *,
    before: str,
    after: str,
    ylabel: str,
    dark: bool = False,
) -> Figure:
    """`box_plot` of a score of every structure before and after registration.

    Args:
        rows: a mapping per pair, with "<before>_<structure>" and "<after>_<structure>".
        labels: label -> name of the structures.
        before, after: keys of the score, for example "dsc_initial" and "dsc".
        ylabel: quantity and unit.
        dark: light text for a dark page.
    """
    values = {
        labels[label]: {
            "before": [row[f"{before}_{column}"] for row in rows],
            "after": [row[f"{after}_{column}"] for row in rows],
        }
        for label, column in structure_columns(labels).items()
    }
    return box_plot(values, ylabel=ylabel, dark=dark)


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
    palette = series_colours(dark)
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for i, (line, (x, y)) in enumerate(lines.items()):
            colour = palette[i % len(palette)]
            axis.plot(
                x, y, color=colour, linewidth=1.6, marker="o", ms=4, label=line, clip_on=False
            )
        style_axis(axis, dark)
        axis.set(xlabel=xlabel, ylabel=name)
        if axis.get_ylim()[0] < 0 <= min(value for _, y in lines.values() for value in y):
            axis.set_ylim(bottom=0)  # a margin below zero looks as if there were such scores
    axes[0].legend(fontsize=8, frameon=False, labelcolor=text_colour(dark))
    return figure


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
