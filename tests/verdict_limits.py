"""The verdict on pairs that can be registered and that cannot; a table of docs/registering.md.

    PYTHONPATH=. python tests/verdict_limits.py --sunnybrook DIR --acdc DIR --camus_4ch DIR \\
        --out docs/results/register/verdict.csv

DIR is what `ldm-morph prepare --source DIR` takes. Takes every k-th training and validation pair of
the three datasets, registers it in both directions and, as a pair without a right answer, the
moving image of another patient to the fixed one. Test patients are left alone.
"""

import itertools

import numpy as np
import pandas as pd
from real_pairs import DATASETS, arguments, fell, opened

from ldm_morph_jax import load
from ldm_morph_jax.paper.plan import dataset_title
from ldm_morph_jax.registering.measures import measure
from ldm_morph_jax.registering.verdict import (
    IMPLAUSIBLE,
    PLAUSIBLE,
    UNCERTAIN,
    doubts_by_masks,
    judge,
)
from ldm_morph_jax.report.tables import markdown_table

AT_ONCE = 16
EVERY = {"sunnybrook": 4, "acdc": 3, "camus_4ch": 4}  # how many pairs one is taken of
SPACING = {"sunnybrook": {"spacing": 1.25}, "acdc": {"spacing": 1.25}, "camus_4ch": {}}
TWO = "two patients"
LEVELS = (PLAUSIBLE, UNCERTAIN, IMPLAUSIBLE)
TRAINING_PAIRS = 100  # of a dataset with more, the first ones, so that echo does not outweigh MRI


def rows(registrar, moving, fixed, labels, options):
    """Of pairs of examples' ("image", "mask")."""
    for first in range(0, len(moving), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        images = (np.stack([image[..., 0] for image, _ in side[part]]) for side in (moving, fixed))
        found = registrar(*images, **options)
        for one, (_, m), (_, f) in zip(found.registrations, moving[part], fixed[part], strict=True):
            metrics = measure(one, moving_mask=m[..., 0], fixed_mask=f[..., 0])
            unlabelled = {name: value for name, value in metrics.items() if name != "dice"}
            scores = [v for k, v in metrics["dice"].items() if int(k) in labels]
            yield {
                "dsc_initial": np.mean([score["before"] for score in scores]),
                "dsc": np.mean([score["after"] for score in scores]),
                "verdict": judge(one, unlabelled, registrar.card.get("training_images"))["level"],
                "doubted_by_masks": bool(doubts_by_masks(metrics)),
            }


def markdown(table: pd.DataFrame) -> str:
    """The table of docs/registering.md: by dataset, both directions together."""
    header = [
        "",
        "pairs",
        "DSC",
        *LEVELS,
        "DSC fell (of these not plausible)",
        "doubted by masks (of these plausible without)",
    ]
    lines = []
    for before, is_kind in (("", table.pair != TWO), (f"{TWO} of ", table.pair == TWO)):
        for name in DATASETS:
            part = table[is_kind & (table.dataset == name)]
            less, doubted = fell(part), part[part.doubted_by_masks]
            cells = [
                before + dataset_title(name),
                len(part),
                f"{part.dsc_initial.mean():.3f} → {part.dsc.mean():.3f}",
                *((part.verdict == level).sum() for level in LEVELS),
                f"{len(less)} ({(less.verdict != PLAUSIBLE).sum()})",
                f"{len(doubted)} ({(doubted.verdict == PLAUSIBLE).sum()})",
            ]
            lines.append(list(map(str, cells)))
    return markdown_table(header, lines)


def main() -> None:
    args = arguments().parse_args()
    registrar, tables = load(), []
    for name in DATASETS:
        dataset, examples, ids = opened(name, args), [], []
        for split, count in (("validation", None), ("train", TRAINING_PAIRS)):
            examples += itertools.islice(dataset.split(split), count)
            ids += [entry["id"] for entry in dataset.metadata(split)[:count]]
        examples, ids = examples[:: EVERY[name]], ids[:: EVERY[name]]
        moving = [(example["moving"], example["moving_mask"]) for example in examples]
        fixed = [(example["fixed"], example["fixed_mask"]) for example in examples]
        half = len(examples) // 2
        for kind, pairs in {
            "ED to ES": (moving, fixed),
            "ES to ED": (fixed, moving),
            TWO: ([*moving[half:], *moving[:half]], fixed),
        }.items():
            table = pd.DataFrame(rows(registrar, *pairs, dataset.labels, SPACING[name]))
            table.insert(0, "id", ids)
            table.insert(0, "pair", kind)
            table.insert(0, "dataset", name)
            tables.append(table)
    table = pd.concat(tables)
    table.to_csv(args.out, index=False, lineterminator="\n")
    print(markdown(table))


if __name__ == "__main__":
    main()
