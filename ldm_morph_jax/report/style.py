"""Colours that mean the same everywhere, and how plots look on a light and on a dark page.

Amber is the moving image and what became of it, cyan is the fixed image, green is folding. Lines of
a plot have the colours of Okabe and Ito (Color Universal Design, 2008), which the colour-blind can
tell apart, and differ in their dashes, too.
Figures are matplotlib's objects: no pyplot, no global state, any thread.
"""

import io
import math

from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

MOVING_COLOUR = "#ffb000"
FIXED_COLOUR = "#22d3ee"
FOLD_COLOUR = "#35e000"
MOTION_MAP = LinearSegmentedColormap.from_list(
    "motion", ["#b6c2d1", "#fde047", "#f97316", "#e11d48"]
)
DIFFERENCE_MAP = colormaps["inferno"]
JACOBIAN_MAP = colormaps["RdBu_r"].with_extremes(bad=FOLD_COLOUR)
JACOBIAN_NORM = LogNorm(1 / 3, 3, clip=True)

BEFORE_COLOUR = "#9aa5b1"


# as SVG's stroke-dasharray and for matplotlib, one for each of `series_colours`
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2 1 2")


def series_colours(dark: bool) -> tuple[str, ...]:
    """Colours of lines and boxes, in the order in which they are used."""
    if dark:
        return "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#e2e8f0"
    return "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#1e293b"


def line_style(index: int):
    """matplotlib's line style of a plot's line."""
    dashes = DASHES[index % len(DASHES)]
    return (0, tuple(map(float, dashes.split()))) if dashes else "solid"


def text_colour(dark: bool) -> str:
    return "#e2e8f0" if dark else "#1e293b"


def style_axis(axis, dark: bool) -> None:
    """A plain plot: no frame at the top and right, faint horizontal lines."""
    text, faint = text_colour(dark), "#334155" if dark else "#e2e8f0"
    axis.figure.patch.set_facecolor("#0f172a" if dark else "white")
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(faint)
    axis.tick_params(colors=text, labelsize=8)
    axis.xaxis.label.set(color=text, fontsize=9)
    axis.yaxis.label.set(color=text, fontsize=9)
    axis.grid(axis="y", color=faint, linewidth=0.7)
    axis.set_axisbelow(True)


def number(value: float | None, digits: int) -> str:
    """A number as tables show it, a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def fixed(value: float | None, digits: int) -> str:
    """As `number`, but never "-0.0"; a dash for infinity, too."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def png_bytes(figure: Figure, *, dpi: float = 150, transparent: bool = False) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent)
    return buffer.getvalue()
