"""Scores of an anatomy network on a split, and its calibration on validation patients.

patients.csv has a row per patient, phase and structure: Dice over all slices of the patient, areas
of mask and network in mm2 (summed over slices). slices.csv has a row per image: the confidence of
the network and whether the mask has a cavity.
"""

import dataclasses
import io
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ldm_morph_jax.data.windows import nothing, validation_windows
from ldm_morph_jax.files.writing import atomic, json_text
from ldm_morph_jax.registering.segmenting import CAVITY, segment
from ldm_morph_jax.runs.anatomy import CALIBRATION, AnatomyModel

log = logging.getLogger(__name__)

PHASES = {"moving": "ED", "fixed": "ES"}
_DRAWS = 2000  # of the bootstrap
_LEAST_CAVITY = 0.004  # of a window: an image with a smaller cavity may be refused
_TEMPERATURES = np.geomspace(0.5, 3.0, 41)


def score_anatomy(model: AnatomyModel, dataset, split: str, out: str | Path, masks=None) -> dict:
    """Segment every image of a split, score it, write `out`, return the summary.

    Nothing but an image and its spacing is given: the network finds the heart by itself, in each
    slice anew, and is scored where it is unsure, too.

    Args:
        model: the network.
        dataset: an opened dataset; masks are read as the network's labels.
        split: which of its splits.
        out: directory to write patients.csv, slices.csv and summary.json.
        masks: label of the dataset's masks -> label of the network, for another dataset's masks.

    Returns:
        {"structures": {name: {phase: {"mean", "std", "low", "high", "n"}}}, ...}: Dice by patient,
        with a 95 % bootstrap interval over patients (seed 0).
    """
    pairs, metadata = dataset.split(split), dataset.metadata(split)
    names = dict(enumerate(model.structures, start=1))
    if masks is not None:
        names = {label: names[label] for label in masks.values()}
    rows, slices = [], []
    for number, (pair, about) in enumerate(zip(pairs, metadata, strict=True)):
        for role, phase in PHASES.items():
            spacing = tuple(map(float, pair["spacing"]))
            [found] = segment(model, [pair[role][..., 0]], spacing)
            labels, truth = found.probabilities.argmax(-1), pair[f"{role}_mask"][..., 0]
            if masks is not None:
                truth = sum(np.where(truth == old, new, 0) for old, new in masks.items())
            who = {"patient": about["patient"], "phase": phase}
            cavity = model.label(CAVITY)
            slices.append(
                who
                | {
                    "slice": about["slice"],
                    "confidence": round(found.confidence, 4),
                    "cavity_in_mask": int((truth == cavity).any()),
                    "cavity_found": int((labels == cavity).any()),
                }
            )
            for label, name in names.items():
                a, b = truth == label, labels == label
                both, pixel = int((a & b).sum()), spacing[0] * spacing[1]
                areas = {"mask_mm2": a.sum() * pixel, "network_mm2": b.sum() * pixel}
                rows.append(who | {"structure": name, "both_mm2": both * pixel} | areas)
        if number % 50 == 49:
            log.info("%s: %d of %d pairs", model.name, number + 1, len(pairs))
    table = pd.DataFrame(rows).groupby(["patient", "phase", "structure"], as_index=False).sum()
    sizes = table["mask_mm2"] + table["network_mm2"]
    table["dice"] = (2 * table["both_mm2"] / sizes.where(sizes > 0)).round(4)
    table = table.drop(columns="both_mm2").round({"mask_mm2": 1, "network_mm2": 1})
    summary = {
        "network": model.name,
        "dataset": dataset.name,
        "split": split,
        "patients": int(table["patient"].nunique()),
        "images": len(slices),
        "temperature": model.temperature,
        "least_confidence": model.least_confidence,
        "structures": {
            name: {
                phase: _interval(
                    table[(table["structure"] == name) & (table["phase"] == phase)]["dice"]
                )
                for phase in PHASES.values()
            }
            for name in names.values()
        },
        "area_change": _area_change(table),
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file, frame in (("patients.csv", table), ("slices.csv", pd.DataFrame(slices))):
        with atomic(out / file) as part:
            part.write_text(frame.to_csv(index=False, lineterminator="\n"))
    with atomic(out / "summary.json") as part:
        part.write_text(json_text(summary))
    return summary


def calibrate(model: AnatomyModel, dataset, workdir: str | Path) -> dict:
    """Temperature and least confidence from validation patients; written into the run.

    The temperature makes the likelihood of the masks largest. The least confidence is where as
    large a share of images with a cavity is refused as of images that show no heart is taken for
    one: every validation image is turned into one that shows none (`data.windows.nothing`).
    """
    windows = validation_windows(dataset.annotated("validation"), model.window)
    images, truth = windows["image"][..., 0], windows["mask"].astype(int)
    plain = dataclasses.replace(model, temperature=1.0, least_confidence=0.0)
    log_p = np.log(np.maximum(plain.probabilities(images), 1e-12))

    def likelihood(temperature):
        scaled = log_p / temperature
        scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
        return float(np.take_along_axis(scaled, truth, -1).mean())

    best = float(max(_TEMPERATURES, key=likelihood))
    rng, cavity = np.random.default_rng(0), model.label(CAVITY)
    calibrated = dataclasses.replace(plain, temperature=best)
    spacing = (model.window.spacing_mm,) * 2 if model.window.spacing_mm else None
    hearts, others = [], []
    for image, mask in zip(images, truth[..., 0], strict=True):
        if (mask == cavity).sum() >= _LEAST_CAVITY * mask.size:
            hearts.append(segment(calibrated, [image], spacing)[0].confidence)
        others.append(segment(calibrated, [nothing(image, rng)], spacing)[0].confidence)
    levels = np.linspace(0, 1, 201)
    refused = np.array([np.mean(np.array(hearts) < level) for level in levels])
    taken = np.array([np.mean(np.array(others) >= level) for level in levels])
    level = float(levels[np.argmin(refused + taken)])
    calibration = {
        "temperature": best,
        "least_confidence": level,
        "hearts_refused": float(np.mean(np.array(hearts) < level)),
        "others_taken": float(np.mean(np.array(others) >= level)),
        "images": [len(hearts), len(others)],
    }
    with atomic(Path(workdir) / CALIBRATION) as part:
        part.write_text(json.dumps(calibration, indent=2) + "\n")
    return calibration


def format_summary(summary: dict) -> str:
    """The table of a summary, for a terminal."""
    out = io.StringIO()
    out.write(f"{summary['network']} on {summary['dataset']} {summary['split']}: ")
    out.write(f"{summary['patients']} patients, {summary['images']} images\n")
    for name, phases in summary["structures"].items():
        for phase, s in phases.items():
            out.write(
                f"{name:18s} {phase}  Dice {s['mean']:.3f} (SD {s['std']:.3f}, "
                f"95 % {s['low']:.3f} to {s['high']:.3f})\n"
            )
    change = summary["area_change"]
    out.write(
        f"area change of the cavity: bias {change['bias']:+.1f} points, mean absolute error "
        f"{change['mean_absolute_error']:.1f}"
    )
    return out.getvalue()


def _interval(values) -> dict:
    values = values.dropna().to_numpy()
    draws = np.random.default_rng(0).choice(values, (_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    found = {"mean": values.mean(), "std": values.std(ddof=1), "low": low, "high": high}
    return {key: round(float(v), 4) for key, v in found.items()} | {"n": len(values)}


def _area_change(table) -> dict:
    """Bias, mean absolute error and limits of agreement of the cavity's area change, in points."""
    cavity = table[table["structure"] == CAVITY].set_index(["patient", "phase"])
    change = {
        who: 100 * (1 - cavity[who].xs("ES", level=1) / cavity[who].xs("ED", level=1))
        for who in ("mask_mm2", "network_mm2")
    }
    off = (change["network_mm2"] - change["mask_mm2"]).dropna()
    return {
        "bias": round(float(off.mean()), 2),
        "mean_absolute_error": round(float(off.abs().mean()), 2),
        "sd": round(float(off.std(ddof=1)), 2),
        "patients": len(off),
    }
