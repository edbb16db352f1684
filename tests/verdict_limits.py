"""The verdict on pairs that can be registered and that cannot; a table of docs/registering.md.

    PYTHONPATH=. python tests/verdict_limits.py --sunnybrook DIR --acdc DIR --camus_4ch DIR \\
        --out docs/results/register/verdict.csv

DIR is what `ldm-morph prepare --source DIR` takes. Takes every k-th training and validation pair of
the three datasets, registers it in both directions and, as a pair without a right answer, the
moving image of another patient to the fixed one. Test patients are left alone.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from ldm_morph_jax import load
from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.registering.measures import measure
from ldm_morph_jax.registering.verdict import judge

AT_ONCE = 16
# name -> every how many pairs, millimetres per pixel (None: not known), options
DATASETS = {
    "sunnybrook": (4, 1.25, {}),
    "acdc": (3, 1.25, {"allow_partial": True}),
    "camus_4ch": (4, None, {"allow_partial": True}),
}
TRAINING_PAIRS = 100  # of a dataset with more, the first ones, so that echo does not outweigh MRI


def rows(registrar, moving, fixed, labels, spacing):
    """Of pairs of examples' ("image", "mask")."""
    for first in range(0, len(moving), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        images = (np.stack([image[..., 0] for image, _ in side[part]]) for side in (moving, fixed))
        found = registrar(*images, **({} if spacing is None else {"spacing": spacing}))
        for one, (_, m), (_, f) in zip(found.registrations, moving[part], fixed[part], strict=True):
            metrics = measure(one, moving_mask=m[..., 0], fixed_mask=f[..., 0])
            scores = [v for k, v in metrics["dice"].items() if int(k) in labels]
            yield {
                "dsc_initial": np.mean([score["before"] for score in scores]),
                "dsc": np.mean([score["after"] for score in scores]),
                "verdict": judge(one, metrics, registrar.card.get("appearance"))["level"],
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in DATASETS:
        parser.add_argument(f"--{name}", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", default="data", help="where prepared data are kept")
    args = parser.parse_args()
    registrar, tables = load(), []
    for name, (every, spacing, options) in DATASETS.items():
        dataset = load_dataset(
            name, source=getattr(args, name), directory=args.data, intensity="percentile", **options
        )
        examples = list(dataset.split("validation"))
        examples = [*examples, *list(dataset.split("train"))[:TRAINING_PAIRS]][::every]
        metadata = [*dataset.metadata("validation"), *dataset.metadata("train")[:TRAINING_PAIRS]]
        ids = [entry["id"] for entry in metadata[::every]]
        moving = [(example["moving"], example["moving_mask"]) for example in examples]
        fixed = [(example["fixed"], example["fixed_mask"]) for example in examples]
        half = len(examples) // 2
        for kind, pairs in {
            "ED to ES": (moving, fixed),
            "ES to ED": (fixed, moving),
            "two patients": ([*moving[half:], *moving[:half]], fixed),
        }.items():
            table = pd.DataFrame(rows(registrar, *pairs, dataset.labels, spacing))
            table.insert(0, "id", ids)
            table.insert(0, "pair", kind)
            table.insert(0, "dataset", name)
            tables.append(table)
            fell = table[table.dsc < table.dsc_initial - 0.005]
            print(
                f"{name}, {kind}: {len(table)} pairs, DSC {table.dsc_initial.mean():.3f} -> "
                f"{table.dsc.mean():.3f}, {dict(table.verdict.value_counts())}, DSC fell in "
                f"{len(fell)}, of them not plausible {(fell.verdict != 'plausible').sum()}",
                flush=True,
            )
    pd.concat(tables).to_csv(args.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
