"""How exact tracking is: on beats of the phantom, whose motion is known, and on annotated pairs.

    python tests/tracking_accuracy.py beats --out docs/results/tracking
    python tests/tracking_accuracy.py pairs --dataset acdc --source DIR --out ...

Written: beats.csv (a row per beat), frames.csv (a row per frame, means over beats), beats.png
(Bland-Altman plots of peak strain, error by frame), pairs-DATASET.csv (a row per pair and method).
The tables of docs/tracking.md follow from them; they are printed.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from exact_strain import shared_border
from matplotlib.figure import Figure

from ldm_morph_jax.beat_scores import found_strains, true_strains
from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import PhantomCine, phantom_cine
from ldm_morph_jax.data.phantom_cine_dataset import VIEWS
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.ops import metrics, strain
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.registering import search
from ldm_morph_jax.registering.anatomy import Anatomy, anatomy_of_mask
from ldm_morph_jax.registering.pairs import refined_displacement
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.tracking import Tracking, track_cine
from ldm_morph_jax.report.style import series_colours, style_axis
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

TITLES = {"sax": "short-axis", "echo": "apical"}
LABELS = (1, 2, 3)  # cavity, wall and the third structure, of the phantom and of CAMUS
CAVITY = {"acdc": 3, "camus_4ch": 1}


# ---------------------------------------------------------------------------- beats


def score_beats(
    look: str, seeds: Sequence[Sequence[int]], **size: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(beats, frames): a row per beat, and per frame the mean over beats; `size`: of phantom_cine.

    Errors are end-point errors in pixels within the wall of the reference frame, and peaks of
    strain, `..._true` (by automatic differentiation of the phantom's motion) and `..._found`.
    `dsc_...` is the mean over all structures of end-diastole's mask carried to end-systole,
    through all frames (tracked) and by the pair alone, searched as `register` does (pair).
    """
    rows, errors, motions = [], [], []
    for seed in seeds:
        beat = phantom_cine(seed, look=look, **size)
        spacing = FIELD_OF_VIEW_MM / beat.frames.shape[1]
        cine = cine_from_arrays(beat.frames, spacing=spacing, times=beat.times)
        start = time.process_time()
        tracked = track_cine(cine, period="whole")
        seconds = time.process_time() - start
        anatomy = anatomy_of_mask(beat.masks[0], VIEWS[look], "phantom", cavity_and_wall=(1, 2))
        error = np.linalg.norm(tracked.displacement - beat.displacement, axis=-1)
        error = error[:, anatomy.wall].mean(axis=1)
        motion = np.linalg.norm(beat.displacement, axis=-1)[:, anatomy.wall].mean(axis=1)
        row = {
            "look": look,
            "seed": " ".join(map(str, seed)),
            "epe_px": error[1:].mean(),
            "epe_end_systole_px": error[beat.end_systole],
            "motion_px": motion[1:].mean(),
            "drift_alone_px": np.linalg.norm(tracked.unconstrained_last, axis=-1)[
                anatomy.wall
            ].mean(),
            "drift_px": np.linalg.norm(tracked.displacement[-1], axis=-1)[anatomy.wall].mean(),
        }
        found = found_strains(tracked.displacement[:], tracked, anatomy)
        for name, curve in true_curves(beat, tracked, anatomy).items():
            if name.endswith("_strain"):  # not of a segment
                row[f"{name}_true"] = strain.peak(curve, tracked.times)[0]
                row[f"{name}_found"] = strain.peak(found[name], tracked.times)[0]
        carried = tracked.carried(beat.masks[0], beat.end_systole)
        row["dsc_tracked"] = _dice(carried, beat.masks[beat.end_systole])
        row["dsc_pair"] = _dice(_carried_by_pair(beat), beat.masks[beat.end_systole])
        rows.append(row | {"cpu_seconds": seconds})
        errors.append(error)
        motions.append(motion)
        print(f"{look} {row['seed']}: {row['epe_px']:.3f} px", flush=True)
    frames = pd.DataFrame(
        {
            "look": look,
            "frame": np.arange(len(error)),
            "epe_px": np.mean(errors, axis=0),
            "epe_std_px": np.std(errors, axis=0),
            "motion_px": np.mean(motions, axis=0),
        }
    )
    return pd.DataFrame(rows), frames


def true_curves(beat: PhantomCine, tracked: Tracked, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """The strains of `measure` by the same names, `[T]`, without a difference of pixels."""
    tensor = strain.green_lagrange(jnp.asarray(beat.deformation))
    return true_strains(tensor, beat.displacement, tracked, anatomy)


def _carried_by_pair(beat: PhantomCine) -> np.ndarray:
    """End-diastole's mask in end-systole, by the search of `register` from no motion."""
    es = beat.end_systole
    found = search.refine(jnp.asarray(beat.frames[es : es + 1]), jnp.asarray(beat.frames[:1]))
    mask = jnp.asarray(beat.masks[:1, ..., None])
    return np.asarray(warp(mask, found.inverse.displacement, interpolation="nearest"))[0, ..., 0]


def _dice(a, b) -> float:
    return float(np.nanmean(list(metrics.dice(a, b, LABELS).values())))


def relative_errors(beats: pd.DataFrame, name: str) -> np.ndarray:
    """Percent of the true peak of a strain, positive where too much of it was found."""
    return 100 * (beats[f"{name}_found"] / beats[f"{name}_true"] - 1).to_numpy()


def strain_names(beats: pd.DataFrame) -> list[str]:
    """Of the strains that the beats of one look have."""
    ends = [c.removesuffix("_true") for c in beats if c.endswith("_true")]
    return [name for name in ends if beats[f"{name}_true"].notna().all()]


def beats_table(beats: pd.DataFrame) -> str:
    """Markdown: a row per look and quantity."""
    lines = ["| beats | quantity | result |", "|---|---|---|"]
    for look, title in TITLES.items():
        rows = beats[beats["look"] == look]
        first = f"{len(rows)} {title}"

        def say(what: str, result: str, first=first):
            lines.append(f"| {first} | {what} | {result} |")

        epe = rows["epe_px"]
        motion = rows["motion_px"].mean()
        say("end-point error in the wall, px", f"{epe.mean():.2f} (worst beat {epe.max():.2f})")
        say("the same at end-systole", f"{rows['epe_end_systole_px'].mean():.2f}")
        say("motion, px", f"{motion:.2f}")
        for name in strain_names(rows):
            error = relative_errors(rows, name)
            result = f"{np.sqrt(np.mean(error**2)):.1f} % (bias {error.mean():+.1f})"
            say(f"peak {name.replace('_', ' ')}, relative error, RMS", result)
        alone, drift = rows["drift_alone_px"].mean(), rows["drift_px"].mean()
        say("drift at the end of the beat, px", f"{drift:.3f} (last frame by itself {alone:.2f})")
        both = f"{rows['dsc_tracked'].mean():.3f} (pair alone {rows['dsc_pair'].mean():.3f})"
        say("DSC of the mask carried to end-systole", both)
    return "\n".join(lines)


def beats_figure(beats: pd.DataFrame, frames: pd.DataFrame) -> Figure:
    """Bland-Altman plots (found - true over their mean, 95 % limits), and the error by frame."""
    panels = [
        (look, name) for look in TITLES for name in strain_names(beats[beats["look"] == look])
    ]
    figure = Figure(figsize=(3.1 * 4, 2.6 * 2), layout="constrained", dpi=80)
    axes = figure.subplots(2, 4).ravel()
    colour = series_colours(False)[0]
    for axis, (look, name) in zip(axes, panels, strict=False):
        rows = beats[beats["look"] == look]
        true, found = rows[f"{name}_true"], rows[f"{name}_found"]
        difference = found - true
        middle, spread = difference.mean(), 1.96 * difference.std(ddof=1)
        style_axis(axis, False)
        axis.scatter((true + found) / 2, difference, s=14, color=colour)
        for level, line in ((middle, "-"), (middle - spread, "--"), (middle + spread, "--")):
            axis.axhline(level, linestyle=line, color="0.4", linewidth=0.9)
        axis.set_title(f"{TITLES[look]}: {name.replace('_', ' ')}", fontsize=8)
        axis.set_xlabel("mean of found and true", fontsize=7)
        axis.set_ylabel("found - true", fontsize=7)
    for axis, (look, rows) in zip(axes[len(panels) :], frames.groupby("look"), strict=True):
        style_axis(axis, False)
        axis.errorbar(rows["frame"], rows["epe_px"], rows["epe_std_px"], color=colour, linewidth=1)
        axis.set_title(f"{TITLES[look]}: end-point error, px", fontsize=8)
        axis.set_xlabel("frame (bars: standard deviation over beats)", fontsize=7)
    return figure


# ---------------------------------------------------------------------------- pairs


def score_pairs(dataset, split: str, models: Sequence[str]) -> pd.DataFrame:
    """A row per pair and method: fraction by the annotated masks, and by the carried one.

    ACDC: fractional area change of the cavity in the slice. CAMUS: ejection fraction by the
    single-plane method of discs; its base is the middle of the border of ventricle and atrium.

    Args:
        dataset: opened, of pairs from end-diastole to end-systole.
        split: which of its splits.
        models: "track": both frames as a cine; others as in `evaluate --model`; networks are
            refined as `register` does.
    """
    fraction = functools.partial(ejected, dataset.name)
    pairs, names, rows = dataset.split(split), dataset.ids(split), []
    for model in models:
        carry = _carrier(model)
        for name, pair in zip(names, (pairs[i] for i in range(len(pairs))), strict=True):
            moving, fixed, before, after = (
                np.asarray(pair[key])[..., 0]
                for key in ("moving", "fixed", "moving_mask", "fixed_mask")
            )
            carried = carry(moving, fixed, before)
            rows.append(
                {
                    "id": name,
                    "method": model,
                    "annotated": fraction(before, after, pair["spacing"]),
                    "found": fraction(before, carried, pair["spacing"]),
                }
            )
        print(f"{dataset.name} {model}: {len(names)} pairs", flush=True)
    return pd.DataFrame(rows)


def _carrier(model: str):
    """(moving, fixed, labels of moving), `[H, W]` each -> labels in the fixed image."""
    if model == "track":

        def carry(moving, fixed, labels):
            cine = cine_from_arrays(np.stack([moving, fixed]))
            return track_cine(cine, settings=Tracking(chunk=1)).carried(labels, 1)

        return carry
    from ldm_morph_jax.runs.trained import load_method

    method = load_method(model)

    def carry(moving, fixed, labels):
        images = moving[None, ..., None], fixed[None, ..., None]
        if method.iterative:
            u = method.displacement(*images)
        else:
            u = refined_displacement(method, *images, steps=search.STEPS)
        mask = jnp.asarray(labels)[None, ..., None]
        return np.asarray(warp(mask, jnp.asarray(u), interpolation="nearest"))[0, ..., 0]

    return carry


def ejected(dataset: str, before, after, spacing) -> float:
    """Of the cavity of two masks `[H, W]`, of area or of volume."""
    cavity = CAVITY[dataset]
    if dataset == "acdc":
        sizes = [float((mask == cavity).sum()) for mask in (before, after)]
    else:
        sizes = [_volume(mask, tuple(map(float, spacing))) for mask in (before, after)]
    return float(strain.fractional_change(*sizes))


def _volume(mask, spacing) -> float:
    ventricle = mask == CAVITY["camus_4ch"]
    base = shared_border(ventricle, mask == LABELS[2])
    apex, base = strain.long_axis(ventricle, base, spacing)
    return float(strain.disc_volume(jnp.asarray(ventricle, jnp.float32), apex, base, spacing))


def pairs_table(tables: dict[str, pd.DataFrame]) -> str:
    """Markdown: a row per dataset and method, in percentage points."""
    lines = [
        "| pairs | method | mean absolute error | bias | 95 % limits of agreement |",
        "|---|---|---|---|---|",
    ]
    for dataset, table in tables.items():
        for method, rows in table.groupby("method", sort=False):
            error = 100 * (rows["found"] - rows["annotated"]).to_numpy()
            spread = 1.96 * error.std(ddof=1)
            lines.append(
                f"| {len(rows)} of {dataset} | {method} | {np.abs(error).mean():.1f} "
                f"| {error.mean():+.1f} | {error.mean() - spread:+.1f} to "
                f"{error.mean() + spread:+.1f} |"
            )
    return "\n".join(lines)


# ---------------------------------------------------------------------------- files


def read_tables(folder: Path) -> tuple[str, str]:
    """(of beats, of pairs) in Markdown, from the rows of a folder."""
    pairs = {
        path.stem.removeprefix("pairs-"): pd.read_csv(path, dtype={"id": str})
        for path in sorted(folder.glob("pairs-*.csv"))
    }
    return beats_table(pd.read_csv(folder / "beats.csv")), pairs_table(pairs)


def _write(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        table.to_csv(part, index=False, float_format="%.5g", lineterminator="\n")


def _beats(args) -> None:
    seeds = [(args.seed, i) for i in range(args.beats)]
    found = [score_beats(look, seeds) for look in TITLES]
    beats, frames = (pd.concat(part) for part in zip(*found, strict=True))
    _write(beats, args.out / "beats.csv")
    _write(frames, args.out / "frames.csv")
    beats_figure(beats, frames).savefig(args.out / "beats.png")
    print(beats_table(beats))


def prepared(name: str, source: str | None, directory: str | None, *, allow_partial: bool):
    """A dataset of annotated pairs, with the paper's settings."""
    from ldm_morph_jax.config import paper_config
    from ldm_morph_jax.runs.dataset import dataset_of

    config = paper_config()
    config.data.name = name
    config.data.source = source
    config.data.options.allow_partial = allow_partial
    if directory:
        config.data.directory = directory
    return dataset_of(config)


def _pairs(args) -> None:
    dataset = prepared(args.dataset, args.source, args.data, allow_partial=args.allow_partial)
    table = score_pairs(dataset, args.split, args.model)
    _write(table, args.out / f"pairs-{args.dataset}.csv")
    print(pairs_table({args.dataset: table}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    beats = commands.add_parser("beats", help="of the phantom")
    beats.add_argument("--seed", type=int, default=88, help="first number of the seeds")
    beats.add_argument("--beats", type=int, default=20, help="of each view")
    beats.set_defaults(run=_beats)
    pairs = commands.add_parser("pairs", help="annotated ones of a dataset")
    pairs.add_argument("--dataset", choices=CAVITY, required=True)
    pairs.add_argument("--source", help="where its files are (docs/datasets.md)")
    pairs.add_argument("--data", help="where prepared datasets are kept")
    pairs.add_argument("--allow-partial", action="store_true", help="take the patients there are")
    pairs.add_argument("--split", default="test", choices=("train", "validation", "test"))
    pairs.add_argument("--model", nargs="+", default=["track", DEFAULT_MODEL, "syn"])
    pairs.set_defaults(run=_pairs)
    for one in (beats, pairs):
        one.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
