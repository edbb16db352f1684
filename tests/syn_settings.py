"""SyN and LDDMM with other settings and programs; the tables of docs/results/syn_lddmm.

    PYTHONPATH=. python tests/syn_settings.py --source DIR --out docs/results/syn_lddmm/runs

DIR is the archive that `ldm-morph prepare --dataset camus_4ch --source DIR` takes. Registers its 20
validation pairs with every setting of `SETTINGS`, or with those named after `--only`, and writes
OUT/NAME/pairs.csv; what is there already is kept. Needs the extra `ants`, and DIPY (`pip install
dipy`) for its rows.

Beside the scores of `ldm-morph evaluate`, a row holds what the count of folds would be if the field
had been read in another convention than it was written in: `exchanged` (ITK stores x before y,
arrays have rows before columns), `negated` (LPS and RAS point in opposite directions), `both`.
"""

import argparse
import functools
import inspect
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from real_pairs import kept

from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.evaluation import score_pair
from ldm_morph_jax.methods.lddmm import LDDMM
from ldm_morph_jax.methods.syn import SyN
from ldm_morph_jax.ops.metrics import nonpositive_jacobian_percent

PAPER = {
    "type_of_transform": "SyNOnly",
    "syn_metric": "CC",
    "syn_sampling": 2,
    "grad_step": 0.25,
    "flow_sigma": 3,
    "total_sigma": 0.25,
    "reg_iterations": (160, 80, 40),
}
FOLDS = "nonpositive_jacobian_percent"
READ_WRONGLY = {
    "exchanged": lambda u: u[..., ::-1],
    "negated": lambda u: -u,
    "both": lambda u: -u[..., ::-1],
}


def ants_image(array):
    import ants

    return ants.from_numpy(np.asarray(array, np.float32))


def antspy(moving, fixed, scale=1.0, **options) -> np.ndarray:
    """The whole transform that `ants.registration` finds, an affine stage included.

    The settings are the paper's but for `options`; scale: of the intensities.
    """
    import ants

    fixed, moving = ants_image(scale * fixed), ants_image(scale * moving)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(fixed, moving, outprefix=f"{folder}/", **(PAPER | options))
        whole = ants.apply_transforms(
            fixed, moving, found["fwdtransforms"], compose=f"{folder}/whole-"
        )
        return ants.image_read(whole).numpy()


def defaults(moving, fixed, kind) -> np.ndarray:
    """`ants.registration(fixed, moving, kind)` and nothing else said."""
    import ants

    function = inspect.getmodule(ants.registration).registration
    parameters = inspect.signature(function).parameters
    own = {name: parameters[name].default for name in PAPER}
    return antspy(moving, fixed, **(own | {"type_of_transform": kind}))


def ants_program(moving, fixed, smoothing="2x1x0", stop="1e-7,8") -> np.ndarray:
    """antsRegistration with the paper's settings and what `ants.registration` does not let choose.

    smoothing: of the images at each level, in pixels; stop: a level's slope and window.
    """
    import ants
    from ants.internal import get_pointer_string

    images = [ants_image(fixed), ants_image(moving)]
    pair = ",".join(map(get_pointer_string, images))
    with tempfile.TemporaryDirectory() as folder:
        command = f"""--dimensionality 2 --metric CC[{pair},1,2] --transform SyN[0.25,3,0.25]
            --convergence [160x80x40,{stop}] --smoothing-sigmas {smoothing}
            --shrink-factors 4x2x1 --use-histogram-matching 0 --output {folder}/ --float 1"""
        ants.registration(command.split(), None)
        return ants.image_read(f"{folder}/0Warp.nii.gz").numpy()


def dipy(moving, fixed, metric=None, **options) -> np.ndarray:
    """DIPY's SyN with cross-correlation; options of its metric and of its optimiser."""
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    optimiser = SymmetricDiffeomorphicRegistration(CCMetric(2, **(metric or {})), **options)
    images = (np.asarray(image, np.float64) for image in (fixed, moving))
    return np.asarray(optimiser.optimize(*images).get_forward_field())


def one_by_one(register):
    """Fields `[N, H, W, 2]` of images `[N, H, W]`, pair after pair."""

    @functools.wraps(register)
    def all_pairs(moving, fixed):
        return np.stack([register(*pair) for pair in zip(moving, fixed, strict=True)])

    return all_pairs


def stacked(moving, fixed):
    """The pairs as slices of one volume, registered by one 3-D SyN; the motion in the slices."""
    import ants

    volumes = [ants_image(np.moveaxis(images, 0, -1)) for images in (fixed, moving)]
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(*volumes, outprefix=f"{folder}/", **PAPER)
        return np.moveaxis(ants.image_read(found["fwdtransforms"][0]).numpy()[..., :2], 2, 0)


def lddmm(**options):
    return lambda moving, fixed: LDDMM(**options).field(
        None, None, moving[..., None], fixed[..., None]
    )


def syn(moving, fixed):
    return SyN().field(None, None, moving[..., None], fixed[..., None])


def partial(register, **options):
    return one_by_one(functools.partial(register, **options))


LEGACY = {"smoothing": "0.6x0.2x0", "stop": "1e-4,12"}
SETTINGS = {
    "syn": syn,
    "syn-smoothing-legacy": partial(ants_program, smoothing=LEGACY["smoothing"]),
    "syn-stop-legacy": partial(ants_program, stop=LEGACY["stop"]),
    "syn-legacy": partial(ants_program, **LEGACY),
    "syn-stacked": stacked,
    "syn-total-0": partial(antspy, total_sigma=0),
    "syn-flow-1": partial(antspy, flow_sigma=1),
    "syn-flow-0": partial(antspy, flow_sigma=0),
    "syn-255": partial(antspy, scale=255),
    "syn-40-20-0": partial(antspy, reg_iterations=(40, 20, 0)),
    "syn-100-70-50-20": partial(antspy, reg_iterations=(100, 70, 50, 20)),
    "syn-affine": partial(antspy, type_of_transform="SyN"),
    "syn-meansquares": partial(antspy, syn_metric="meansquares"),
    "syn-mattes": partial(antspy, syn_metric="mattes", syn_sampling=32),
    "antspy-SyN": partial(defaults, kind="SyN"),
    "antspy-SyNOnly": partial(defaults, kind="SyNOnly"),
    "dipy-cc": partial(dipy),
    "dipy-legacy": partial(
        dipy,
        metric={"radius": 2, "sigma_diff": 3**0.5},
        level_iters=[160, 80, 40],
        opt_tol=1e-4,
    ),
    "lddmm": lddmm(),
    "lddmm-alpha-3": lddmm(alpha=3.0),
    "lddmm-alpha-8": lddmm(alpha=8.0),
    "lddmm-sigma-4": lddmm(sigma=4.0),
    "lddmm-sigma_r-10": lddmm(sigma_r=10.0),
    "lddmm-step-0.02": lddmm(step_size=0.02),
    "lddmm-100": lddmm(iterations=100),
    "lddmm-transmorph": lddmm(sigma=4.0, sigma_r=10.0, time_steps=7, step_size=0.05),
}


def rows(register, pairs, metadata, labels) -> pd.DataFrame:
    moving, fixed = (np.stack([pair[key][..., 0] for pair in pairs]) for key in ("moving", "fixed"))
    began = time.perf_counter()
    fields = np.asarray(register(moving, fixed), np.float32)
    seconds = (time.perf_counter() - began) / len(pairs)
    table = []
    for pair, entry, u in zip(pairs, metadata, fields, strict=True):
        row = {"id": entry["id"], "patient": entry["patient"]} | score_pair(pair, u, labels)
        for name, read in READ_WRONGLY.items():
            row[f"{FOLDS}_{name}"] = nonpositive_jacobian_percent(read(u))
        table.append(row | {"seconds_per_pair": seconds})
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", default="data", help="where prepared data are kept")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    dataset = load_dataset("camus_4ch", source=args.source, directory=args.data, allow_partial=True)
    pairs, metadata = list(dataset.split("validation")), dataset.metadata("validation")
    for name in args.only:
        make = functools.partial(rows, SETTINGS[name], pairs, metadata, dataset.labels)
        table = kept(args.out / name / "pairs.csv", make)
        folds = [table[key].mean() for key in table if key.startswith(FOLDS)]
        numbers = "  ".join(f"{value:.3f}" for value in folds)
        seconds = table["seconds_per_pair"].mean()
        print(
            f"{name}: DSC {table['dsc'].mean():.3f} ({table['dsc'].std(ddof=0):.3f})  J <= 0, "
            f"as it is, {', '.join(READ_WRONGLY)}: {numbers}  {seconds:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
