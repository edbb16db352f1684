"""Scores of displacements, of whatever program, on beats of the phantom (dataset `phantom_cine`).

A result is a folder for each beat, RESULTS/sax-88-0/displacement/frame_007.nii.gz, as `track`
writes it: T(p) = p + d(p) in mm, LPS, on the grid of end-diastole, which leads to where its tissue
is in frame 7 (an ITK transform; fixed image end-diastole, moving image frame 7). End-systole has to
be there, the other frames may be.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ldm_morph_jax.files.errors import ImageError, TransformError
from ldm_morph_jax.files.movies import read_cine
from ldm_morph_jax.files.reading import read_stored
from ldm_morph_jax.files.transforms import read_transform
from ldm_morph_jax.ops import metrics, strain
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.registering.anatomy import VIEWS, Anatomy, anatomy_of_mask
from ldm_morph_jax.registering.heart import (
    directions,
    main_strain,
    strain_column,
    wall_sectors,
    wall_strains,
)
from ldm_morph_jax.registering.result import Tracked

CAVITY_AND_WALL = (1, 2)  # labels of the phantom
LABELS = (1, 2, 3)
STRAINS = ("radial", "tangential", "endocardial")


def score_beats(beats: Path, results: Path, *, only_found: bool = False) -> pd.DataFrame:
    """A row per beat of `beats` (the folder that `prepare` names); see `score_beat`.

    only_found: leave out beats of which `results` has nothing.

    Raises ImageError or TransformError, naming the file, where something is missing or does not
    fit.
    """
    folders = sorted(path.parent for path in beats.glob("*/beat.json"))
    if not folders:
        raise ImageError(f"{beats}: has no beats; `prepare --dataset phantom_cine` writes them")
    pairs = [(folder, results / folder.name) for folder in folders]
    return pd.DataFrame([score_beat(*pair) for pair in pairs if pair[1].is_dir() or not only_found])


def score_beat(truth: Path, result: Path) -> dict:
    """Errors of one beat.

    Returns:
        view, id; frames: how many were given; epe_px: end-point error in the wall, mean over these
        frames; at end-systole: epe_end_systole_px; motion_px, of the truth; strain of the wall,
        radial and tangential (circumferential in short-axis, longitudinal in apical views), and
        endocardial (shortening of the contour), each _true and _found; ..._segments: root mean
        square error over the segments; dsc: of the labels of end-systole brought to end-diastole
        with those of end-diastole, mean over structures; folded_percent of all pixels.
    """
    about = json.loads((truth / "beat.json").read_text(encoding="utf-8"))
    cine = read_cine(truth / "cine.nii.gz")
    labels = read_stored(truth / "masks.nii.gz", labels=True).array[:, 0]
    anatomy = anatomy_of_mask(labels[0], about["view"], str(truth), cavity_and_wall=CAVITY_AND_WALL)
    names = sorted(path.name for path in (truth / "displacement").iterdir())
    es = about["end_systole"]
    given = [t for t, name in enumerate(names) if t and (result / "displacement" / name).is_file()]
    if es not in given:
        raise TransformError(f"{result / 'displacement' / names[es]}: no such file")
    pixels = {
        folder: np.stack([_read(folder / "displacement" / names[t], cine) for t in given])
        for folder in (truth, result)
    }
    error = np.linalg.norm(pixels[result] - pixels[truth], axis=-1)[:, anatomy.wall].mean(axis=1)
    at = given.index(es)
    true, found = (pixels[folder][at] for folder in (truth, result))
    tracked = Tracked(cine, 0, cine.times, pixels[truth], pixels[truth], None, None, "")
    curves = {
        "true": true_strains(_tensor(truth, es), true[None], tracked, anatomy),
        "found": found_strains(found[None], tracked, anatomy),
    }
    carried = np.asarray(
        warp(
            jnp.asarray(labels[es])[None, ..., None],
            jnp.asarray(found)[None],
            interpolation="nearest",
        )
    )
    return {
        "view": about["view"],
        "id": truth.name,
        "frames": len(given),
        "epe_px": error.mean(),
        "epe_end_systole_px": error[at],
        "motion_px": np.linalg.norm(true, axis=-1)[anatomy.wall].mean(),
        **_of_strains(curves, anatomy.view),
        "dsc": np.nanmean(list(metrics.dice(carried[0, ..., 0], labels[0], LABELS).values())),
        "folded_percent": 100 * np.mean(np.asarray(jacobian_determinant(found)) <= 0),
    }


def true_strains(
    tensor: np.ndarray, u: np.ndarray, tracked: Tracked, anatomy: Anatomy
) -> dict[str, np.ndarray]:
    """Column of curves.csv -> `[T]`, from what is known exactly.

    Args:
        tensor: `[T, H, W, 2, 2]`, Green and Lagrange's strain, (row, column).
        u: `[T, H, W, 2]` pixels.
        tracked: on whose grid.
        anatomy: of the reference frame.
    """
    tensor = jnp.asarray(tensor)
    maps = [strain.normal_strain(tensor, normal) for normal in directions(tracked, anatomy)]
    return _strains(maps, u, tracked, anatomy)


def found_strains(u: np.ndarray, tracked: Tracked, anatomy: Anatomy) -> dict[str, np.ndarray]:
    """As `true_strains`, from displacements alone, as `track` measures it."""
    wall, u = jnp.asarray(anatomy.wall, jnp.float32), jnp.asarray(u, jnp.float32)
    maps = wall_strains(u, wall, directions(tracked, anatomy), tracked.spacing)
    return _strains(maps, u, tracked, anatomy)


def _strains(maps: Sequence[jax.Array], u, tracked, anatomy) -> dict[str, np.ndarray]:
    """Of maps `[T, H, W]`, radial and tangential: means over the wall and its segments."""
    sectors, names = wall_sectors(tracked, anatomy)
    by_column = {}
    for direction, values in zip(("radial", main_strain(anatomy.view)), maps, strict=True):
        of_wall = strain.regional_mean(values, jnp.asarray(anatomy.wall, jnp.int32), 1)
        of_sectors = strain.regional_mean(values, jnp.asarray(sectors), max(1, len(names)))
        for region, curve in zip(
            ("wall", *names), np.concatenate([of_wall, of_sectors], axis=1).T, strict=False
        ):
            by_column[strain_column(direction, region)] = curve
    points = jnp.asarray(anatomy.contours["endo"], jnp.float32)
    before, after = (
        strain.contour_length(line, tracked.spacing, closed=anatomy.closed)
        for line in (points[None], strain.move_points(points, jnp.asarray(u, jnp.float32)))
    )
    column = strain_column(main_strain(anatomy.view), "endocardium")
    return by_column | {column: np.asarray(after / before - 1)}


def _tensor(truth: Path, frame: int) -> np.ndarray:
    """Green and Lagrange's strain of a frame, `[1, H, W, 2, 2]`, (row, column)."""
    xx, xy, yy = (
        read_stored(truth / f"strain_{name}.nii.gz").array[frame, 0] for name in ("xx", "xy", "yy")
    )
    return np.stack([np.stack([yy, xy], -1), np.stack([xy, xx], -1)], -1)[None]


def _read(path: Path, cine) -> np.ndarray:
    """`[H, W, 2]` pixels."""
    transform = read_transform(path)
    if not transform.fixed.same_as(cine.first.geometry):
        raise TransformError(
            f"{path}: lies on another grid than {cine.first.source}, expected {cine.first.geometry}"
        )
    return transform.fixed.vectors_to_index(transform.displacement_mm).astype(np.float32)


def _of_strains(curves: Mapping[str, Mapping[str, np.ndarray]], view: str) -> dict[str, float]:
    row = {}
    tangential = main_strain(view)
    columns = (f"{direction}_strain" for direction in ("radial", tangential))
    for name, column in zip(STRAINS, (*columns, f"endocardial_{tangential}_strain"), strict=True):
        for which, of_column in curves.items():
            row[f"{name}_{which}"] = float(of_column[column][0])
        segments = [key for key in curves["true"] if key.startswith(f"{column}_")]
        if segments:
            errors = [curves["found"][key][0] - curves["true"][key][0] for key in segments]
            row[f"{name}_segments"] = float(np.sqrt(np.mean(np.square(errors))))
    return row


def format_scores(tables: Mapping[str, pd.DataFrame]) -> str:
    """Markdown: a row per view and method.

    Strain: root mean square of the relative errors (their mean); of segments in percentage points,
    along the wall. A column cpu_seconds is shown, too, where the rows have it.
    """
    timed = any("cpu_seconds" in table for table in tables.values())
    lines = [
        "| beats | method | end-point error, px | radial, % | along the wall, % | endocardial, % "
        "| segments, points | DSC | folded, % |" + " CPU seconds |" * timed,
        "|---|---|---|---|---|---|---|---|---|" + "---|" * timed,
    ]
    for view, title in VIEWS.items():
        for method, table in tables.items():
            rows = table[table["view"] == view]
            if rows.empty:
                continue
            cells = [f"{rows['epe_end_systole_px'].mean():.2f}"]
            for name in STRAINS:
                error = 100 * (rows[f"{name}_found"] / rows[f"{name}_true"] - 1)
                cells.append(f"{np.sqrt(np.mean(error**2)):.1f} ({error.mean():+.1f})")
            of_segments = np.sqrt(np.mean(rows["tangential_segments"] ** 2))
            cells += [f"{100 * of_segments:.1f}", f"{rows['dsc'].mean():.3f}"]
            cells.append(f"{rows['folded_percent'].mean():.2f}")
            if timed:
                cells.append(f"{rows['cpu_seconds'].median():.1f}")
            lines.append(f"| {len(rows)} {title} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
