"""Intervals of `track`: their calibration on beats of the phantom, how often they hold on others.

    python tests/interval_accuracy.py beats --seed 60 --first 12 --beats 40 --out calibration.csv
    python tests/interval_accuracy.py beats --seed 91 --first 11 --beats 40 --out test.csv
    python tests/interval_accuracy.py calibrate      # prints the table of registering/intervals.py
    python tests/interval_accuracy.py score          # prints coverage and width
    python tests/interval_accuracy.py difficulties   # prints what the width could have followed

`beats` tracks beats of both views, 12 frames each, and writes a row per number, found and true,
with what can be seen of the region without truth; a file that is there goes on where it ended. The
other commands read docs/results/tracking/intervals-calibration.csv and intervals-test.csv (of
which only found and true are needed and kept).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from tracking_accuracy import TITLES, true_curves

from ldm_morph_jax.beat_scores import found_strains
from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import PhantomCine, phantom_cine
from ldm_morph_jax.data.phantom_cine_dataset import VIEWS
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.ops import strain
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.anatomy import Anatomy, anatomy_of_mask
from ldm_morph_jax.registering.heart import (
    RADIAL_SIGMA,
    TANGENTIAL_SIGMA,
    Curve,
    _volumes,
    directions,
    main_strain,
    strain_numbers,
    wall_sectors,
    wall_strain,
)
from ldm_morph_jax.registering.intervals import HALF_WIDTHS, conformal_quantile, kind
from ldm_morph_jax.registering.result import Tracked

FRAMES = 12
RESULTS = Path(__file__).parents[1] / "docs/results/tracking"
LEAST, MOST = 85, 95  # percent of unseen values that a printed interval covers
SEEN = ("spread", "residual", "correlation", "contrast", "lost")


def tracked_beat(beat: PhantomCine) -> tuple[Tracked, np.ndarray]:
    """(what `track` finds, `[K, H, W, 2]` velocities that twicing added, of the key frames)."""
    cine = cine_from_arrays(
        beat.frames, spacing=FIELD_OF_VIEW_MM / beat.frames.shape[1], times=beat.times
    )
    interpolated, own = [], tracking._interpolate

    def noting(at, times, v):
        interpolated.append(v)
        return own(at, times, v)

    tracking._interpolate = noting
    try:
        found = tracking.track_cine(cine, period="whole")
    finally:
        tracking._interpolate = own
    return replace(found, displacement=found.displacement[:], inverse=found.inverse[:]), (
        interpolated[-1]
    )


def rows_of(look: str, seed: tuple[int, int], beat: PhantomCine, tracked: Tracked, lost) -> list:
    """A row per number of a beat."""
    anatomy = anatomy_of_mask(beat.masks[0], VIEWS[look], "phantom", cavity_and_wall=(1, 2))
    true = true_curves(beat, tracked, anatomy)
    found = found_strains(tracked.displacement, tracked, anatomy)
    fractions, es = _fractions(beat, tracked, anatomy)
    seen = _seen(tracked, anatomy, es, lost)
    row, rows = {"look": look, "seed": " ".join(map(str, seed))}, []
    at, tangential = tracked.times - tracked.times[0], main_strain(anatomy.view)
    for curve in _known(found, anatomy.view):
        number, expected = (
            strain_numbers(values, curve.direction, at, es)["peak"]
            for values in (curve.values, true[curve.column])
        )
        region = "wall" if curve.region == "endocardium" else curve.region
        rows.append(
            row
            | {"what": kind(curve), "region": curve.region, "found": number, "true": expected}
            | seen[curve.direction, region]
        )
    for what, (number, expected) in fractions.items():
        about = {"what": what, "region": "cavity", "found": number, "true": expected}
        rows.append(row | about | seen[tangential, "wall"])
    return rows


def _known(curves: dict[str, np.ndarray], view: str) -> list[Curve]:
    """The curves of `found_strains` with their directions and regions."""
    known = []
    for direction in ("radial", main_strain(view)):
        for column, values in curves.items():
            before, _, region = column.partition(f"{direction}_strain")
            if before == "" and column.startswith(direction):
                known.append(Curve("strain", region.lstrip("_") or "wall", "", values, direction))
            elif before == "endocardial_":
                known.append(Curve("strain", "endocardium", "", values, direction))
    return known


def _fractions(beat, tracked, anatomy) -> tuple[dict[str, tuple[float, float]], int]:
    """(what -> change to end-systole, found and true; the frame of end-systole, as found)."""
    cavity, apical = jnp.asarray(anatomy.cavity, jnp.int32), anatomy.view == "apical"
    sizes = {
        "area of cavity": np.asarray(strain.region_size(jnp.asarray(tracked.displacement), cavity))
    }
    areas = np.linalg.det(beat.deformation)[:, anatomy.cavity].sum(axis=1)
    true = {"area of cavity": 1 - areas[beat.end_systole] / areas[0]}
    if apical:
        sizes["volume of cavity"] = _volumes_of(tracked, anatomy)
        u = beat.displacement[[0, beat.end_systole]]
        ends = replace(tracked, displacement=u, inverse=np.asarray(invert(jnp.asarray(u))[0]))
        first, last = _volumes_of(ends, anatomy)
        true["volume of cavity"] = 1 - last / first
    es = int(sizes["volume of cavity" if apical else "area of cavity"].argmin())
    return {k: (1 - sizes[k][es] / sizes[k][0], true[k]) for k in sizes}, es


def _volumes_of(tracked, anatomy: Anatomy) -> np.ndarray:
    contour = jnp.asarray(anatomy.contours["endo"], jnp.float32)
    endo = strain.move_points(contour, jnp.asarray(tracked.displacement))
    return _volumes(tracked, anatomy, np.asarray(endo))[0]


def _seen(tracked, anatomy, es: int, lost) -> dict[tuple[str, str], dict[str, float]]:
    """(direction, region) -> what can be seen without truth, at end-systole.

    spread: standard deviation of strain; residual: root mean square of the difference of end-
    diastole and end-systole brought to it; correlation: 1 - that of the two; contrast: standard
    deviation of end-diastole; lost: mean length of what twicing added, in pixels.
    """
    sectors, names = wall_sectors(tracked, anatomy)
    regions = {"wall": anatomy.wall} | {n: sectors == k for k, n in enumerate(names, start=1)}
    first, warped = tracked.cine.frames[0], tracked.warped(es)
    count = len(tracked.times)
    keys = np.unique(np.linspace(0, count - 1, tracking.DEFAULTS.key_frames).round().astype(int))
    lengths = np.linalg.norm(lost[np.abs(keys - es).argmin()], axis=-1)
    wall, u = jnp.asarray(anatomy.wall, jnp.float32), jnp.asarray(tracked.displacement[es])
    seen = {}
    for direction, normal, sigma in zip(
        ("radial", main_strain(anatomy.view)),
        directions(tracked, anatomy),
        (RADIAL_SIGMA, TANGENTIAL_SIGMA),
        strict=True,
    ):
        values = np.asarray(wall_strain(u, wall, normal, sigma, tracked.spacing))
        for name, region in regions.items():
            a, b = first[region], warped[region]
            found = (
                values[region].std(),
                np.sqrt(np.mean((a - b) ** 2)),
                1 - np.corrcoef(a, b)[0, 1],
                a.std(),
                lengths[region].mean(),
            )
            seen[direction, name] = dict(zip(SEEN, map(float, found), strict=True))
    return seen


# ---------------------------------------------------------------------------- tables


def half_widths(rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(view, what) -> half the width, as in `registering.intervals`."""
    errors = (rows.found - rows.true).abs().groupby([rows.look, rows.what], sort=False)
    return {
        (VIEWS[look], what): float(f"{conformal_quantile(part.to_numpy()):.3g}")
        for (look, what), part in errors
    }


def coverage(rows: pd.DataFrame, widths) -> pd.DataFrame:
    """A row per (look, what): beats, values, covered (percent), half the width (points)."""
    found = []
    for (look, what), part in rows.groupby(["look", "what"], sort=False):
        half, error = widths[VIEWS[look], what], (part.found - part.true).abs()
        found.append(
            {
                "look": look,
                "what": what,
                "beats": part.seed.nunique(),
                "values": len(part),
                "covered": 100 * (error <= half).mean(),
                "half": 100 * half,
            }
        )
    return pd.DataFrame(found)


def scored(calibration: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Markdown: coverage of unseen beats, width, and whether the package prints the interval."""
    lines = [
        "| unseen beats | number | values | covered, % | half width, points | printed |",
        "|---|---|---|---|---|---|",
    ]
    for one in coverage(rows, half_widths(calibration)).itertuples():
        printed = "yes" if (VIEWS[one.look], one.what) in HALF_WIDTHS else "no"
        lines.append(
            f"| {one.beats} {TITLES[one.look]} | {_named(one.what)} | {one.values} | "
            f"{one.covered:.0f} | {one.half:.1f} | {printed} |"
        )
    return "\n".join(lines)


def _named(what: str) -> str:
    fractions = {"area of cavity": "area change", "volume of cavity": "ejection fraction"}
    return fractions.get(what, f"peak {what}")


def difficulties(rows: pd.DataFrame) -> str:
    """Markdown: width of intervals that follow what is seen, over that of constant ones.

    Half the width is then q (1 + s / median s) / 2 with the same coverage of the same beats.
    """
    lines = [f"| number | {' | '.join(SEEN)} |", "|---|" + "---|" * len(SEEN)]
    for (look, what), part in rows.groupby(["look", "what"], sort=False):
        error = (part.found - part.true).abs().to_numpy()
        cells = []
        for name in SEEN:
            difficulty = (1 + part[name] / part[name].median()).to_numpy() / 2
            followed = conformal_quantile(error / difficulty) * difficulty.mean()
            cells.append(f"{followed / conformal_quantile(error):.2f}")
        lines.append(f"| {TITLES[look]}: {_named(what)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_tables(folder: Path = RESULTS) -> tuple[str, str]:
    """(of coverage, of difficulties) in Markdown, from the committed rows."""
    calibration, rows = (
        pd.read_csv(folder / f"intervals-{name}.csv") for name in ("calibration", "test")
    )
    return scored(calibration, rows), difficulties(calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("beats", "calibrate", "score", "difficulties"))
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
                rows += rows_of(look, (args.seed, number), beat, *tracked_beat(beat))
                with atomic(args.out) as part:
                    write(pd.DataFrame(rows), part)
    elif args.what == "calibrate":
        calibration, rows = (
            pd.read_csv(RESULTS / f"intervals-{name}.csv") for name in ("calibration", "test")
        )
        held = coverage(rows, half_widths(calibration)).set_index(["look", "what"]).covered
        for (look, what), covered in held.items():
            key = VIEWS[look], what
            text = f"    {key}: {half_widths(calibration)[key]},".replace("'", '"')
            print(text if LEAST <= round(covered) <= MOST else f"{text}  # covers {covered:.0f} %")
    else:
        print(read_tables()[("score", "difficulties").index(args.what)])


def write(rows: pd.DataFrame, path: Path) -> None:
    rows.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
