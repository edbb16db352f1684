"""Score a registration method on a split and write the results: CSV, JSON, figures, HTML report."""

import csv
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ldm_morph_jax.ops import metrics
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.report import figures, html
from ldm_morph_jax.report.tables import METRICS, structure_columns

log = logging.getLogger(__name__)

PACKAGES = ("ldm_morph_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def evaluate_split(
    register: Callable[[np.ndarray, np.ndarray], jax.Array],
    dataset_split: Sequence[Mapping],
    *,
    ids: Sequence[str],
    labels: Mapping[int, str],
    method: str,
    dataset: str,
    split: str,
    out_dir,
    batch_size: int = 1,
    warmup: bool = True,
    progress: bool = True,
    config: Mapping | None = None,
    workdir=None,
    keep: int | None = None,
) -> dict:
    """Register every pair of a split, score it, write `out_dir`, return the summary.

    Moving labels are warped with nearest neighbour (eq. 17). `dsc` and `hd95` of a pair are means
    over the structures that have a value; a score without any is an empty cell in the CSV, null in
    the JSON, and counted as excluded, never silently dropped. A pair's seconds are wall time from
    host arrays to a finished displacement, divided by `batch_size`; compilation is in the warm-up
    call, which is reported apart. A last, smaller batch is filled up with its last pair so that
    nothing recompiles.

    Written, each file atomically, summary.json last:
        pairs.csv      a row per pair: id, dsc_initial, dsc, both per structure, hd95_initial_px,
                       hd95_px (and _mm), mse_initial, mse, nonpositive_jacobian_percent,
                       sd_log_jacobian, seconds_per_pair; with a known motion epe_initial_px, epe_px
                       and the same within the fixed image's structures (epe_structures_...)
        figures/*.png  box plots; best, median and worst pair by DSC; training curves
        report.html    all of it, self-contained
        example.npz    only with `keep`: that pair, its id, "displacement" and "spacing"
        summary.json   for each score {"mean", "std", "median", "n", "n_excluded"} over pairs;
                       "structures": the same per structure; seconds_first_call (the warm-up
                       call, with compilation); method, dataset, split, n_pairs, batch_size,
                       hardware, versions

    Args:
        register: (moving `[B, H, W, 1]`, fixed `[B, H, W, 1]`) -> displacement `[B, H, W, 2]`,
            pixels, pull-back.
        dataset_split: examples with moving, fixed `[H, W, 1]` in [0, 1], moving_mask, fixed_mask
            `[H, W, 1]` integer labels, spacing `[2]` mm per pixel, and optionally the true
            displacement `[H, W, 2]`. Arrays of one size.
        ids: a name per example.
        labels: label -> name of the structures to score.
        method, dataset, split: names for the results.
        out_dir: directory to write; made when missing.
        batch_size: pairs per call; 1 is what time per pair is usually quoted for.
        warmup: call once before the first pair is measured.
        progress: log a line about every tenth of the split.
        config: shown in the report, kept in summary.json.
        workdir: a training directory with metrics.jsonl (see `figures.curves`), for the curves.
        keep: number of a pair to write as arrays, for pictures of many methods side by side.

    Raises:
        ValueError: for an empty split, ids that do not match it, examples without a needed entry,
            or a displacement of the wrong shape or with NaN or infinity (naming the pair).
    """
    count = len(dataset_split)
    if not count or len(ids) != count:
        raise ValueError(
            f"{dataset} {split}: found {count} examples and {len(ids)} ids, expected "
            "as many ids as examples and at least one"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size: found {batch_size}, expected at least 1")
    if not labels:
        raise ValueError("labels: found none, expected label -> name of the structures to score")
    columns = structure_columns(labels)

    # -- register and score
    rows, displacements, first_call = [], [], None
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        examples = [_check_example(dataset_split[i], ids[i]) for i in indices]
        filled = examples + examples[-1:] * (batch_size - len(examples))
        moving = np.stack([np.asarray(e["moving"], np.float32) for e in filled])
        fixed = np.stack([np.asarray(e["fixed"], np.float32) for e in filled])
        if warmup and start == 0:
            began = time.perf_counter()
            jax.block_until_ready(register(moving, fixed))
            first_call = time.perf_counter() - began
        began = time.perf_counter()
        displacement = jax.block_until_ready(register(moving, fixed))
        seconds = (time.perf_counter() - began) / batch_size
        displacement = np.asarray(displacement, np.float32)
        if displacement.shape != (*moving.shape[:3], 2):
            raise ValueError(
                f"{method}: found a displacement of shape {displacement.shape}, expected "
                f"{(*moving.shape[:3], 2)}"
            )
        for index, example, u in zip(indices, examples, displacement, strict=False):
            if not np.isfinite(u).all():
                raise ValueError(
                    f"{method}: found NaN or infinity in the displacement of pair {ids[index]}, "
                    "expected finite pixels"
                )
            scores = _score(example, u, columns)
            rows.append({"id": ids[index], **scores, "seconds_per_pair": seconds})
            displacements.append(u)
        done = len(rows)
        if progress and (done == count or done * 10 // count > start * 10 // count):
            log.info(
                "%s on %s %s: %d/%d pairs, DSC %.3f -> %.3f, %.4f s per pair",
                method,
                dataset,
                split,
                done,
                count,
                metrics.summarise(row["dsc_initial"] for row in rows)["mean"],
                metrics.summarise(row["dsc"] for row in rows)["mean"],
                metrics.summarise(row["seconds_per_pair"] for row in rows)["median"],
            )

    # -- summarise
    summary = {
        "method": method,
        "dataset": dataset,
        "split": split,
        "n_pairs": count,
        **_summarise_rows(rows),
        "structures": {
            name: {
                "label": label,
                **{
                    key: _statistics(row[f"{key}_{column}"] for row in rows)
                    for key in ("dsc_initial", "dsc", "hd95_initial_px", "hd95_px")
                },
            }
            for (label, name), column in zip(labels.items(), columns.values(), strict=True)
        },
        "seconds_first_call": first_call,
        "batch_size": batch_size,
        "hardware": _hardware(),
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    if config is not None:
        summary["config"] = config

    # -- write
    out_dir = Path(out_dir)
    examples = []
    for role, index in _representative(rows).items():
        example = {key: np.asarray(dataset_split[index][key]) for key in _NEEDED}
        examples.append({"role": role, "row": rows[index], "displacement": displacements[index]})
        examples[-1] |= example
    write_file(out_dir / "pairs.csv", csv_text(rows).encode())
    for name, figure in _figures(summary, rows, examples, labels, workdir).items():
        write_file(out_dir / "figures" / f"{name}.png", figures.png_bytes(figure))
    page = html.render_report(summary, rows, examples, labels=labels, workdir=workdir)
    write_file(out_dir / "report.html", page.encode())
    if keep is not None:
        arrays = {key: np.asarray(dataset_split[keep][key]) for key in _NEEDED}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, displacement=displacements[keep], id=np.array(ids[keep]))
        write_file(out_dir / "example.npz", buffer.getvalue())
    text = json.dumps(without_nan(summary), indent=2, allow_nan=False, default=str)
    write_file(out_dir / "summary.json", (text + "\n").encode())
    return without_nan(summary)


# -- one pair

_NEEDED = ("moving", "fixed", "moving_mask", "fixed_mask", "spacing")


def _check_example(example: Mapping, name: str) -> Mapping:
    missing = [key for key in _NEEDED if key not in example]
    if missing:
        raise ValueError(f"pair {name}: found no {', '.join(missing)}, expected {_NEEDED}")
    return example


def _score(example: Mapping, displacement: np.ndarray, columns: Mapping[int, str]) -> dict:
    moving, fixed = (np.asarray(example[key], np.float32) for key in ("moving", "fixed"))
    moving_mask, fixed_mask = (np.asarray(example[key]) for key in ("moving_mask", "fixed_mask"))
    field = displacement[None]
    warped = np.asarray(warp(moving[None], field))[0]
    warped_mask = np.asarray(warp(moving_mask[None], field, interpolation="nearest"))[0]

    row = {}
    dsc_initial = metrics.dice(moving_mask, fixed_mask, columns)
    dsc = metrics.dice(warped_mask, fixed_mask, columns)
    row["dsc_initial"], row["dsc"] = _mean(dsc_initial), _mean(dsc)
    for label, column in columns.items():
        row[f"dsc_initial_{column}"], row[f"dsc_{column}"] = dsc_initial[label], dsc[label]

    hd95_initial = metrics.hd95(moving_mask, fixed_mask, columns)
    hd95 = metrics.hd95(warped_mask, fixed_mask, columns)
    row["hd95_initial_px"], row["hd95_px"] = _mean(hd95_initial), _mean(hd95)
    for label, column in columns.items():
        row[f"hd95_initial_px_{column}"] = hd95_initial[label]
        row[f"hd95_px_{column}"] = hd95[label]
    spacing = tuple(np.asarray(example["spacing"], np.float64))
    row["hd95_initial_mm"] = _mean(metrics.hd95(moving_mask, fixed_mask, columns, spacing))
    row["hd95_mm"] = _mean(metrics.hd95(warped_mask, fixed_mask, columns, spacing))

    if "displacement" in example:
        truth = np.asarray(example["displacement"])
        error = metrics.endpoint_error(displacement, truth)
        row["epe_initial_px"], row["epe_px"] = error.initial, error.mean
        inside = np.isin(fixed_mask, list(columns))
        error = metrics.endpoint_error(displacement, truth, inside)
        row["epe_structures_initial_px"], row["epe_structures_px"] = error.initial, error.mean

    row["mse_initial"] = float(np.mean((moving - fixed) ** 2, dtype=np.float64))
    row["mse"] = float(np.mean((warped - fixed) ** 2, dtype=np.float64))
    row["nonpositive_jacobian_percent"] = metrics.nonpositive_jacobian_percent(displacement)
    row["sd_log_jacobian"] = metrics.sd_log_jacobian(displacement).value
    return row


def _mean(scores: Mapping[int, float]) -> float:
    """Mean over the structures that have a value; NaN when none has."""
    return metrics.summarise(scores.values())["mean"]


# -- all pairs


def _summarise_rows(rows: Sequence[Mapping]) -> dict[str, dict]:
    # the true motion may be known for some pairs only
    known = {key for row in rows for key in row}
    keys = [key for metric in METRICS for key in (metric.initial, metric.key) if key in known]
    return {key: _statistics(row.get(key, math.nan) for row in rows) for key in keys}


def _statistics(values) -> dict:
    return without_nan(metrics.summarise(values))


def _representative(rows: Sequence[Mapping]) -> dict[str, int]:
    """Best, median and worst pair by DSC, by MSE if no pair has a DSC; fewer in a small split."""
    ranked = [i for i, row in enumerate(rows) if not math.isnan(row["dsc"])]
    ranked.sort(key=lambda i: rows[i]["dsc"])
    if not ranked:
        ranked = sorted(range(len(rows)), key=lambda i: -rows[i]["mse"])
    roles = {"best": ranked[-1]}
    if len(ranked) > 2:
        roles["median"] = ranked[(len(ranked) - 1) // 2]
    if len(ranked) > 1:
        roles["worst"] = ranked[0]
    return roles


def _figures(summary, rows, examples, labels, workdir) -> dict:
    made = {"dsc": html.dsc_box_plot(rows, labels), "hd95": html.hd95_box_plot(rows, labels)}
    stacked = {key: np.stack([e[key] for e in examples]) for key in (*_NEEDED, "displacement")}
    made["pairs"] = figures.pairs_sheet(
        **stacked,
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
        made[f"pair_{e['role']}"] = figures.pair_figure(
            **{key: e[key] for key in (*_NEEDED, "displacement")},
            labels=labels,
            title=f"{e['row']['id']} ({e['role']} of {len(rows)})",
        )
    if workdir is not None and figures.metrics_files(workdir):
        made["curves"] = figures.curves(workdir)
    return made


def _hardware() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    return f"{os.cpu_count()} cores of {model}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return versions


# -- files


def csv_text(rows: Sequence[Mapping]) -> str:
    """Rows as CSV, a column per key of any of them; NaN is an empty cell."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value != value else value for key, value in row.items()})
    return buffer.getvalue()


def without_nan(value):
    """NaN -> None, for JSON."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_file(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename: a final name is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
