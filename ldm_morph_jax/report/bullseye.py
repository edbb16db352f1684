"""The bull's-eye of the left ventricle's segments, as a figure and as SVG for a page.

The ring outside is the base, the anterior wall is above and the septum on the left (Cerqueira et
al., Circulation 105:539, 2002). Segments that are not to be trusted are hatched, those without a
value are grey. Red is below zero (shortening), blue above: a scale that the colour-blind can read.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from ldm_morph_jax.report.style import fixed, text_colour

COLOURS = colormaps["RdBu"]
_MISSING = "#cbd5e1"
_EDGE = "#475569"


class Part(NamedTuple):
    """A segment in the drawing: radii as shares of the whole, angles in degrees from the right,
    anticlockwise."""

    number: int
    inner: float
    outer: float
    start: float
    end: float

    @property
    def middle(self) -> tuple[float, float]:
        """Where its number stands, (right, up)."""
        if self.end - self.start >= 360:
            return 0.0, 0.0
        angle, radius = np.radians((self.start + self.end) / 2), (self.inner + self.outer) / 2
        return float(radius * np.cos(angle)), float(radius * np.sin(angle))


def parts(count: int) -> list[Part]:
    """The places of 16 or 17 segments; ValueError for any other number."""
    if count not in (16, 17):
        raise ValueError(f"values: found {count} segments, expected 16 or 17")
    cap = 0.22 if count == 17 else 0.0
    edges = np.linspace(1, cap, 4)
    rings = ((6, 1, edges[1], edges[0]), (6, 7, edges[2], edges[1]), (4, 13, cap, edges[2]))
    parts = []
    for number, first, inner, outer in rings:
        width = 360 / number
        for k in range(number):
            start = 90 - width / 2 + k * width  # the anterior one above, then to the septum
            parts.append(Part(first + k, float(inner), float(outer), start, start + width))
    return parts + [Part(17, 0.0, cap, 0.0, 360.0)] * (count == 17)


def bullseye_figure(
    values: Sequence[float],
    *,
    title: str,
    unit: str,
    limit: float,
    trusted: Sequence[bool] | None = None,
) -> Figure:
    """Draw values of segments 1 to 16 or 17.

    Args:
        values: one for each segment, in `unit`; NaN where there is none.
        title, unit: what they are.
        limit: of the colours, from -limit to limit.
        trusted: False for segments to be hatched.
    """
    figure = Figure(figsize=(3.6, 3.4), layout="constrained", dpi=150)
    figure.patch.set_facecolor("white")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
    for part, value, colour, trust in _drawn(values, limit, trusted):
        axis.add_patch(
            Wedge(
                (0, 0),
                part.outer,
                part.start,
                part.end,
                width=part.outer - part.inner,
                facecolor=colour,
                edgecolor=_EDGE,
                linewidth=0.8,
                hatch=None if trust else "////",
            )
        )
        box = None if trust else {"facecolor": colour, "edgecolor": "none", "pad": 1}
        axis.text(
            *part.middle,
            _text(value),
            ha="center",
            va="center",
            fontsize=8,
            color=_on(colour),
            bbox=box,
        )
    text = text_colour(dark=False)
    axis.set_title(title, fontsize=9.5, color=text)
    scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = figure.colorbar(scale, ax=axis, orientation="horizontal", fraction=0.06, pad=0.02)
    bar.set_label(unit, color=text, fontsize=8)
    bar.ax.tick_params(colors=text, labelsize=8)
    return figure


def bullseye_svg(
    values: Sequence[float],
    *,
    title: str,
    unit: str,
    limit: float,
    names: Sequence[str],
    trusted: Sequence[bool] | None = None,
    key: str = "bullseye",
) -> str:
    """The same as an SVG element that needs nothing else and takes the page's text colour.

    `names` are those of the segments, shown on hovering; `key` begins its ids, and must differ
    between two on one page.
    """
    shapes, labels = [], []
    for part, value, colour, trust in _drawn(values, limit, trusted):
        name = names[part.number - 1]
        tooltip = f"{name}: {_text(value)} {unit}" + ("" if trust else ", not to be trusted")
        path = _path(part)
        shapes.append(
            f'<path d="{path}" fill="{colour}" stroke="{_EDGE}">'
            f"<title>{escape(tooltip)}</title></path>"
        )
        halo = ""
        if not trust:
            shapes.append(f'<path d="{path}" fill="url(#{key}-hatch)" pointer-events="none"/>')
            halo = f' stroke="{colour}" stroke-width="4" paint-order="stroke"'
        x, y = part.middle
        labels.append(
            f'<text x="{100 * x:.1f}" y="{-100 * y:.1f}" fill="{_on(colour)}"{halo}>'
            f"{_text(value)}</text>"
        )
    stops = "".join(
        f'<stop offset="{share:.1f}" stop-color="{to_hex(COLOURS(share))}"/>'
        for share in np.linspace(0, 1, 11)
    )
    ticks = "".join(
        f'<text x="{x}" y="137" fill="currentColor">{value:g}</text>'
        for x, value in ((-80, -limit), (0, 0), (80, limit))
    )
    return (
        f'<svg viewBox="-104 -124 208 278" role="img" aria-label="{escape(title)}" '
        'font-family="inherit" font-size="10" text-anchor="middle" dominant-baseline="central">'
        f'<defs><linearGradient id="{key}-bar">{stops}</linearGradient>'
        f'<pattern id="{key}-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0V5" stroke="#0f172a" stroke-width="1.6"/>'
        "</pattern></defs>"
        f'<text y="-115" font-size="11" fill="currentColor">{escape(title)}</text>'
        f"{''.join(shapes)}<g>{''.join(labels)}</g>"
        f'<rect x="-80" y="112" width="160" height="12" fill="url(#{key}-bar)"/>{ticks}'
        f'<text y="149" fill="currentColor">{escape(unit)}</text></svg>'
    )


def _drawn(values, limit, trusted):
    """(part, value, colour, trusted) of every segment."""
    values = np.asarray(values, np.float64)
    if not limit > 0:
        raise ValueError(f"limit: found {limit}, expected a positive number")
    trusted = [True] * len(values) if trusted is None else list(trusted)
    if len(trusted) != len(values):
        raise ValueError(f"trusted: found {len(trusted)}, expected {len(values)}")
    for part, value, trust in zip(parts(len(values)), values, trusted, strict=True):
        share = np.clip((value / limit + 1) / 2, 0, 1)
        colour = to_hex(COLOURS(share)) if np.isfinite(value) else _MISSING
        yield part, value, colour, bool(trust)


def _text(value: float) -> str:
    return fixed(value, 0 if abs(value) >= 100 else 1)


def _on(colour: str) -> str:
    """Black or white, whichever is read better on a colour (relative luminance of WCAG 2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "#000000" if luminance > 0.179 else "#ffffff"


def _path(part: Part) -> str:
    def at(radius, degrees):
        angle = np.radians(degrees)
        return f"{100 * radius * np.cos(angle):.2f} {-100 * radius * np.sin(angle):.2f}"

    if part.end - part.start >= 360:
        r = 100 * part.outer
        return f"M{r:.2f} 0A{r:.2f} {r:.2f} 0 1 0 {-r:.2f} 0A{r:.2f} {r:.2f} 0 1 0 {r:.2f} 0Z"
    outer, inner = 100 * part.outer, 100 * part.inner
    return (
        f"M{at(part.outer, part.start)}A{outer:.2f} {outer:.2f} 0 0 0 {at(part.outer, part.end)}"
        f"L{at(part.inner, part.end)}A{inner:.2f} {inner:.2f} 0 0 1 {at(part.inner, part.start)}Z"
    )
