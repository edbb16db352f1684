"""What `track` shows of a cine: curves.png, beat.gif and a page with a player.

The page needs nothing else, neither a network nor files beside it. A frame is a dict: image
`[H, W]` in [0, 1]; contours name -> polylines `[N, 2]`, landmarks `[N, 2]`, grid and sectors, lists
of polylines, and labels `[K, 2]`, where the sectors' names stand, (row, column) in pixels;
closed, whether contours are; strain `[H, W]`, NaN where there is none, or None; spacing (row,
column).

Curves come in the units of curves.csv; pages and plots show strain in per cent and areas in cm2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ldm_morph_jax.ops.beat import valves_told
from ldm_morph_jax.report import page
from ldm_morph_jax.report.style import (
    DASHES,
    FIXED_COLOUR,
    MOVING_COLOUR,
    fixed,
    line_style,
    series_colours,
    style_axis,
    text_colour,
)
from ldm_morph_jax.report.viewport import viewport

if TYPE_CHECKING:
    from ldm_morph_jax.registering.heart import Curve

STRAIN_LIMIT = 0.3
_STRAIN_MAP = colormaps["RdBu"]  # shortening red
_PAGE_SIDE, _GIF_SIDE = 512, 384  # pixels, longer side
_FRAMES = {"end-diastole": "ED", "end-systole": "ES", "reference": "ref."}
_DIASTOLE = 0.97  # of the largest cavity: a frame with more is shown as end-diastole


class Unit(NamedTuple):
    """How numbers of a unit of curves.csv are shown."""

    factor: float
    name: str
    decimals: int

    def text(self, value: float) -> str:
        """A number without its unit, with a minus sign; never "-0"."""
        return fixed(self.factor * value, self.decimals).replace("-", "−")


UNITS = {
    "": Unit(100, "%", 1),
    "mm2": Unit(0.01, "cm²", 1),
    "px2": Unit(1, "px²", 0),
    "ml": Unit(1, "ml", 1),
    "px3": Unit(1, "px³", 0),
    "mm": Unit(1, "mm", 1),
    "px": Unit(1, "px", 1),
    "deg": Unit(1, "°", 1),
    "deg_per_mm": Unit(10, "°/cm", 2),
    "deg_per_px": Unit(1, "°/px", 2),
    "1/s": Unit(1, "1/s", 2),
    "1/frame": Unit(1, "1/frame", 3),
}


class Group(NamedTuple):
    """A plot: its title, the unit of what it shows, name -> `[T]` in that unit."""

    title: str
    unit: Unit
    lines: dict[str, np.ndarray]


def curve_groups(curves: Iterable["Curve"]) -> list[Group]:
    """The plots of curves, in the units in which they are shown."""
    groups: dict[str, Group] = {}
    for curve in curves:
        unit = UNITS[curve.unit]
        title = f"{curve.direction} strain by sector" if curve.of_sector else curve.quantity
        group = groups.setdefault(title, Group(title.capitalize(), unit, {}))
        group.lines[curve.label] = unit.factor * np.asarray(curve.values, np.float64)
    return list(groups.values())


def curves_figure(
    times: np.ndarray,
    groups: Sequence[Group],
    time_label: str,
    moments: Mapping[str, float],
) -> Figure:
    """One panel per group of curves over time, with thin lines at the moments (`moments`)."""
    rows, columns = math.ceil(len(groups) / 3), min(3, len(groups))
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = series_colours(dark=False)
    for axis, group in zip(axes, groups, strict=False):
        style_axis(axis, dark=False)
        for k, (name, values) in enumerate(group.lines.items()):
            colour = colours[k % len(colours)]
            axis.plot(times, values, color=colour, ls=line_style(k), linewidth=1.5, label=name)
        for name, time in moments.items():
            of_frame = name in _FRAMES.values()
            axis.axvline(time, color="#64748b", linewidth=0.8, ls=":" if of_frame else "--")
            style = {"fontsize": 6, "color": text_colour(False), "rotation": 90, "ha": "right"}
            y, side = (0.02, "bottom") if of_frame else (0.98, "top")
            axis.text(time, y, name, va=side, transform=axis.get_xaxis_transform(), **style)
        axis.set_xlabel(time_label)
        axis.set_ylabel(group.unit.name)
        axis.set_title(group.title, loc="left", fontsize=9.5, color=text_colour(False))
        axis.legend(fontsize=7, frameon=False, labelcolor=text_colour(False), handlelength=2.8)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    return figure


def frame_picture(frame: Mapping) -> Image.Image:
    """A frame with its contours and landmarks, pixels made square, for the animation."""
    grey = np.round(255 * frame["image"]).astype(np.uint8)
    spacing = np.asarray(frame["spacing"], float)
    scale = spacing * _GIF_SIDE / (spacing * grey.shape).max()
    size = tuple(round(n * s) for n, s in zip(grey.shape, scale, strict=True))
    picture = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    colours = {"endo": MOVING_COLOUR, "epi": FIXED_COLOUR}
    for name, points in ((k, line) for k, lines in frame["contours"].items() for line in lines):
        line = [tuple(((point + 0.5) * scale)[::-1]) for point in points]
        draw.line(line + line[:1] * frame["closed"], fill=colours[name], width=2)
    for point in frame["landmarks"]:
        row, column = (point + 0.5) * scale
        draw.ellipse((column - 3, row - 3, column + 3, row + 3), fill=MOVING_COLOUR)
    return picture.quantize(64, dither=Image.Dither.NONE)


def write_animation(path: Path, pictures: Sequence[Image.Image], seconds: np.ndarray) -> None:
    """An endless GIF at the speed of the heart; GIF counts in hundredths of a second."""
    steps = np.diff(seconds)
    milliseconds = [max(20, 10 * round(100 * s)) for s in (*steps, steps[-1])]
    first, *others = pictures
    first.save(
        path, save_all=True, append_images=others, duration=milliseconds, loop=0, format="GIF"
    )


def frame_page(frame: Mapping) -> dict:
    """A frame as the page embeds it: addresses of pictures and SVG paths."""
    grey = Image.fromarray(np.round(255 * frame["image"]).astype(np.uint8))
    if max(grey.size) > _PAGE_SIDE:
        grey.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    strain = frame["strain"]
    paths = {
        name: page.svg_path(lines, digits=1, closed=frame["closed"])
        for name, lines in frame["contours"].items()
    }
    return {
        "image": page.picture_uri(grey, "JPEG", quality=88),
        "strain": "" if strain is None else page.picture_uri(_coloured(strain)),
        "endo": paths.get("endo", ""),
        "epi": paths.get("epi", ""),
        "grid": page.svg_path(frame["grid"], digits=1),
        "sectors": page.svg_path(frame["sectors"], digits=1),
        "labels": [[round(float(x), 1) for x in (c + 0.5, r + 0.5)] for r, c in frame["labels"]],
        "landmarks": "".join(f"M{c + 0.5:.1f} {r + 0.5:.1f}h0" for r, c in frame["landmarks"]),
    }


def write_report(
    path: Path,
    *,
    frames: Sequence[Mapping],
    shape: tuple[int, int],
    spacing: tuple[float, float],
    outlines: Sequence[np.ndarray],
    times: np.ndarray,
    seconds: np.ndarray,
    time_label: str,
    curves: Sequence["Curve"],
    strain_name: str,
    sectors: Sequence[str],
    maps: Sequence[str] = (),
    summary: Mapping,
) -> None:
    """report.html: verdict, numbers, the player, ED and ES side by side, curves with a cursor.

    Args:
        path: where to.
        frames: what `frame_page` made of each.
        shape, spacing: of a frame, (rows, columns).
        outlines: `[N, 2]` each, of all frames: what to zoom to.
        times: `[T]`, as shown on the axes.
        seconds: `[T]`, for the speed of the player.
        time_label: quantity and unit of `times`.
        curves: what was measured.
        strain_name: of the strain that frames show.
        sectors: names of the labels of frames.
        maps: SVGs of bull's-eyes.
        summary: the content of summary.json.
    """
    plots = [
        {
            "title": f"{group.title}, {group.unit.name}",
            "decimals": group.unit.decimals,
            "lines": [
                {
                    "name": name,
                    "colour": f"var(--s{k % len(DASHES)})",
                    "dash": DASHES[k % len(DASHES)],
                    "values": _rounded(values),
                }
                for k, (name, values) in enumerate(group.lines.items())
            ],
        }
        for group in curve_groups(curves)
    ]
    cine = summary["cine"]
    names = [name.replace("_", " ") for name in sectors]
    port = viewport(
        shape,
        spacing,
        outlines,
        spacing_known=cine["spacing_mm"] is not None,
        axes=cine["axes"] and cine["axes"][-2:],
    )
    events = _events(summary, curves)
    has_strain = bool(frames[0]["strain"])
    text = page.render(
        "tracked.html",
        title=Path(cine["file"]).name,
        subtitle=_subtitle(summary),
        verdict=summary.get("verdict"),
        notes=summary["notes"],
        tiles=_tiles(summary, curves),
        rows=_rows(summary, curves),
        strain_rows=_strain_rows(summary, curves),
        time_unit="s" if cine["times_known"] else "frames",
        shape=shape,
        port=port,
        stills=[{"frame": t, "title": name, "strain": False} for t, name in events.items()]
        + [
            {"frame": t, "title": f"{strain_name.capitalize()} strain, {name}", "strain": True}
            for t, name in list(events.items())[1:]
            if has_strain
        ],
        strain_name=strain_name,
        strain_limit=f"{100 * STRAIN_LIMIT:.0f} %",
        strain_gradient=_gradient(),
        has_strain=has_strain,
        has_contours=bool(frames[0]["endo"] or frames[0]["landmarks"]),
        has_wall=bool(frames[0]["epi"]),
        has_grid=bool(frames[0]["grid"]),
        sectors=names,
        maps=maps,
        provenance=page.provenance(summary),
        data={
            "frames": frames,
            "times": _rounded(times),
            "seconds": _rounded(seconds),
            "timeLabel": time_label,
            "events": {str(t): name for t, name in events.items()},
            "moments": [
                {"name": name, "time": round(time, 4), "valve": name not in _FRAMES.values()}
                for name, time in moments(summary, curves, times).items()
            ],
            "reference": summary["reference"],
            "plots": plots,
        },
        **page.theme(),
    )
    path.write_text(text, encoding="utf-8")


def _events(summary, curves) -> dict[int, str]:
    """Frame -> its name, the reference first; end-diastole where the cavity is large there."""
    reference, end_systole = summary["reference"], summary["end_systole"]
    cavity = [c for c in curves if _is_of_cavity(c)]
    at_largest = any(c.values[reference] >= _DIASTOLE * np.max(c.values) for c in cavity[-1:])
    events = {reference: "end-diastole" if at_largest else "reference"}
    if end_systole is not None and end_systole != reference:
        events[end_systole] = "end-systole"
    return events


def moments(summary: Mapping, curves: Sequence["Curve"], times: np.ndarray) -> dict[str, float]:
    """Short name -> time, in the unit of `times`: ED, ES and the valves that were told of."""
    found = {_FRAMES[name]: float(times[t]) for t, name in _events(summary, curves).items()}
    start = float(times[summary["reference"]])
    return found | {name: start + ms / 1000 for name, ms in summary.get("valves_ms", {}).items()}


def _is_of_cavity(curve) -> bool:
    return curve.quantity in ("area", "volume") and not curve.label.startswith("wall")


def _subtitle(summary) -> str:
    cine = summary["cine"]
    size = " × ".join(map(str, cine["shape"][1:]))
    parts = [f"{cine['shape'][0]} frames of {size} pixels"]
    if cine["spacing_mm"] is not None:
        parts.append(" × ".join(f"{s:.4g}" for s in cine["spacing_mm"]) + " mm")
    else:
        parts.append("pixel spacing unknown")
    if not cine["times_known"]:
        parts.append("times of the frames unknown")
    parts.append({"sax": "short-axis view", "apical": "apical view"}[summary["view"]])
    parts.append(f"reference frame {summary['reference']}")
    return " · ".join(parts)


def _tiles(summary, curves) -> list[tuple[str, str]]:
    """The numbers to be seen first."""
    percent, tiles = UNITS[""], []
    for name, title in (
        ("ejection_fraction", "ejection fraction"),
        ("fractional_area_change", "fractional area change"),
    ):
        if name in summary:
            title += _interval(summary.get(f"{name}_interval"))
            tiles.append((title, f"{percent.text(summary[name])} %"))
    for curve in curves:
        if curve.quantity == "strain" and not curve.of_sector:
            numbers = summary["strain"][curve.column]
            title = f"peak {curve.label} strain{_interval(numbers.get('peak_interval'))}"
            tiles.append((title, f"{percent.text(numbers['peak'])} %"))
        elif _is_of_cavity(curve):
            tiles.append(_at_ends(summary, curve))
    if "mass_g" in summary:
        tiles.append(("mass of the wall", f"{summary['mass_g']:.0f} g"))
    if "twist" in summary:
        tiles.append(("peak twist", f"{UNITS['deg'].text(summary['twist']['peak_deg'])}°"))
    if summary.get("heart_rate_per_min") is not None:
        tiles.append(("heart rate", f"{summary['heart_rate_per_min']:.0f} / min"))
    return tiles


def _at_ends(summary, curve) -> tuple[str, str]:
    unit = UNITS[curve.unit]
    ends = " → ".join(map(unit.text, summary[curve.column].values()))
    return f"{curve.label}, reference → end-systole", f"{ends} {unit.name}"


def _interval(ends) -> str:
    """An interval in per cent: " (−17.0 to −13.0)"; "" where there is none."""
    return "" if ends is None else f" ({' to '.join(map(UNITS[''].text, ends))})"


def _rows(summary, curves) -> list[tuple[str, str]]:
    rows = []
    if given := summary.get("intervals"):
        rows.append(("in brackets", given["sentence"]))
    for curve in curves:
        if not curve.direction:
            rows.append(_at_ends(summary, curve))
    if "valves_ms" in summary:
        rows.append(("valves, from the reference", valves_told(summary["valves_ms"])))
    if "drift_px" in summary:
        drift = summary["drift_px"]
        text = f"{drift['registered_alone']:.2f} px alone, {drift['tracked']:.2f} px tracked"
        rows.append(("drift over the beat", text))
    j = summary["jacobian"]
    text = f"{j['smallest']:.2f}; folded {j['nonpositive_percent']:.2f} % of the pixels"
    rows.append(("smallest Jacobian determinant", text))
    return rows


def _strain_rows(summary, curves) -> list[tuple[str, str, str, str]]:
    """(name, peak, at end-systole, time to peak)"""
    rows, percent = [], UNITS[""]
    decimals = 3 if summary["cine"]["times_known"] else 1
    for curve in curves:
        if curve.quantity == "strain":
            label = f"{curve.direction} {curve.label}" if curve.of_sector else curve.label
            value = summary["strain"][curve.column]
            peak = percent.text(value["peak"]) + _interval(value.get("peak_interval"))
            numbers = peak, percent.text(value["end_systolic"])
            time = Unit(1, "", decimals).text(value["time_to_peak"])
            rows.append((label, *numbers, time))
    return rows


def _coloured(strain) -> Image.Image:
    colours = _STRAIN_MAP((np.nan_to_num(strain) / STRAIN_LIMIT + 1) / 2, bytes=True)
    colours[..., 3] = np.where(np.isfinite(strain), 190, 0)
    colours[~np.isfinite(strain)] = 0
    return Image.fromarray(colours)


def _gradient() -> str:
    samples = (to_hex(_STRAIN_MAP(share)) for share in np.linspace(0, 1, 11))
    return f"linear-gradient(to right, {', '.join(samples)})"


def _rounded(values) -> list:
    """For JSON, which has no NaN."""
    return [round(float(value), 4) + 0.0 if np.isfinite(value) else None for value in values]
