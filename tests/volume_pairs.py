"""Score `register` on whole stacks of ACDC, in three dimensions and slice by slice, and ANTs.

    PYTHONPATH=. python tests/volume_pairs.py --data DIR --patients 101-150 --out volumes.csv
    PYTHONPATH=. python tests/volume_pairs.py --data DIR --modes ants-affine ants-syn --out ants.csv

DIR holds `*/patientXXX/patientXXX_frameYY.nii.gz` with their masks `_gt`. Every patient is
registered from end-diastole to end-systole and back. A row is one pair: DSC and HD95 of right
ventricle (1), myocardium (2) and left ventricle (3) in the volume, before (`none`) and after, SD of
log J, share of folds, largest residual of the inverse in voxels, seconds. Rows that OUT has already
are kept, so that a run that was interrupted goes on. At the end: a table of means over pairs
with 95 % intervals by patient (bootstrap, seed 0).
"""

import math
import tempfile
import time
from unittest import mock

import acdc_stacks
import numpy as np
import pandas as pd
from kept_rows import KeptRows

from ldm_morph_jax.files.images import VOLUME, read_image, read_mask
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.ops.metrics import dice, surface_distance
from ldm_morph_jax.register import load_model
from ldm_morph_jax.registering import grid

LABELS = (1, 2, 3)
WAYS = {"ed-es": (0, 1), "es-ed": (1, 0)}
GUIDE = "anatomy-mri"
NAMES = {
    "none": "not registered",
    "volume": "`register`, three dimensions",
    "guided-volume": f"`register --anatomy {GUIDE}`",
    "unguided-volume": "`register --anatomy none`",
    "still": "the same from no motion",
    "slices": "`--slice all`, slice by slice",
    "guided": f"`--slice all --anatomy {GUIDE}`",
    "ants-affine": "ANTsPy, affine",
    "ants-syn": "ANTsPy, SyN",
}
# Options of ants.registration, all others as they are by default; SyN starts from no motion.
ANTS = {
    "ants-affine": {"type_of_transform": "Affine"},
    "ants-syn": {
        "type_of_transform": "SyNOnly",
        "initial_transform": "Identity",
        "syn_metric": "CC",
        "syn_sampling": 2,
        "reg_iterations": (100, 70, 30),
    },
}


def main() -> None:
    parser = acdc_stacks.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", default="sunnybrook-symmetric", help="as of register")
    parser.add_argument("--modes", nargs="+", default=["none", "volume", "slices"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--inverse", action="store_true", help="residual of the inverse, too")
    args = parser.parse_args()
    registrar = load_model(args.model)
    rows = KeptRows(args.out, ("patient", "way", "mode"))
    for number, files, masks in acdc_stacks.patients(args):
        for row in patient_rows(args, registrar, number, files, masks, rows):
            rows.add(row)
    print(table(pd.read_csv(args.out)))


def patient_rows(args, registrar, number, files, masks, done):
    images = [read_image(file, VOLUME) for file in files]
    masks = [read_mask(mask, image, VOLUME) for mask, image in zip(masks, images, strict=True)]
    for way in args.ways:
        m, f = WAYS[way]
        for mode in args.modes:
            if (number, way, mode) in done:
                continue
            yield {
                "patient": number,
                "way": way,
                "mode": mode,
                **score(registrar, images[m], images[f], masks[m], masks[f], mode, args.inverse),
            }


def score(registrar, moving, fixed, moving_mask, fixed_mask, mode, inverse) -> dict:
    warped, residual = moving_mask.array, ""
    displacement = np.zeros((*fixed.array.shape, 3))
    started = time.perf_counter()
    if mode in ANTS:
        spacing = fixed.geometry.spacing
        warped, displacement = by_ants(
            moving.array, fixed.array, moving_mask.array, spacing, **ANTS[mode]
        )
    elif mode != "none":
        anatomy = "auto" if mode == "volume" else GUIDE if mode.startswith("guided") else "none"
        volume = mode.endswith("volume") or mode == "still"
        with mock.patch.object(grid, "THICK_MM", math.inf if mode == "still" else grid.THICK_MM):
            [result] = registrar.register_images([(moving, fixed)], volume=volume, anatomy=anatomy)
        transform = result.transform
        warped = transform.warp(moving_mask.array, "nearest")
        displacement = transform.displacement
    seconds = time.perf_counter() - started
    if inverse and mode == "volume":
        residual = result.inverse.residual_mm.max() / min(fixed.geometry.spacing)
    overlap = dice(warped, fixed_mask.array, LABELS)
    distance = surface_distance(warped, fixed_mask.array, LABELS, fixed.geometry.spacing)
    determinant = jacobian_determinant(displacement)
    numbers = {f"dice_{k}": f"{overlap[k]:.4f}" for k in LABELS}
    numbers |= {f"hd95_{k}_mm": f"{distance[k].hd95:.3f}" for k in LABELS}
    return numbers | {
        "sd_log_jacobian": f"{np.log(np.maximum(determinant, 1e-6)).std():.4f}",
        "nonpositive_percent": f"{100 * np.mean(determinant <= 0):.4f}",
        "inverse_residual_voxels": residual,
        "seconds": f"{seconds:.2f}",
    }


def by_ants(moving, fixed, labels, spacing, **options) -> tuple[np.ndarray, np.ndarray]:
    """(Labels of the moving image on the fixed one, displacement in voxels, axis order) by ANTsPy.

    Arrays `[D, H, W]` on one grid. ANTs' axes are ours turned round, its displacements in mm.
    """
    import ants

    fixed, moving, labels = (
        ants.from_numpy(np.asarray(array, np.float32).T, spacing=tuple(spacing[::-1]))
        for array in (fixed, moving, labels)
    )
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(fixed, moving, outprefix=f"{folder}/", **options)
        both = {"fixed": fixed, "transformlist": found["fwdtransforms"]}
        warped = ants.apply_transforms(**both, moving=labels, interpolator="nearestNeighbor")
        whole = ants.apply_transforms(**both, moving=moving, compose=f"{folder}/whole")
        vectors = ants.image_read(whole).numpy()
    displacement = np.moveaxis(vectors, (0, 1, 2), (2, 1, 0))[..., ::-1] / spacing
    return np.rint(warped.numpy()).T.astype(int), displacement


def table(rows: pd.DataFrame) -> str:
    """Means of every mode over its pairs in Markdown, 95 % intervals by patient (seed 0)."""
    columns = {
        "DSC [95 %]": ("dice_123", 3, True),
        "right ventricle": ("dice_1", 3, False),
        "myocardium": ("dice_2", 3, False),
        "left ventricle": ("dice_3", 3, False),
        "HD95, mm [95 %]": ("hd95_123_mm", 2, True),
        "SD of log J [95 %]": ("sd_log_jacobian", 3, True),
        "J <= 0, %": ("nonpositive_percent", 4, False),
        "s per pair, median": ("seconds", 1, False),
    }
    rows = rows.assign(
        dice_123=rows[[f"dice_{k}" for k in LABELS]].mean(axis=1),
        hd95_123_mm=rows[[f"hd95_{k}_mm" for k in LABELS]].mean(axis=1),
    )
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for mode, group in rows.groupby("mode", sort=False):
        cells = [NAMES[mode]]
        for name, digits, interval in columns.values():
            mean = group[name].median() if name == "seconds" else group[name].mean()
            cell = f"{mean:.{digits}f}"
            if interval:
                of_patient = group.groupby("patient")[name].mean().to_numpy()
                draws = np.random.default_rng(0).choice(of_patient, (2000, len(of_patient)))
                low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
                cell += f" [{low:.{digits}f}, {high:.{digits}f}]"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
