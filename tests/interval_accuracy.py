"""Intervals of `track`: their calibration, and how often they hold on hearts not seen before.

    python tests/interval_accuracy.py beats --seed 60 --first 12 --beats 60 --out beats.csv
    python tests/interval_accuracy.py patients --dataset acdc --source DIR --out patients.csv
    python tests/interval_accuracy.py calibrate      # prints the table of registering/intervals.py
    python tests/interval_accuracy.py score          # prints coverage and width
    python tests/interval_accuracy.py bias           # prints relative errors of peak strain

`beats` tracks beats of the phantom, both views, 12 frames each, and writes a row per strain, found
and true; a file that is there goes on where it ended. `patients` carries end-diastole's mask to
end-systole and writes a row per patient and number of the cavity. The other commands read what is
in docs/results: tracking/intervals-calibration.csv, tracking/intervals-test.csv, and the ejection
fractions of whole stacks, volumes/ejection.csv (tests/stack_ejection.py).
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm
from tracking_accuracy import CAVITY, TITLES, ejected, prepared, true_curves

from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import PhantomCine, phantom_cine
from ldm_morph_jax.data.phantom_cine_dataset import VIEWS
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.anatomy import anatomy_of_mask
from ldm_morph_jax.registering.heart import measure, strain_numbers
from ldm_morph_jax.registering.intervals import COVERAGE, ERRORS, kind
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.tracking import Tracking

FRAMES = 12
RESULTS = Path(__file__).parents[1] / "docs/results/tracking"
PATIENTS = {"acdc": "sax", "camus_4ch": "apical"}  # whose pairs are annotated, and their view
STACKS = "acdc_3d"  # whole stacks, rows of tests/stack_ejection.py
VIEW = VIEWS | PATIENTS | {STACKS: "stack"}
NAMES = {look: f"{title} beats" for look, title in TITLES.items()} | {
    "acdc": "patients of ACDC",
    "camus_4ch": "patients of CAMUS-4CH",
    STACKS: "whole stacks of ACDC",
}
LEAST = 85  # percent of unseen values that a printed interval covers


def tracked_beat(beat: PhantomCine) -> Tracked:
    """What `track` finds."""
    cine = cine_from_arrays(
        beat.frames, spacing=FIELD_OF_VIEW_MM / beat.frames.shape[1], times=beat.times
    )
    found = tracking.track_cine(cine, period="whole")
    return replace(found, displacement=found.displacement[:], inverse=found.inverse[:])


def rows_of(look: str, seed: tuple[int, int], beat: PhantomCine, tracked: Tracked) -> list:
    """A row per strain of a beat."""
    anatomy = anatomy_of_mask(beat.masks[0], VIEWS[look], "phantom", cavity_and_wall=(1, 2))
    true, found = true_curves(beat, tracked, anatomy), measure(tracked, anatomy)
    at = tracked.times - tracked.times[0]
    row, rows = {"look": look, "seed": " ".join(map(str, seed))}, []
    for curve in found.curves:
        if curve.quantity == "strain":
            number, expected = (
                strain_numbers(values, curve.direction, at, at[found.end_systole])["peak"]
                for values in (curve.values, true[curve.column])
            )
            about = {"what": kind(curve), "region": curve.region}
            rows.append(row | about | {"found": number, "true": expected})
    return rows


def patient_rows(dataset, split: str, most: int) -> Iterator[dict]:
    """Rows of the first `most` annotated pairs of a split, ED's mask given and carried to ES.

    Both frames are a cine of two. Area change is that of the cavity in the slice; the ejection
    fraction (CAMUS) is by the single-plane method of discs, of both masks.
    """
    for k, name in enumerate(dataset.ids(split)[:most]):
        pair = dataset.split(split)[k]
        spacing = tuple(map(float, pair["spacing"]))
        ed, es, before, after = (
            np.asarray(pair[key])[..., 0]
            for key in ("moving", "fixed", "moving_mask", "fixed_mask")
        )
        cavity, view = CAVITY[dataset.name], PATIENTS[dataset.name]
        tracked = tracking.track_cine(
            cine_from_arrays(np.stack([ed, es]), spacing=spacing), settings=Tracking(chunk=1)
        )
        anatomy = anatomy_of_mask(before, view, name, cavity_and_wall=(cavity, 2))
        true = {"area of cavity": 1 - (after == cavity).sum() / (before == cavity).sum()}
        if view == "apical":
            true["volume of cavity"] = ejected(dataset.name, before, after, spacing)
        for curve in measure(tracked, anatomy).curves:
            if (what := kind(curve)) in true:
                about = {"look": dataset.name, "seed": name, "what": what, "region": curve.region}
                ed_size, es_size = curve.values
                yield about | {"found": 1 - es_size / ed_size, "true": true[what]}


# ---------------------------------------------------------------------------- tables


def conformal_ends(errors: np.ndarray, coverage: float = COVERAGE) -> tuple[float, float]:
    """(lowest, highest) error of an unseen case with probability `coverage`; infinite if too few.

    The median error, minus and plus the ceil((n + 1) coverage)-th smallest distance from it (Lei et
    al., eq. 2.6). Quantiles of either tail gave wider intervals on the calibration patients.
    """
    middle = float(np.median(errors))
    distances = np.sort(np.abs(errors - middle))
    rank = math.ceil((len(errors) + 1) * coverage - 1e-9)
    half = float(distances[rank - 1]) if rank <= len(errors) else math.inf
    return middle - half, middle + half


def quantiles(rows: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    """(look, what) -> ends of true minus found, as in `registering.intervals`."""
    errors = (rows.true - rows.found).groupby([rows.look, rows.what], sort=False)
    return {
        key: tuple(float(f"{end:.3g}") for end in conformal_ends(part.to_numpy()))
        for key, part in errors
    }


def coverage(rows: pd.DataFrame, errors) -> pd.DataFrame:
    """A row per (look, what): hearts, values, covered (percent), ends of the interval (points)."""
    found = []
    for (look, what), part in rows.groupby(["look", "what"], sort=False):
        low, high = errors[look, what]
        covered = (part.true - part.found).between(low, high)
        found.append(
            {
                "look": look,
                "what": what,
                "hearts": part.seed.nunique(),
                "values": len(part),
                "covered": 100 * covered.mean(),
                "low": 100 * low,
                "high": 100 * high,
            }
        )
    return pd.DataFrame(found)


def scored(calibration: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Markdown: coverage of unseen hearts, width, and whether the package prints the interval."""
    lines = [
        "| unseen hearts | number | values | covered, % | interval, points | printed |",
        "|---|---|---|---|---|---|",
    ]
    for one in coverage(rows, quantiles(calibration)).itertuples():
        printed = "yes" if (VIEW[one.look], one.what) in ERRORS else "no"
        lines.append(
            f"| {one.hearts} {NAMES[one.look]} | {_named(one.what)} | {one.values} | "
            f"{one.covered:.0f} | {one.low:+.1f} to {one.high:+.1f} | {printed} |"
        )
    return "\n".join(lines)


def bias(calibration: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Markdown: relative errors of peak strain of the beats, and the factor that fits them best.

    The factor is that of found = factor x true, by least squares: below 1, motion is shrunk.
    """
    lines = [
        "| strain | beats | error, %, mean | SD | RMS | factor | RMS if divided by the development "
        "beats' factor |",
        "|---|---|---|---|---|---|---|",
    ]
    for (look, what), development in calibration.groupby(["look", "what"], sort=False):
        if look not in VIEWS or what.endswith("segment"):
            continue
        unseen = rows[(rows.look == look) & (rows.what == what)]
        divisor = _factor(development)
        for name, part in (("development", development), ("unseen", unseen)):
            error, divided = (100 * (part.found / f / part.true - 1) for f in (1, divisor))
            numbers = error.mean(), error.std(), np.sqrt(np.mean(error**2))
            lines.append(
                f"| {what} | {len(part)} {name} | {numbers[0]:+.1f} | {numbers[1]:.1f} | "
                f"{numbers[2]:.1f} | {_factor(part):.3f} | {np.sqrt(np.mean(divided**2)):.1f} |"
            )
    return "\n".join(lines)


def _factor(part: pd.DataFrame) -> float:
    return float((part.found * part.true).sum() / (part.true**2).sum())


def _named(what: str) -> str:
    fractions = {"area of cavity": "area change", "volume of cavity": "ejection fraction"}
    return fractions.get(what, f"peak {what}")


def read_rows(folder: Path = RESULTS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The committed rows: (of calibration, of unseen hearts)."""
    stacks = pd.read_csv(folder.parent / "volumes/ejection.csv").query("mode == 'volume'")
    rows = pd.DataFrame(
        {
            "look": STACKS,
            "seed": stacks.patient.map("patient{:03d}".format),
            "what": "volume of cavity",
            "region": "cavity",
            "found": stacks.ef_of_track / 100,
            "true": stacks.ef_of_masks / 100,
        }
    )
    unseen = stacks.patient > 100
    return tuple(
        pd.concat([pd.read_csv(folder / f"intervals-{name}.csv"), of_stacks], ignore_index=True)
        for name, of_stacks in (("calibration", rows[~unseen]), ("test", rows[unseen]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("beats", "patients", "calibrate", "score", "bias"))
    parser.add_argument("--dataset", choices=PATIENTS, help="of patients; see tracking_accuracy.py")
    parser.add_argument("--source")
    parser.add_argument("--data")
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=100, help="patients")
    parser.add_argument("--seed", type=int, default=60)
    parser.add_argument("--first", type=int, default=12)
    parser.add_argument("--beats", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "beats":
        rows = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
        done = {(row["look"], row["seed"]) for row in rows}
        for number in range(args.first, args.first + args.beats):
            for look in VIEWS:
                if (look, f"{args.seed} {number}") in done:
                    continue
                beat = phantom_cine((args.seed, number), look=look, frames=FRAMES)
                rows += rows_of(look, (args.seed, number), beat, tracked_beat(beat))
                with atomic(args.out) as part:
                    write(pd.DataFrame(rows), part)
    elif args.what == "patients":
        dataset = prepared(args.dataset, args.source, args.data, allow_partial=True)
        rows = list(tqdm(patient_rows(dataset, args.split, args.most)))
        write(pd.DataFrame(rows), args.out)
    elif args.what == "calibrate":
        calibration, rows = read_rows()
        errors = quantiles(calibration)
        for one in coverage(rows, errors).itertuples():
            key, ends = (VIEW[one.look], one.what), errors[one.look, one.what]
            text = f"    {key}: {ends},".replace("'", '"')
            holds = round(one.covered) >= LEAST
            print(text if holds else f"{text}  # covers {one.covered:.0f} %")
    else:
        print({"score": scored, "bias": bias}[args.what](*read_rows()))


def write(rows: pd.DataFrame, path: Path) -> None:
    rows.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
