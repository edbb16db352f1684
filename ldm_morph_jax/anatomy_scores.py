"""Scores of an anatomy network on a split, and its calibration on validation patients.

patients.csv has a row per patient, phase and structure: Dice over all slices of the patient, areas
of mask and network in mm2 (summed over slices). slices.csv has a row per image: the confidence of
the network and whether the mask has a cavity.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ldm_morph_jax.data import no_heart
from ldm_morph_jax.data.windows import Variation, nothing, validation_windows
from ldm_morph_jax.files.writing import atomic, json_text
from ldm_morph_jax.ops import familiar
from ldm_morph_jax.registering.segmenting import CAVITY, evenly, segment, window_about
from ldm_morph_jax.runs.anatomy import AnatomyModel

log = logging.getLogger(__name__)

PHASES = {"moving": "ED", "fixed": "ES"}
_DRAWS = 2000  # of the bootstrap
_LEAST_CAVITY = 0.004  # of a window: an image with a smaller cavity may be refused
_MOST, _KNOWN = 60, 400  # images that are enough for the limits, and for what is known
_OF_EACH_KIND, _DRAWN_MM = 12, 1.4  # drawings, mm of their pixels
_MOST_DISTANT = 4.0  # no largest distance is beyond
_TEMPERATURES = np.geomspace(0.5, 3.0, 41)


def score_anatomy(
    model: AnatomyModel, dataset, split: str, out: str | Path, notes: Sequence[str] = ()
) -> dict:
    """Segment every image of a split, score it, write `out`, return the summary.

    Nothing but an image and its spacing is given: the network finds the heart by itself, in each
    slice anew, and is scored where it is unsure, too.

    Args:
        model: the network.
        dataset: an opened dataset. Masks have the network's labels, unless the dataset names a
            structure by another one: then those count that both name.
        split: which of its splits.
        out: directory to write patients.csv, slices.csv and summary.json.
        notes: sentences of doubt about the scores, kept in the summary.

    Returns:
        {"structures": {name: {phase: {"mean", "std", "low", "high", "n"}}}, ...}: Dice by patient,
        with a 95 % bootstrap interval over patients (seed 0).
    """
    pairs, metadata = dataset.split(split), dataset.metadata(split)
    named = {name: label for label, name in dataset.labels.items() if name in model.structures}
    if all(model.label(name) == label for name, label in named.items()):
        named = {name: model.label(name) for name in model.structures}
    rows, slices = [], []
    for number, (pair, about) in enumerate(zip(pairs, metadata, strict=True)):
        for role, phase in PHASES.items():
            spacing = tuple(map(float, pair["spacing"]))
            [found] = segment(model, [pair[role][..., 0]], spacing)
            labels, truth = found.probabilities.argmax(-1), pair[f"{role}_mask"][..., 0]
            who = {"patient": about["patient"], "phase": phase}
            cavity = model.label(CAVITY)
            slices.append(
                who
                | {
                    "slice": about["slice"],
                    "confidence": round(found.confidence, 4),
                    "distance": round(found.distance, 3),
                    "cavity_in_mask": int((truth == named.get(CAVITY, -1)).any()),
                    "cavity_found": int((labels == cavity).any()),
                }
            )
            for name, label in named.items():
                a, b = truth == label, labels == model.label(name)
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
        "largest_distance": model.largest_distance,
        "structures": {
            name: {
                phase: _interval(
                    table[(table["structure"] == name) & (table["phase"] == phase)]["dice"]
                )
                for phase in PHASES.values()
            }
            for name in named
        },
        "area_change": _area_change(table),
    }
    summary |= {"notes": list(notes)} if notes else {}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file, frame in (("patients.csv", table), ("slices.csv", pd.DataFrame(slices))):
        with atomic(out / file) as part:
            part.write_text(frame.to_csv(index=False, lineterminator="\n"))
    with atomic(out / "summary.json") as part:
        part.write_text(json_text(summary))
    return summary


def calibrate(model: AnatomyModel, dataset) -> tuple[AnatomyModel, dict]:
    """The network with its limits, and what they do: from training and validation patients.

    What is known are training images (`AnatomyModel.numbers`). The temperature makes the likelihood
    of the masks of validation patients largest. The least confidence and the largest distance are
    those with the smallest sum of two shares: of validation images with a cavity that are refused,
    and of images without a heart that it knows that are taken, each kind of them alike: validation
    images that were altered (`data.windows.nothing`), drawings, and phantoms of the other modality
    (`data.no_heart`). Many limits do that equally well; each is in the middle of the range that
    does.
    """
    rng, cavity = np.random.default_rng(0), model.label(CAVITY)
    windows = validation_windows(dataset.annotated("validation"), model.window)
    images, truth = windows["image"][..., 0], windows["mask"].astype(int)
    free = dataclasses.replace(
        model,
        temperature=1.0,
        least_confidence=0.0,
        largest_distance=math.inf,
        known=_known(model, dataset, rng),
    )
    log_p = np.log(np.maximum(free.probabilities(images), 1e-12))

    def likelihood(temperature):
        scaled = log_p / temperature
        scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
        return float(np.take_along_axis(scaled, truth, -1).mean())

    best = float(max(_TEMPERATURES, key=likelihood))
    free = dataclasses.replace(free, temperature=best)
    millimetres = model.window.spacing_mm
    spacing = (millimetres,) * 2 if millimetres else None

    def seen(pictures, spacing=spacing):
        segmentations = [segment(free, [picture], spacing)[0] for picture in pictures]
        return np.array([[s.confidence, s.distance] for s in segmentations]).reshape(-1, 2)

    large = (truth[..., 0] == cavity).sum(axis=(1, 2)) >= _LEAST_CAVITY * truth[0].size
    look = "sax" if millimetres else "echo"
    hearts = seen(images[large][evenly(large.sum(), _MOST)])
    some = images[evenly(len(images), _MOST)]
    others = {"altered": seen([nothing(image, rng) for image in some])}
    for kind in no_heart.KINDS:
        drawn = [no_heart.drawing(kind, rng) for _ in range(_OF_EACH_KIND)]
        others[kind] = seen(drawn, (_DRAWN_MM,) * 2)
    phantoms = [no_heart.other_modality(look, rng) for _ in range(_OF_EACH_KIND)]
    others["other modality"] = seen(phantoms, (_DRAWN_MM,) * 2)
    level, limit = _limits(hearts, others)

    def taken(numbers):
        return float(np.mean((numbers[:, 0] >= level) & (numbers[:, 1] <= limit)))

    calibration = {
        "temperature": best,
        "least_confidence": level,
        "largest_distance": limit,
        "hearts": len(hearts),
        "hearts_refused": 1 - taken(hearts),
        "others": {kind: len(numbers) for kind, numbers in others.items()},
        "others_taken": {kind: taken(numbers) for kind, numbers in others.items()},
    }
    calibrated = dataclasses.replace(free, least_confidence=level, largest_distance=limit)
    return calibrated, calibration


def _known(model, dataset, rng) -> dict[str, dict[str, np.ndarray]]:
    """What training images with a cavity look like.

    Greys and texture of windows that are varied as in training: other scanners' are no surprise.
    What the encoder ends with is meant to be the same for them, so that images as they are tell it.
    """
    images, varied = dataset.annotated("train"), model.config["anatomy"]["variation"]
    varied = {key: tuple(v) if isinstance(v, list) else v for key, v in varied.items()}
    varied = Variation(**varied | {"nothing": 0.0, "cut": 0.0})
    changed, plain = [], []
    for number in evenly(len(images), _KNOWN):
        image = images[int(number)]
        cavity = image["mask"][..., 0] == model.label(CAVITY)
        if cavity.mean() >= _LEAST_CAVITY:
            changed.append(varied.window(image, model.window, rng)["image"][..., 0])
            centre = tuple(np.argwhere(cavity).mean(axis=0))
            spacing = tuple(map(float, image["spacing"]))
            plain.append(window_about(model, image["image"][..., 0], spacing, centre))
    return {
        "greys": familiar.describe(familiar.greys(np.stack(changed))),
        "deepest": familiar.describe(model.numbers(np.stack(plain))["deepest"]),
    }


def _limits(hearts: np.ndarray, others: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(Least confidence, largest distance), each in the middle of what is equally good.

    `[N, 2]`: confidence and distance of hearts and of every kind of others. An image of confidence
    0, on whose cavity no two ways of looking agree, is never taken.
    """
    levels, limits = np.linspace(0.01, 1, 100)[:, None], np.linspace(0, _MOST_DISTANT, 101)[None]

    def taken(numbers):
        confidence, distance = numbers.T
        both = (confidence >= levels[..., None]) & (distance <= limits[..., None])
        return both.mean(axis=-1)

    cost = 1 - taken(hearts) + np.mean([taken(numbers) for numbers in others.values()], axis=0)
    good = cost <= cost.min() + 1e-9
    limit = _middle(np.flatnonzero(good.any(axis=0)))
    level = _middle(np.flatnonzero(good[:, limit]))
    return float(levels[level, 0]), float(limits[0, limit])


def _middle(numbers):
    return int(numbers[len(numbers) // 2])


def format_summary(summary: dict) -> str:
    """The table of a summary, for a terminal."""
    lines = [
        f"{summary['network']} on {summary['dataset']} {summary['split']}: "
        f"{summary['patients']} patients, {summary['images']} images"
    ]
    for name, phases in summary["structures"].items():
        lines += [
            f"{name:18s} {phase}  Dice {s['mean']:.3f} (SD {s['std']:.3f}, "
            f"95 % {s['low']:.3f} to {s['high']:.3f})"
            for phase, s in phases.items()
        ]
    change = summary["area_change"]
    lines.append(
        f"area change of the cavity: bias {change['bias']:+.1f} points, mean absolute error "
        f"{change['mean_absolute_error']:.1f}"
    )
    lines += [f"note: {note}" for note in summary.get("notes", ())]
    return "\n".join(lines)


def _interval(values) -> dict:
    values = values.dropna().to_numpy()
    draws = np.random.default_rng(0).choice(values, (_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    interval = {"mean": values.mean(), "std": values.std(ddof=1), "low": low, "high": high}
    return {key: round(float(v), 4) for key, v in interval.items()} | {"n": len(values)}


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
