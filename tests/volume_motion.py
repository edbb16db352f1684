"""Motion, strain and twist of hearts of the 3-D phantom, as `register` and `track` find them.

    PYTHONPATH=. python tests/volume_motion.py --seed 31 --hearts 20 --out motion.csv
    PYTHONPATH=. python tests/volume_motion.py --seed 31 --hearts 5 --methods track --out motion.csv

Heart K of seed S is `data.ventricle.ventricle((S, K))` on the grid of `phantom_3d`, 32 x 128 x 128
voxels of 3.15 x 1.5 x 1.5 mm. `register` is `register --slice volume` from end-diastole to
end-systole, `track` is `track --slice volume` of a cine of the two frames. A row is one heart and
method; rows that OUT has already are kept. With `--laws N` the first N hearts are also registered
to themselves, and with the frames exchanged. At the end: a table of all rows.
"""

import argparse
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from kept_rows import KeptRows

from ldm_morph_jax.data.ventricle import MYOCARDIUM, ventricle
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.ops import strain
from ldm_morph_jax.ops.geometry import compose
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.register import load_model
from ldm_morph_jax.registering.anatomy import anatomy_of
from ldm_morph_jax.registering.heart import directions, measure, strained, wall_sectors
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.tracking import Tracking, track_cine

SHAPE, SPACING = (32, 128, 128), (3.15, 1.5, 1.5)
DIRECTIONS = ("radial", "circumferential", "longitudinal")
TITLES = {"register": "`register --slice volume`", "track": "`track`, the two frames"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--hearts", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["register"])
    parser.add_argument("--laws", type=int, default=0, help="of so many hearts")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    registrar = load_model("sunnybrook-symmetric")
    rows = KeptRows(args.out, ("seed", "heart", "method"))
    for k in range(args.hearts):
        for method in args.methods:
            if (args.seed, k, method) in rows:
                continue
            names = {"seed": args.seed, "heart": k, "method": method}
            laws = method == "register" and k < args.laws
            heart = ventricle((args.seed, k), SHAPE, SPACING)
            rows.add(names | score(heart, method, registrar, laws))
    print(table(pd.read_csv(args.out)))


def score(heart, method: str, registrar, laws: bool) -> dict:
    cine = cine_from_arrays(np.stack([heart.fixed, heart.moving]), spacing=SPACING)
    anatomy = anatomy_of(cine, mask=heart.fixed_mask)
    begin, more = (
        time.process_time(),
        {"residual": "", "identity": "", "exchanged": "", "exchanged_most": ""},
    )
    if method == "track":
        u = track_cine(cine, settings=Tracking(chunk=1)).displacement[1]
    else:
        [found] = registrar.register_images([(cine.image(1), cine.image(0))], volume=True)
        u = found.pixel_displacement
    seconds = time.process_time() - begin
    if laws:
        [same, back] = registrar.register_images(
            [(cine.image(0), cine.image(0)), (cine.image(0), cine.image(1))], volume=True
        )
        both = jnp.asarray(np.stack([u, back.pixel_displacement]), jnp.float32)
        round_trip = np.asarray(compose(both[:1], both[1:]))[0]
        away = np.linalg.norm(round_trip, axis=-1)
        at = np.moveaxis(np.indices(SHAPE), 0, -1) + np.asarray(both[1])
        inside = ((at >= 0) & (at <= np.array(SHAPE) - 1)).all(axis=-1)  # beyond, u is not known
        more = {
            "residual": f"{found.inverse.residual_mm.max() / min(SPACING):.2e}",
            "identity": f"{np.abs(same.pixel_displacement).max():.2e}",
            "exchanged": f"{np.percentile(away[heart.fixed_mask > 0], 99):.4f}",
            "exchanged_most": f"{away[inside].max():.4f}",
        }
    true, mine = (
        numbers(*of, cine, anatomy) for of in ((heart.displacement, heart.deformation), (u, None))
    )
    wall = heart.fixed_mask == MYOCARDIUM
    error, motion = ((a - heart.displacement)[wall] for a in (u, 0.0))
    row = {
        "epe_voxels": np.linalg.norm(error, axis=-1).mean(),
        "motion_voxels": np.linalg.norm(motion, axis=-1).mean(),
        "epe_mm": np.linalg.norm(error * SPACING, axis=-1).mean(),
        "motion_mm": np.linalg.norm(motion * SPACING, axis=-1).mean(),
    }
    for name in (*DIRECTIONS, "twist", "ejection"):
        row |= {f"{name}_true": true[name], f"{name}_found": mine[name]}
    for name in DIRECTIONS:
        gap = mine[f"{name} segments"] - true[f"{name} segments"]
        row[f"{name}_segments"] = np.sqrt(np.mean(gap**2))
    row["folded_percent"] = 100 * np.mean(jacobian_determinant(u) <= 0)
    return {k: f"{v:.4f}" for k, v in row.items()} | more | {"cpu_seconds": f"{seconds:.2f}"}


def numbers(u, deformation, cine, anatomy) -> dict:
    """Twist, ejection fraction and strain, of the wall and its segments, of a displacement.

    Strain is that of the deformation gradient where it is known, else as `track` measures it.
    """
    both = np.stack([np.zeros_like(u), u]).astype(np.float32)
    tracked = Tracked(cine, 0, np.arange(2.0), both, -both, None, None, "")
    curves = measure(tracked, anatomy).table
    curves = {name: values[1] for name, values in curves.items()}
    before, after = np.asarray(strain.region_size(both, anatomy.cavity))  # by the integral of det F
    found = {"twist": curves["twist_deg"], "ejection": 1 - after / before}
    sectors, names = wall_sectors(tracked, anatomy)
    if deformation is None:
        for name in DIRECTIONS:
            found[name] = curves[f"{name}_strain"]
            found[f"{name} segments"] = np.array([curves[f"{name}_strain_{n}"] for n in names])
        return found
    tensor = strain.green_lagrange(jnp.asarray(deformation))
    wall, sectors = (jnp.asarray(region, jnp.int32) for region in (strained(anatomy), sectors))
    for name, normal in zip(DIRECTIONS, directions(tracked, anatomy), strict=True):
        values = strain.normal_strain(tensor, normal)
        found[name] = float(strain.regional_mean(values, wall, 1)[0])
        found[f"{name} segments"] = np.asarray(strain.regional_mean(values, sectors, len(names)))
    return found


def table(rows: pd.DataFrame) -> str:
    """Means of every method over its hearts in Markdown."""
    lines = [
        "| | hearts | end-point error, voxels | motion, voxels | end-point error, mm | motion, mm "
        "| radial, % | circumferential, % | longitudinal, % | twist, degrees "
        "| ejection fraction, points | folded, % |",
        "|---" * 12 + "|",
    ]
    for method, group in rows.groupby("method", sort=False):
        cells = [TITLES[method], str(len(group))]
        cells += [
            f"{group[n].mean():.2f}" for n in ("epe_voxels", "motion_voxels", "epe_mm", "motion_mm")
        ]
        for name, factor in (*((d, 100) for d in DIRECTIONS), ("twist", 1), ("ejection", 100)):
            error = factor * (group[f"{name}_found"] - group[f"{name}_true"])
            root = np.sqrt(np.mean(error**2))
            cell = f"{root:.1f} ({error.mean():+.1f})"
            cells.append(f"{cell} of {factor * group[f'{name}_true'].mean():.1f}")
        cells.append(f"{group['folded_percent'].mean():.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
