"""What `track` shows of a cine: curves.png, beat.gif and a page with a player.

The page needs nothing else, neither a network nor files beside it. A frame is a dict: image
`[H, W]` in [0, 1]; contours name -> `[N, 2]`, landmarks `[N, 2]` and grid, a list of polylines
`[N, 2]`, (row, column) in pixels; closed, whether contours are; strain `[H, W]`, NaN where there is
none, or None; spacing (row, column).
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ldm_morph_jax.report import page
from ldm_morph_jax.report.style import (
    FIXED_COLOUR,
    MOVING_COLOUR,
    png_bytes,
    series_colours,
    style_axis,
    text_colour,
)

__all__ = [
    "curve_groups",
    "curves_figure",
    "frame_page",
    "frame_picture",
    "png_bytes",
    "write_animation",
    "write_report",
]

STRAIN_LIMIT = 0.3
_STRAIN_MAP = colormaps["RdBu"]  # shortening red
_UNITS = {"mm2": "mm²", "px2": "px²", "px3": "px³", "ml": "mL"}
_PAGE_SIDE, _GIF_SIDE = 512, 384  # pixels, longer side
_SECTOR_COLOURS = ("#0e7490", "#d97706", "#7c3aed", "#be123c", "#4d7c0f", "#64748b")

Groups = Mapping[str, Mapping[str, np.ndarray]]


class Curve(Protocol):
    """What is drawn over time, a `registering.heart.Curve`."""

    quantity: str
    unit: str
    values: np.ndarray
    direction: str
    of_sector: bool
    label: str
    column: str


def curve_groups(curves: Iterable[Curve]) -> dict[str, dict[str, np.ndarray]]:
    """Title of a plot -> name of a line -> `[T]`."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for curve in curves:
        if curve.of_sector:
            title = f"{curve.direction} strain by sector"
        elif curve.direction:
            title = curve.quantity
        else:
            title = f"{curve.quantity}, {_UNITS.get(curve.unit, curve.unit)}"
        groups.setdefault(title, {})[curve.label] = np.asarray(curve.values, np.float64)
    return groups


def curves_figure(
    times: np.ndarray, groups: Groups, time_label: str, end_systole: int | None
) -> Figure:
    """One panel per group of curves over time; end-systole is a thin line."""
    figure = Figure(figsize=(4.2 * min(3, len(groups)), 2.9 * -(-len(groups) // 3)), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(-(-len(groups) // 3), min(3, len(groups)), squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, groups.items(), strict=False):
        style_axis(axis, dark=False)
        for name, colour in zip(lines, colours_of(lines), strict=True):
            axis.plot(times, lines[name], color=colour, linewidth=1.5, label=name)
        if end_systole is not None:
            axis.axvline(times[end_systole], color="#94a3b8", linewidth=0.8, linestyle=":")
        axis.set_xlabel(time_label)
        axis.set_title(title, loc="left", fontsize=9.5, color=text_colour(False))
        axis.legend(fontsize=7, frameon=False, labelcolor=text_colour(False))
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    return figure


def colours_of(lines: Mapping) -> Sequence[str]:
    """A colour for each line of a plot."""
    few = series_colours(dark=False)
    palette = few if len(lines) <= len(few) else _SECTOR_COLOURS
    return [palette[k % len(palette)] for k in range(len(lines))]


def frame_picture(frame: Mapping) -> Image.Image:
    """A frame with its contours and landmarks, pixels made square, for the animation."""
    grey = np.round(255 * frame["image"]).astype(np.uint8)
    scale = _scale(frame, _GIF_SIDE)
    size = tuple(round(n * s) for n, s in zip(grey.shape, scale, strict=True))
    picture = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    colours = {"endo": MOVING_COLOUR, "epi": FIXED_COLOUR}
    for name, points in frame["contours"].items():
        line = [tuple(((point + 0.5) * scale)[::-1]) for point in points]
        draw.line(line + line[:1] * frame["closed"], fill=colours[name], width=2)
    for point in frame["landmarks"]:
        row, column = (point + 0.5) * scale
        draw.ellipse((column - 3, row - 3, column + 3, row + 3), fill=MOVING_COLOUR)
    return picture.quantize(64, dither=Image.Dither.NONE)


def write_animation(path: Path, pictures: Iterator[Image.Image], seconds: np.ndarray) -> None:
    """An endless GIF at the speed of the heart; GIF counts in hundredths of a second."""
    steps = np.diff(seconds)
    milliseconds = [max(20, 10 * round(100 * s)) for s in (*steps, steps[-1])]
    next(pictures).save(
        path, save_all=True, append_images=pictures, duration=milliseconds, loop=0, format="GIF"
    )


def frame_page(frame: Mapping) -> dict:
    """A frame as the page embeds it: addresses of pictures and SVG paths."""
    grey = Image.fromarray(np.round(255 * frame["image"]).astype(np.uint8))
    if max(grey.size) > _PAGE_SIDE:
        grey.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    strain = frame["strain"]
    paths = {name: _path([points], frame["closed"]) for name, points in frame["contours"].items()}
    return {
        "image": _uri(grey, "JPEG", quality=88),
        "strain": "" if strain is None else _uri(_coloured(strain), "PNG"),
        "endo": paths.get("endo", ""),
        "epi": paths.get("epi", ""),
        "grid": _path(frame["grid"]),
        "landmarks": "".join(f"M{c + 0.5:.1f} {r + 0.5:.1f}h0" for r, c in frame["landmarks"]),
    }


def write_report(
    path: Path,
    *,
    frames: Iterable[Mapping],
    shape: tuple[int, int],
    spacing: tuple[float, float],
    times: np.ndarray,
    seconds: np.ndarray,
    time_label: str,
    curves: Sequence[Curve],
    strain_name: str,
    summary: Mapping,
) -> None:
    """report.html: the player, curves with a cursor, numbers.

    Args:
        path: where to.
        frames: what `frame_page` made of each.
        shape, spacing: of a frame, (rows, columns).
        times: `[T]`, as shown on the axes.
        seconds: `[T]`, for the speed of the player.
        time_label: quantity and unit of `times`.
        curves: what was measured.
        strain_name: of the strain that frames show.
        summary: the content of summary.json.
    """
    plots = [
        {
            "title": title,
            "lines": [
                {"name": name, "colour": colour, "values": _rounded(lines[name])}
                for name, colour in zip(lines, colours_of(lines), strict=True)
            ],
        }
        for title, lines in curve_groups(curves).items()
    ]
    height, width = shape
    frames = list(frames)
    text = page.render(
        "tracked.html",
        title=Path(summary["cine"]["file"]).name,
        subtitle=_subtitle(summary),
        notes=summary["notes"],
        rows=_rows(summary, curves),
        strain_rows=_strain_rows(summary, curves),
        box=f"0 0 {width} {height}",
        ratio=f"{width * spacing[1]:g} / {height * spacing[0]:g}",
        strain_name=strain_name,
        strain_limit=f"{100 * STRAIN_LIMIT:.0f} %",
        strain_gradient=_gradient(),
        moving_colour=MOVING_COLOUR,
        fixed_colour=FIXED_COLOUR,
        has_strain=bool(frames[0]["strain"]),
        has_contours=bool(frames[0]["endo"] or frames[0]["landmarks"]),
        data={
            "frames": frames,
            "times": _rounded(times),
            "seconds": _rounded(seconds),
            "timeLabel": time_label,
            "endSystole": summary["end_systole"],
            "reference": summary["reference"],
            "plots": plots,
        },
    )
    path.write_text(text, encoding="utf-8")


def _subtitle(summary) -> str:
    cine = summary["cine"]
    size = " × ".join(map(str, cine["shape"][1:]))
    parts = [f"{cine['shape'][0]} frames of {size}", f"reference frame {summary['reference']}"]
    if summary["end_systole"] is not None:
        parts.append(f"end-systole {summary['end_systole']}")
    return " · ".join([*parts, summary["method"]])


def _rows(summary, curves) -> list[tuple[str, str]]:
    rows = []
    for curve in curves:
        if not curve.direction:
            value = summary[curve.column]
            ends = f"{value['reference']:.4g} → {value['end_systole']:.4g}"
            text = f"{ends} {_UNITS.get(curve.unit, curve.unit)}"
            rows.append((f"{curve.label}, reference → end-systole", text))
    for name in ("fractional_area_change", "ejection_fraction"):
        if name in summary:
            rows.append((name.replace("_", " "), f"{100 * summary[name]:.1f} %"))
    if "drift_px" in summary:
        drift = summary["drift_px"]
        text = f"{drift['registered_alone']:.2f} px alone, {drift['tracked']:.2f} px tracked"
        rows.append(("drift over the beat", text))
    return rows


def _strain_rows(summary, curves) -> list[tuple[str, str, str]]:
    rows = []
    for curve in curves:
        if curve.quantity == "strain":
            label = f"{curve.direction} {curve.label}" if curve.of_sector else curve.label
            value = summary["strain"][curve.column]
            rows.append((label, f"{100 * value['peak']:.1f} %", f"{value['time_to_peak']:.3g}"))
    return rows


def _scale(frame, side) -> np.ndarray:
    """Picture pixels per pixel, (row, column): square in millimetres, `side` at most."""
    spacing = np.asarray(frame["spacing"], float)
    return spacing * side / (spacing * frame["image"].shape).max()


def _coloured(strain) -> Image.Image:
    colours = _STRAIN_MAP((np.nan_to_num(strain) / STRAIN_LIMIT + 1) / 2, bytes=True)
    colours[..., 3] = np.where(np.isfinite(strain), 190, 0)
    colours[~np.isfinite(strain)] = 0
    return Image.fromarray(colours)


def _uri(picture: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return page.picture_uri(buffer.getvalue(), kind.lower())


def _path(lines, closed: bool = False) -> str:
    """An SVG path; pixel (r, c) has its centre at (c + 0.5, r + 0.5)."""
    return "".join(
        "M" + "L".join(f"{c + 0.5:.1f} {r + 0.5:.1f}" for r, c in line) + "Z" * closed
        for line in lines
    )


def _gradient() -> str:
    samples = (to_hex(_STRAIN_MAP(share)) for share in np.linspace(0, 1, 11))
    return f"linear-gradient(to right, {', '.join(samples)})"


def _rounded(values) -> list:
    """For JSON, which has no NaN."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
