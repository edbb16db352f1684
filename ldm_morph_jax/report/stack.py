"""The page of a stack or of apical views: bull's-eyes, segments, links to its parts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ldm_morph_jax.ops.beat import valves_told
from ldm_morph_jax.ops.segments import NAMES
from ldm_morph_jax.report import page
from ldm_morph_jax.report.bullseye import bullseye_figure, bullseye_svg
from ldm_morph_jax.report.style import fixed

_LIMITS = {"circumferential": 30.0, "radial": 60.0, "longitudinal": 30.0}  # percent
_SHOWN = ("peak_percent", "end_systolic_percent")
_COUNT = 16

Rows = Sequence[Mapping]


def bullseyes(rows: Rows) -> list[Figure]:
    """Peak strain, a bull's-eye for each direction that was measured in segments."""
    return [bullseye_figure(values, **options) for values, options in _maps(rows)]


def bullseye_maps(rows: Rows) -> list[str]:
    """As `bullseyes`, SVGs for a page."""
    return [
        bullseye_svg(values, names=NAMES, key=f"map{k}", **options)
        for k, (values, options) in enumerate(_maps(rows))
    ]


def write_report(path: Path, content: Mapping, rows: Rows, parts: Mapping[str, str]) -> None:
    """report.html: numbers of the ventricle, bull's-eyes, a table of the segments.

    Args:
        path: where to.
        content: of summary.json.
        rows: of segments.csv.
        parts: name -> folder of each slice or view.
    """
    columns = [name for name in dict.fromkeys(n for row in rows for n in row) if _is_shown(name)]
    text = page.render(
        "stack.html",
        title=Path(content["cine"]["file"]).name,
        subtitle=_subtitle(content),
        verdict=content.get("verdict"),
        notes=content["notes"],
        numbers=_numbers(content),
        maps=bullseye_maps(rows),
        columns=[_heading(name, content) for name in columns],
        rows=[
            {
                "name": row["segment"],
                "trusted": row["trusted"],
                "cells": [fixed(row.get(name), _decimals(name, content)) for name in columns],
            }
            for row in rows
        ],
        kind=_kind(content),
        parts=parts,
        provenance=page.provenance(content),
        **page.theme(),
    )
    path.write_text(text, encoding="utf-8")


def _maps(rows: Rows):
    """(values, options) of each bull's-eye."""
    by_number = {row["number"]: row for row in rows if row["number"]}
    for direction, limit in _LIMITS.items():
        name = f"{direction}_peak_percent"
        if not any(name in row for row in by_number.values()):
            continue
        segments = [by_number.get(k, {}) for k in range(1, _COUNT + 1)]
        values = np.array([row.get(name, np.nan) for row in segments], float)
        trusted = [row.get("trusted", True) for row in segments]
        title = f"peak {direction} strain"
        yield values, {"title": title, "unit": "%", "limit": limit, "trusted": trusted}


def _is_shown(name: str) -> bool:
    return name.endswith((*_SHOWN, "time_to_peak", "post_systolic_index_percent"))


def _heading(name: str, content) -> str:
    unit = "s" if content["cine"]["times_known"] else "frames"
    name = name.replace("time_to_peak", f"time to peak, {unit}").replace("_percent", ", %")
    return name.replace("_", " ")


def _decimals(name: str, content) -> int:
    return 3 if name.endswith("time_to_peak") and content["cine"]["times_known"] else 1


def _kind(content) -> str:
    return "slices" if "slices" in content else "views"


def _subtitle(content) -> str:
    kind = _kind(content)
    parts = [f"{len(content[kind])} {kind}, {content['cine']['shape'][0]} frames"]
    if content["end_systole"] is not None:
        parts.append(f"end-systole {content['end_systole']}")
    return " · ".join([*parts, content["method"]])


def _numbers(content) -> list[tuple[str, str]]:
    facts = []
    if "volume_ml" in content:
        ends = content["volume_ml"]
        text = f"{ends['reference']:.1f} → {ends['end_systole']:.1f} ml"
        facts.append(("volume, reference → end-systole", text))
        facts.append(("ejection fraction", f"{100 * content['ejection_fraction']:.1f} %"))
    if content.get("heart_rate_per_min") is not None:
        facts.append(("heart rate", f"{content['heart_rate_per_min']:.0f} / min"))
    if "valves_ms" in content:
        facts.append(("valves, from the reference", valves_told(content["valves_ms"])))
    for direction, timing in content.get("timing", {}).items():
        known = content["cine"]["times_known"]
        unit, scale, decimals = ("ms", 1000, 0) if known else ("frames", 1, 1)
        for name, factor, suffix, digits in (
            ("mechanical_dispersion", scale, f" {unit}", decimals),
            ("earliest_to_latest", scale, f" {unit}", decimals),
            ("uniformity", 1, "", 2),
        ):
            if math.isfinite(timing[name]):
                text = f"{factor * timing[name]:.{digits}f}{suffix}"
                facts.append((f"{name.replace('_', ' ')}, {direction}", text))
    if "twist" in content:
        twist = content["twist"]
        facts.append(("peak twist", f"{twist['peak_deg']:.1f}°"))
        facts.append(("peak torsion", f"{10 * twist['peak_deg_per_mm']:.2f}° per cm"))
    return facts
