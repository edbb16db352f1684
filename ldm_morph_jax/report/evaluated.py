"""The report of a scored split: one HTML file with everything in it."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_morph_jax.report import page
from ldm_morph_jax.report.curves import Curves, curves_figure
from ldm_morph_jax.report.figures import pair_figure, pairs_sheet
from ldm_morph_jax.report.plots import structures_plot
from ldm_morph_jax.report.style import png_bytes
from ldm_morph_jax.report.tables import METRICS, scored, structure_columns
from ldm_morph_jax.report.views import pair_view
from ldm_morph_jax.report.volumes import shown_planes

# plot -> keys of the score before and after, and what the axis says
_PLOTS = {
    "DSC": {"before": "dsc_initial", "after": "dsc", "ylabel": "DSC"},
    "HD95": {"before": "hd95_initial_px", "after": "hd95_px", "ylabel": "HD95, px"},
}
_ARRAYS = ("moving", "fixed", "displacement", "moving_mask", "fixed_mask", "spacing")


def report_page(
    summary: Mapping,
    rows: Sequence[Mapping],
    examples: Sequence[Mapping],
    *,
    labels: Mapping[int, str],
    curves: Curves | None = None,
) -> str:
    """The page, as text. Values in it are escaped; scripts and styles are part of it.

    Args:
        summary: content of summary.json.
        rows: a mapping per pair, the columns of pairs.csv; a missing score is NaN.
        examples: the pairs to show, each with "role" (best, ...), "row", moving, fixed,
            displacement, moving_mask, fixed_mask, spacing; of volumes one plane is shown.
        labels: label -> name of the structures.
        curves: training curves (`report.curves`), if there are any.
    """

    def plot(keys):
        return page.both_themes(lambda dark: structures_plot(rows, labels, dark=dark, **keys))

    drawn = page.both_themes(lambda dark: curves_figure(curves, dark=dark)) if curves else ""
    return page.render(
        "report.html",
        summary=summary,
        cards=_cards(summary),
        sentence=_sentence(rows),
        metric_rows=_metric_rows(summary),
        plots={name: plot(keys) for name, keys in _PLOTS.items()},
        pairs=[_pair(example, labels) for example in examples],
        table=_pair_table(rows, labels),
        curves=drawn,
        config=json.dumps(summary["config"], indent=2, default=str) if "config" in summary else "",
        **page.colours(),
    )


def report_figures(
    summary: Mapping,
    rows: Sequence[Mapping],
    examples: Sequence[Mapping],
    *,
    labels: Mapping[int, str],
    curves: Curves | None = None,
) -> dict[str, bytes]:
    """Name -> PNG of the figures beside the page; arguments as `report_page`."""
    made = {name.lower(): structures_plot(rows, labels, **keys) for name, keys in _PLOTS.items()}
    shown = shown_planes(**{key: np.stack([e[key] for e in examples]) for key in _ARRAYS})
    made["pairs"] = pairs_sheet(
        **shown,
        labels=labels,
        captions=[
            "{} {}\nDSC {:.3f} → {:.3f}".format(
                e["role"], e["row"]["id"], e["row"]["dsc_initial"], e["row"]["dsc"]
            )
            for e in examples
        ],
        title="{method} on {dataset} ({split})".format(**summary),
    )
    for e in examples:
        if e["fixed"].ndim == 4:  # the numbers on this page would be those of one plane
            continue
        title = f"{e['row']['id']} ({e['role']} of {len(rows)})"
        arrays = {key: e[key] for key in _ARRAYS}
        made[f"pair_{e['role']}"] = pair_figure(**arrays, labels=labels, title=title)
    if curves:
        made["curves"] = curves_figure(curves)
    return {name: png_bytes(figure) for name, figure in made.items()}


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
    for metric, structure, scores in scored(summary):
        after = scores[metric.key]
        before = scores[metric.initial] if metric.initial else None
        row = {
            "name": structure or _title(metric),
            "indent": bool(structure),
            "before": metric.mean_std(before) if before else "",
            "before_median": metric.number(before["median"]) if before else "",
            "after": metric.mean_std(after),
            "after_median": metric.number(after["median"]),
            "n": after["n"],
            "n_excluded": after["n_excluded"],
        }
        rows.append(row)
    return rows


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
    planes = shown_planes(**{key: example[key][None] for key in _ARRAYS})
    view = pair_view(**{key: array[0] for key, array in planes.items()}, labels=labels)
    row = example["row"]
    scores = [
        {
            "name": _title(metric),
            "before": metric.number(_none(row[metric.initial])) if metric.initial else "",
            "after": metric.number(_none(row[metric.key])),
        }
        for metric in METRICS
        if metric.key in row and metric.key not in ("mse", "seconds_per_pair")
    ]
    pictures = page.pair_pictures(view, view.window)
    return {"id": row["id"], "role": example["role"], "scores": scores, **pictures}


def _none(value: float) -> float | None:
    return None if value != value else value
