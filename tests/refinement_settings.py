"""The refinement with other settings, on validation pairs: a table of docs/results/refinement.

    PYTHONPATH=. python tests/refinement_settings.py --sunnybrook DIR --acdc DIR --camus_4ch DIR \\
        --out docs/results/refinement/settings

DIR is what `ldm-morph prepare --source DIR` takes. Registers the validation pairs of the three
datasets with every setting of `SETTINGS`, or with those named after `--only`, and writes
OUT/DATASET/NAME/pairs.csv; what is there already is kept. Names that begin with "start" begin with
the velocity of the shipped network, the others with none.
"""

import functools
import time

import jax
import numpy as np
import pandas as pd
from real_pairs import DATASETS, arguments, kept, opened

from ldm_morph_jax.evaluation import score_pair
from ldm_morph_jax.registering.search import Refinement, refine
from ldm_morph_jax.runs.trained import load_method
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

SETTINGS = {
    "default": Refinement(),
    "windows-1.5": Refinement(windows=(1.5,)),
    "windows-2": Refinement(windows=(2.0,)),
    "windows-2.8": Refinement(windows=(2.8,)),
    "windows-4": Refinement(windows=(4.0,)),
    "windows-8": Refinement(windows=(8.0,)),
    "windows-2-12": Refinement(windows=(2.0, 12.0)),
    "windows-1.6-4-10": Refinement(windows=(1.6, 4.0, 10.0)),
    "windows-2-8-16": Refinement(windows=(2.0, 8.0, 16.0)),
    "fluid-3": Refinement(fluid=3.0),
    "fluid-5": Refinement(fluid=5.0),
    "elastic-0.25": Refinement(elastic=0.25),
    "elastic-1": Refinement(elastic=1.0),
    "stiffness-0.15": Refinement(stiffness=0.15),
    "stiffness-0.6": Refinement(stiffness=0.6),
    "floor-1e-4": Refinement(floor=1e-4),
    "floor-1e-2": Refinement(floor=1e-2),
    "longest-step-0.25": Refinement(longest_step=0.25),
    "longest-step-1": Refinement(longest_step=1.0),
    "levels-4-2": Refinement(levels=(4, 2), steps=(40, 40)),
    "levels-2-1": Refinement(levels=(2, 1), steps=(60, 20)),
    "levels-8-4-2-1": Refinement(levels=(8, 4, 2, 1), steps=(40, 40, 30, 12)),
    "steps-half": Refinement(steps=(20, 15, 6)),
    "steps-double": Refinement(steps=(80, 60, 24)),
    "start": Refinement(),
    "start-any": Refinement(least_gain=float("-inf")),
    "start-0.05": Refinement(least_gain=0.05),
    "start-0.2": Refinement(least_gain=0.2),
}


def rows(settings: Refinement, images, start, pairs, metadata, labels) -> pd.DataFrame:
    refined = jax.block_until_ready(refine(*images, start=start, settings=settings))
    began = time.perf_counter()  # compiled now
    refined = jax.block_until_ready(refine(*images, start=start, settings=settings))
    seconds = (time.perf_counter() - began) / len(pairs)
    return pd.DataFrame(
        {"id": entry["id"], "patient": entry["patient"]}
        | score_pair(pair, np.asarray(refined.displacement[i]), labels)
        | {"seconds_per_pair": seconds, "start_gain": float(refined.start_gain[i])}
        for i, (pair, entry) in enumerate(zip(pairs, metadata, strict=True))
    )


def main() -> None:
    parser = arguments()
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    network = load_method(DEFAULT_MODEL)
    for dataset_name in DATASETS:
        dataset = opened(dataset_name, args)
        pairs, metadata = list(dataset.split("validation")), dataset.metadata("validation")
        moving, fixed = (np.stack([pair[key] for pair in pairs]) for key in ("moving", "fixed"))
        velocity, images = network.velocity(moving, fixed), (moving[..., 0], fixed[..., 0])
        for name in args.only:
            start = velocity if name.startswith("start") else None
            make = functools.partial(
                rows, SETTINGS[name], images, start, pairs, metadata, dataset.labels
            )
            table = kept(args.out / dataset_name / name / "pairs.csv", make)
            print(
                f"{dataset_name} {name}: DSC {table['dsc'].mean():.4f}  "
                f"J <= 0 {table['nonpositive_jacobian_percent'].mean():.3f} %  "
                f"{table['seconds_per_pair'].mean():.3f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
