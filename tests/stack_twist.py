"""Twist of hearts of the 3-D phantom, as `track --slice all` finds it: slice by slice.

    PYTHONPATH=.:tests python tests/stack_twist.py --seed 31 --hearts 20 --out twist.csv

Hearts, grid and frames are those of tests/volume_motion.py: end-diastole and end-systole, slices
3.15 mm apart. Twist is the rotation of the outermost apical slice minus that of the outermost basal
one (`registering.segments.twist_of`), so that only these two are tracked. The truth is that of the
same contours moved by the phantom's closed form. A row is one heart: twist, rotation of both
slices, and by how many millimetres their wall moves through them. Rows that OUT has already are
kept. At the end: the errors over all rows.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from kept_rows import KeptRows
from volume_motion import SHAPE, SPACING

from ldm_morph_jax.data.ventricle import LEFT_VENTRICLE, MYOCARDIUM, ventricle
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.ops.segments import levels_of, outermost
from ldm_morph_jax.registering.anatomy import anatomy_of
from ldm_morph_jax.registering.heart import measure
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.segments import twist_of
from ldm_morph_jax.registering.tracking import Tracking, track_cine

WITHIN = 1.0  # degrees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--hearts", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = KeptRows(args.out, ("seed", "heart"))
    for k in range(args.hearts):
        if (args.seed, k) not in rows:
            found = score(ventricle((args.seed, k), SHAPE, SPACING))
            rows.add({"seed": args.seed, "heart": k} | found)
    print(sentence(pd.read_csv(args.out)))


def score(heart) -> dict:
    names = LEFT_VENTRICLE, MYOCARDIUM
    levels = levels_of(heart.fixed_mask, *names)
    known = np.flatnonzero((heart.fixed_mask == LEFT_VENTRICLE).any(axis=(1, 2))).tolist()
    ends, begin = outermost(levels, known), time.process_time()
    found: dict[str, list[dict]] = {"true": [{}] * SHAPE[0], "found": [{}] * SHAPE[0]}
    for k in ends:
        frames = np.stack([heart.fixed[k], heart.moving[k]])
        cine = cine_from_arrays(frames, spacing=SPACING[1:])
        anatomy = anatomy_of(cine, view="sax", mask=heart.fixed_mask[k], labels=names)
        true = np.stack([np.zeros((*SHAPE[1:], 2)), heart.displacement[k, ..., 1:]])
        true = true.astype(np.float32)
        for name, tracked in (
            ("true", Tracked(cine, 0, np.arange(2.0), true, -true, None, None, "")),
            ("found", track_cine(cine, settings=Tracking(chunk=1))),
        ):
            turned = measure(tracked, anatomy).table["rotation_deg"]
            found[name][k] = {"curves": {"rotation_deg": turned.tolist()}}
    twists = {
        name: twist_of(slices, levels, SPACING[0] * np.arange(len(slices)))
        for name, slices in found.items()
    }
    row = {f"twist_{name}": f"{one['twist_deg'][1]:.4f}" for name, one in twists.items()}
    for end, k in zip(("basal", "apical"), ends, strict=True):
        through = heart.displacement[k, ..., 0][heart.fixed_mask[k] == MYOCARDIUM].mean()
        row |= {f"{end}_slice": k, f"{end}_through_mm": f"{SPACING[0] * through:.2f}"}
        for name, slices in found.items():
            row[f"{end}_{name}"] = f"{slices[k]['curves']['rotation_deg'][1]:.4f}"
    return row | {"cpu_seconds": f"{time.process_time() - begin:.2f}"}


def sentence(rows: pd.DataFrame) -> str:
    """What the rows come to, as docs/results/volumes has it."""
    error = rows["twist_found"] - rows["twist_true"]
    parts = []
    for end in ("basal", "apical"):
        miss = np.sqrt(np.mean((rows[f"{end}_found"] - rows[f"{end}_true"]) ** 2))
        through = rows[f"{end}_through_mm"].abs().mean()
        parts.append(f"{miss:.1f} degrees in the {end} slice, through which the wall moves by")
        parts[-1] += f" {through:.1f} mm"
    return (
        f"Twist of {rows['twist_true'].mean():.1f} degrees on average has a root mean square error "
        f"of {np.sqrt(np.mean(error**2)):.1f} degrees (mean {error.mean():+.1f}); "
        f"{(error.abs() <= WITHIN).sum()} of {len(rows)} hearts are within 1 degree. "
        f"The error of the rotation is {' and '.join(parts)}."
    )


if __name__ == "__main__":
    main()
