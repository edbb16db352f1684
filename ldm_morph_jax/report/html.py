"""The report: one HTML file that needs nothing else, neither a network nor files beside it.

Images are embedded at their own resolution; outlines and grids are vectors on top, so they stay
sharp at any size and follow the page's colours.
"""

import base64
import importlib.resources
import io
import json
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from matplotlib.colors import Colormap, Normalize
from PIL import Image

from ldm_morph_jax.report import figures
from ldm_morph_jax.report.tables import METRICS, STRUCTURE_METRICS, structure_columns
from ldm_morph_jax.report.views import PairView, pair_view

MOTION_CLASSES = 8  # colours of the deformed grid


def render_report(
    summary: Mapping,
    rows: Sequence[Mapping],
    examples: Sequence[Mapping],
    *,
    labels: Mapping[int, str],
    workdir=None,
) -> str:
    """The page, as text. Values in it are escaped; scripts and styles are part of it.

    Args:
        summary, rows: of `evaluation.evaluate_split`; a missing score is NaN in rows.
        examples: the pairs to show, each with "role" (best, ...), "row", moving, fixed,
            displacement, moving_mask, fixed_mask, spacing.
        labels: label -> name of the structures.
        workdir: a training directory with metrics.jsonl, for training curves.
    """
    source = importlib.resources.files("ldm_morph_jax.report") / "templates" / "report.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    plots = {"DSC": dsc_box_plot, "HD95": hd95_box_plot}
    with_curves = workdir is not None and figures.metrics_files(workdir)
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        summary=summary,
        cards=_cards(summary),
        sentence=_sentence(rows),
        metric_rows=_metric_rows(summary),
        plots={n: _both_themes(lambda dark, f=f: f(rows, labels, dark)) for n, f in plots.items()},
        pairs=[_pair(example, labels) for example in examples],
        table=_pair_table(rows, labels),
        curves=_both_themes(lambda dark: figures.curves(workdir, dark=dark)) if with_curves else "",
        config=json.dumps(summary["config"], indent=2, default=str) if "config" in summary else "",
        moving_colour=figures.MOVING_COLOUR,
        fixed_colour=figures.FIXED_COLOUR,
        fold_colour=figures.FOLD_COLOUR,
        difference_gradient=_gradient(figures.DIFFERENCE_MAP),
        jacobian_gradient=_gradient(figures.JACOBIAN_MAP),
        motion_gradient=_gradient(figures.MOTION_MAP),
        motion_colours=_colours(figures.MOTION_MAP, MOTION_CLASSES),
    )


def dsc_box_plot(rows: Sequence[Mapping], labels: Mapping[int, str], dark: bool = False):
    """Figure: DSC before and after, per structure."""
    return _box_plot(rows, labels, dark, "dsc_initial", "dsc", "DSC")


def hd95_box_plot(rows: Sequence[Mapping], labels: Mapping[int, str], dark: bool = False):
    """Figure: HD95 before and after, per structure, in pixels."""
    return _box_plot(rows, labels, dark, "hd95_initial_px", "hd95_px", "HD95, px")


def _box_plot(rows, labels, dark, before, after, ylabel):
    values = {
        labels[label]: {
            "before": [row[f"{before}_{column}"] for row in rows],
            "after": [row[f"{after}_{column}"] for row in rows],
        }
        for label, column in structure_columns(labels).items()
    }
    return figures.box_plot(values, ylabel=ylabel, dark=dark)


# -- numbers


def _title(metric) -> str:
    return metric.title.replace("<=", "≤")


def _cards(summary) -> list[dict]:
    """Headline numbers: mean before -> mean after, and whether that is better."""
    cards = []
    for metric in METRICS:
        # the overlap, one distance, the true error, regularity, time: one card each
        if metric.key not in summary or metric.key in ("hd95_px", "mse", "epe_structures_px"):
            continue
        after = summary[metric.key]
        before = summary[metric.initial] if metric.initial else None
        card = {
            "title": _title(metric),
            "before": metric.number(before["mean"]) if before else "",
            "after": metric.number(after["mean"]),
            "note": f"std {metric.number(after['std'])} · median {metric.number(after['median'])}",
            "excluded": after["n_excluded"],
            "change": "",
            "better": None,
        }
        if before and before["mean"] is not None and after["mean"] is not None:
            change = after["mean"] - before["mean"]
            card["change"] = f"{change:+.{metric.digits}f}".replace("-", "−")
            card["better"] = change * metric.better > 0
        cards.append(card)
    return cards


def _sentence(rows) -> str:
    """How many pairs gained, in words; a mean hides the ones that lost."""
    scored = [row for row in rows if row["dsc"] == row["dsc"]]
    compared = [row for row in scored if row["dsc_initial"] == row["dsc_initial"]]
    if not compared:
        return "No pair has a structure to compare."
    gained = sum(row["dsc"] > row["dsc_initial"] for row in compared)
    folded = sum(row["nonpositive_jacobian_percent"] > 0 for row in rows)
    worst = min(compared, key=lambda row: row["dsc"])
    return (
        f"DSC rose in {gained} of {len(compared)} pairs; the lowest is {worst['dsc']:.3f} "
        f"({worst['id']}). The displacement folds somewhere in {folded} of {len(rows)} pairs."
    )


def _metric_rows(summary) -> list[dict]:
    """The table of scores: means, medians and counts before and after, also per structure."""
    rows = []
    for metric in METRICS:
        if metric.key not in summary:
            continue
        rows.append(_metric_row(metric, _title(metric), summary, indent=False))
        if metric in STRUCTURE_METRICS and len(summary["structures"]) > 1:
            for name, entry in summary["structures"].items():
                rows.append(_metric_row(metric, name, entry, indent=True))
    return rows


def _metric_row(metric, name, scores, *, indent) -> dict:
    after = scores[metric.key]
    before = scores[metric.initial] if metric.initial else None
    return {
        "name": name,
        "indent": indent,
        "before": metric.mean_std(before) if before else "",
        "before_median": metric.number(before["median"]) if before else "",
        "after": metric.mean_std(after),
        "after_median": metric.number(after["median"]),
        "n": after["n"],
        "n_excluded": after["n_excluded"],
    }


def _pair_table(rows, labels) -> dict:
    """Columns and cells (text, sort key) of the per-pair table."""
    known = {key for row in rows for key in row}
    columns: list[tuple[str, str, int]] = []
    for metric in METRICS:
        if metric.key not in known:
            continue
        if metric.initial:
            columns.append((metric.initial, f"{_title(metric)} before", metric.digits))
        columns.append((metric.key, _title(metric), metric.digits))
        if metric.key == "dsc" and len(labels) > 1:
            for label, column in structure_columns(labels).items():
                columns.append((f"dsc_{column}", f"DSC {labels[label]}", metric.digits))
    body = []
    for row in rows:
        values = [(row.get(key, float("nan")), digits) for key, _, digits in columns]
        cells = [
            {"text": f"{v:.{d}f}", "key": repr(float(v))} if v == v else {"text": "–", "key": ""}
            for v, d in values
        ]
        body.append({"id": row["id"], "cells": cells, "worse": row["dsc"] < row["dsc_initial"]})
    return {"columns": [title for _, title, _ in columns], "rows": body}


# -- pictures


def _pair(example, labels) -> dict:
    view = pair_view(
        **{k: example[k] for k in ("moving", "fixed", "displacement", "moving_mask", "fixed_mask")},
        labels=labels,
        spacing=example["spacing"],
    )
    row = example["row"]
    height, width = view.moving.shape
    scores = [
        {
            "name": _title(metric),
            "before": metric.number(_none(row[metric.initial])) if metric.initial else "",
            "after": metric.number(_none(row[metric.key])),
        }
        for metric in METRICS
        if metric.key in row and metric.key not in ("mse", "seconds_per_pair")
    ]
    folded = np.ma.masked_less_equal(view.jacobian, 0)
    limit = view.difference_limit
    return {
        "id": row["id"],
        "role": example["role"],
        "scores": scores,
        "width": width,
        "height": height,
        "ratio": f"{width} / {height * view.aspect:g}",
        "moving": _grey(view.moving, view.window),
        "fixed": _grey(view.fixed, view.window),
        "warped": _grey(view.warped, view.window),
        "backdrop": _grey(view.fixed, 1.8 * view.window),
        "before": _coloured(view.difference_before, figures.DIFFERENCE_MAP, Normalize(0, limit)),
        "after": _coloured(view.difference_after, figures.DIFFERENCE_MAP, Normalize(0, limit)),
        "difference_limit": f"{limit:.2f}",
        "jacobian": _coloured(folded, figures.JACOBIAN_MAP, figures.JACOBIAN_NORM),
        "moving_path": _path(view.moving_lines),
        "fixed_path": _path(view.fixed_lines),
        "warped_path": _path(view.warped_lines),
        "grid_paths": _grid_paths(view),
        "largest": f"{view.magnitude.max():.1f}",
        "motion_limit": f"{max(float(view.magnitude.max()), 1.0):.1f}",
    }


def _none(value: float) -> float | None:
    return None if value != value else value


def _grey(image, white) -> str:
    return _data_uri(np.round(255 * np.clip(image / white, 0, 1)).astype(np.uint8))


def _coloured(values, cmap: Colormap, norm) -> str:
    return _data_uri(cmap(norm(values), bytes=True)[..., :3])


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return _png_uri(buffer.getvalue())


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _path(lines) -> str:
    """An SVG path; pixel (r, c) has its centre at (c + 0.5, r + 0.5)."""
    return "".join(
        "M" + "L".join(f"{column + 0.5:.2f} {row + 0.5:.2f}" for row, column in line)
        for line in lines
    )


def _grid_paths(view: PairView) -> list[str]:
    """The deformed grid as one path per class of |u|."""
    limit = max(float(view.magnitude.max()), 1.0)
    pieces: list[list[np.ndarray]] = [[] for _ in range(MOTION_CLASSES)]
    for line in view.grid:
        middles = (line[:-1] + line[1:]) / 2
        share = figures.sample(view.magnitude, middles) / limit
        classes = np.minimum((share * MOTION_CLASSES).astype(int), MOTION_CLASSES - 1)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1, [len(classes)]])
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            pieces[classes[first]].append(line[first : last + 1])
    return [_path(lines) for lines in pieces]


def _colours(cmap, count) -> list[str]:
    colours = cmap(np.linspace(0, 1, count), bytes=True)[:, :3]
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours]


def _gradient(cmap) -> str:
    return f"linear-gradient(to right, {', '.join(_colours(cmap, 11))})"


def _both_themes(make) -> dict[str, str]:
    """A plot drawn for a light and for a dark page; the page shows the one that fits."""
    return {
        theme: _png_uri(figures.png_bytes(make(theme == "dark"), dpi=160, transparent=True))
        for theme in ("light", "dark")
    }
