"""Scores of a split: register every pair, score it, summarise, write everything down.

pairs.csv has a row per pair: id, patient, then of the pair before ("initial") and after
registration dsc, hd95_px, hd95_mm (means over the structures that have a value), dsc and hd95_px of
each structure, mse, with a known motion epe_px and epe_structures_px (within the fixed image's
structures), and nonpositive_jacobian_percent, sd_log_jacobian, seconds_per_pair. A score that does
not exist is an empty cell. Of volumes "px" are voxels.
"""

import importlib.metadata
import io
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from ldm_morph_jax.devices.batches import fill_up
from ldm_morph_jax.files.writing import atomic, json_text, without_nan
from ldm_morph_jax.ops import metrics
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.report.evaluated import report_figures, report_page
from ldm_morph_jax.report.tables import METRICS, structure_columns

log = logging.getLogger(__name__)

PACKAGES = ("ldm_morph_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
NEEDED = ("moving", "fixed", "moving_mask", "fixed_mask", "spacing")

Register = Callable[[np.ndarray, np.ndarray], jax.Array]


def evaluate_split(
    register: Register,
    dataset,
    split: str,
    out_dir: str | Path,
    *,
    method: str,
    batch_size: int = 1,
    config: Mapping | None = None,
    curves: Mapping | None = None,
    keep: int | None = None,
    notes: Sequence[str] = (),
) -> dict:
    """Register every pair of a split, score it, write `out_dir`, return the summary.

    Moving labels are warped with nearest neighbour (eq. 17).

    Written, each file atomically, summary.json last:
        pairs.csv      see above
        figures/*.png  box plots; best, median and worst pair by DSC; training curves
        report.html    all of it, self-contained
        example.npz    only with `keep`: that pair, its id, "displacement" and "spacing"
        summary.json   for each score {"mean", "std", "median", "n", "n_excluded"} over pairs;
                       "structures": the same per structure; seconds_first_call (with compilation);
                       method, dataset, split, n_pairs, batch_size, hardware, versions, date,
                       config, notes

    Args:
        register: (moving `[B, *space, 1]`, fixed `[B, *space, 1]`) -> displacement
            `[B, *space, rank]`, pixels, pull-back.
        dataset: an opened dataset (`data.Dataset`): its `name`, `labels`, `split` and `metadata`.
        split: which of its splits.
        out_dir: directory to write; made when missing.
        method: its name in the results.
        batch_size: pairs per call; 1 is what time per pair is usually quoted for.
        config: kept in summary.json and shown in the report.
        curves: training curves for the report (`runs.metrics.read_curves`).
        keep: number of a pair to write as arrays, for pictures of many methods side by side.
        notes: sentences of doubt about the scores, kept in summary.json and shown in the report.

    Raises:
        ValueError: for an empty split, no structures to score, examples without a needed entry, or
            a displacement of the wrong shape or with NaN or infinity (naming the pair).
    """
    pairs, metadata, labels = dataset.split(split), dataset.metadata(split), dataset.labels
    ids = [row["id"] for row in metadata]
    if not len(pairs) or not labels or batch_size < 1:
        raise ValueError(
            f"{dataset.name} {split}: found {len(pairs)} pairs, {len(labels)} structures to score "
            f"and a batch size of {batch_size}, expected at least one of each"
        )
    structure_columns(labels)  # names that cannot be told apart are refused before the work
    displacements, seconds, first_call = register_pairs(
        register, pairs, ids, batch_size=batch_size, method=method
    )
    rows = [
        {"id": name["id"], "patient": name["patient"]}
        | score_pair(pairs[i], displacements[i], labels)
        | {"seconds_per_pair": seconds[i]}
        for i, name in enumerate(metadata)
    ]
    table = pd.DataFrame(rows)
    summary = {"method": method, "dataset": dataset.name, "split": split, "n_pairs": len(pairs)}
    summary |= summarise_pairs(table, labels)
    summary |= {
        "seconds_first_call": first_call,
        "batch_size": batch_size,
        "hardware": _hardware(),
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    summary |= {} if config is None else {"config": config}
    summary |= {"notes": list(notes)} if notes else {}

    def arrays(i: int) -> dict[str, np.ndarray]:
        pair = pairs[i]
        return {key: np.asarray(pair[key]) for key in NEEDED} | {"displacement": displacements[i]}

    out_dir, rows = Path(out_dir), table.to_dict("records")
    shown = [
        {"role": role, "row": rows[i]} | arrays(i) for role, i in representative(table).items()
    ]
    drawn = {"labels": labels, "curves": curves}
    write_file(out_dir / "pairs.csv", table.to_csv(index=False, lineterminator="\n").encode())
    for name, png in report_figures(summary, rows, shown, **drawn).items():
        write_file(out_dir / "figures" / f"{name}.png", png)
    write_file(out_dir / "report.html", report_page(summary, rows, shown, **drawn).encode())
    if keep is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays(keep), id=np.array(ids[keep]))
        write_file(out_dir / "example.npz", buffer.getvalue())
    write_file(out_dir / "summary.json", json_text(summary).encode())
    return without_nan(summary)


# -- registering


def register_pairs(
    register: Register, pairs, ids: Sequence[str], *, batch_size: int, method: str
) -> tuple[list[np.ndarray], list[float], float]:
    """Register all pairs, after a first call that compiles and is not counted.

    Returns displacements `[*space, rank]` in pixels, the seconds of each pair, and those of the
    first call. A pair's seconds are wall time from host arrays to a finished displacement, divided
    by `batch_size`. A last, smaller batch is filled up with its last pair so that nothing
    recompiles. Arguments and errors are those of `evaluate_split`.
    """
    count, displacements, seconds, first_call = len(pairs), [], [], None
    for start in range(0, count, batch_size):
        here = range(start, min(start + batch_size, count))
        images = _images([pairs[i] for i in here], [ids[i] for i in here])
        (moving, fixed), _ = fill_up(images, batch_size)
        if first_call is None:
            first_call = _timed(register, moving, fixed)[1]
        batch, elapsed = _timed(register, moving, fixed)
        batch = np.asarray(batch, np.float32)
        expected = (*moving.shape[:-1], moving.ndim - 2)
        if batch.shape != expected:
            raise ValueError(
                f"{method}: found a displacement of shape {batch.shape}, expected {expected}"
            )
        for i, u in zip(here, batch, strict=False):
            if not np.isfinite(u).all():
                raise ValueError(
                    f"{method}: found NaN or infinity in the displacement of pair {ids[i]}, "
                    "expected finite pixels"
                )
            displacements.append(u)
            seconds.append(elapsed / batch_size)
        done = len(seconds)
        if done == count or done * 10 // count > start * 10 // count:
            log.info(
                "%s: %d/%d pairs, %.4f s per pair", method, done, count, float(np.median(seconds))
            )
    return displacements, seconds, first_call


def _images(examples: Sequence[Mapping], ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    for example, name in zip(examples, ids, strict=True):
        missing = [key for key in NEEDED if key not in example]
        if missing:
            raise ValueError(f"pair {name}: found no {', '.join(missing)}, expected {NEEDED}")
    moving = np.stack([np.asarray(example["moving"], np.float32) for example in examples])
    fixed = np.stack([np.asarray(example["fixed"], np.float32) for example in examples])
    return moving, fixed


def _timed(register, moving, fixed):
    began = time.perf_counter()
    displacement = jax.block_until_ready(register(moving, fixed))
    return displacement, time.perf_counter() - began


# -- scoring


def score_pair(example: Mapping, displacement: np.ndarray, labels: Mapping[int, str]) -> dict:
    """The scores of a displacement `[*space, rank]`, keys as the columns of pairs.csv; or NaN.

    example: moving, fixed `[*space, 1]` in [0, 1], moving_mask, fixed_mask `[*space, 1]` integer
    labels, spacing `[rank]` mm per pixel, and perhaps the true displacement `[*space, rank]`.
    """
    moving, fixed = (np.asarray(example[key], np.float32) for key in ("moving", "fixed"))
    moving_mask, fixed_mask = (np.asarray(example[key]) for key in ("moving_mask", "fixed_mask"))
    field, columns = displacement[None], structure_columns(labels)
    warped = np.asarray(warp(moving[None], field))[0]
    warped_mask = np.asarray(warp(moving_mask[None], field, interpolation="nearest"))[0]

    def before_and_after(score: Callable[..., dict], key: str, unit: str = "", **options) -> dict:
        """Means over the structures that have a value, and each structure's own."""
        before, after = (
            score(mask, fixed_mask, columns, **options) for mask in (moving_mask, warped_mask)
        )
        means = {f"{key}_initial{unit}": _mean(before), f"{key}{unit}": _mean(after)}
        for label, column in columns.items():
            means[f"{key}_initial{unit}_{column}"] = before[label]
            means[f"{key}{unit}_{column}"] = after[label]
        return means

    row = before_and_after(metrics.dice, "dsc") | before_and_after(metrics.hd95, "hd95", "_px")
    spacing = tuple(np.asarray(example["spacing"], np.float64))
    in_mm = before_and_after(metrics.hd95, "hd95", "_mm", spacing=spacing)
    row |= {key: in_mm[key] for key in ("hd95_initial_mm", "hd95_mm")}

    if "displacement" in example:
        inside = np.isin(fixed_mask, list(columns))
        for key, mask in (("epe", None), ("epe_structures", inside)):
            error = metrics.endpoint_error(displacement, np.asarray(example["displacement"]), mask)
            row |= {f"{key}_initial_px": error.initial, f"{key}_px": error.mean}

    row["mse_initial"] = float(np.mean((moving - fixed) ** 2, dtype=np.float64))
    row["mse"] = float(np.mean((warped - fixed) ** 2, dtype=np.float64))
    row["nonpositive_jacobian_percent"] = metrics.nonpositive_jacobian_percent(displacement)
    row["sd_log_jacobian"] = metrics.sd_log_jacobian(displacement).value
    return row


def _mean(scores: Mapping[int, float]) -> float:
    """Mean over the structures that have a value; NaN when none has."""
    return metrics.summarise(scores.values())["mean"]


def summarise_pairs(table: pd.DataFrame, labels: Mapping[int, str]) -> dict:
    """Statistics over pairs of every score, and of DSC and HD95 per structure; None for NaN."""

    def statistics(key: str) -> dict:
        return without_nan(metrics.summarise(table[key]))

    keys = [key for metric in METRICS for key in (metric.initial, metric.key) if key in table]
    structures = {
        labels[label]: {"label": label}
        | {
            key: statistics(f"{key}_{column}")
            for key in ("dsc_initial", "dsc", "hd95_initial_px", "hd95_px")
        }
        for label, column in structure_columns(labels).items()
    }
    return {key: statistics(key) for key in keys} | {"structures": structures}


def representative(table: pd.DataFrame) -> dict[str, int]:
    """Best, median and worst pair by DSC, by MSE if no pair has a DSC; fewer in a small split."""
    ranked = table["dsc"].dropna() if table["dsc"].notna().any() else -table["mse"]
    order = ranked.sort_values(kind="stable").index
    roles = {"best": order[-1]}
    if len(order) > 2:
        roles["median"] = order[(len(order) - 1) // 2]
    if len(order) > 1:
        roles["worst"] = order[0]
    return {role: int(i) for role, i in roles.items()}


def _hardware() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        model = match.group(1) if match else model
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


def read_pairs(path: str | Path) -> pd.DataFrame:
    """A pairs.csv as it was written: text for id and patient, float64 for scores, NaN for none.

    Files of earlier versions have no patients; `patient_of` then knows them from the ids.

    Raises:
        ValueError: it is no such table.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str, "patient": str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from None
    text = ("id", "patient")
    wrong = [c for c in table if c not in text and not pd.api.types.is_numeric_dtype(table[c])]
    if "id" not in table or "dsc" not in table or wrong:
        raise ValueError(
            f"{path}: found the columns {', '.join(table)}, expected id, dsc and other scores, all "
            f"scores numbers (not so: {', '.join(wrong) or 'none'})"
        )
    if "patient" not in table:
        table.insert(1, "patient", table["id"].map(patient_of))
    return table


def patient_of(pair_id: str) -> str:
    """The patient of a pair: its id without the number of a slice, "P1-slice03" -> "P1"."""
    return re.sub(r"-slice\d+$", "", pair_id)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whose name is never that of a half-written one; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        part.write_bytes(content)
