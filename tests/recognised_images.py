"""How far test patients' images, as users have them, are from what weights know; a table.

    PYTHONPATH=. python tests/recognised_images.py --sunnybrook DIR --acdc DIR --camus_4ch DIR \\
        --out docs/results/register/recognised.csv

Reads every test pair from its files, in its own size (of stacks the middle slice). Whole images
of CAMUS, of any split, are rows of their own, since copies of it are often resized.
"""

from pathlib import Path

import pandas as pd
from real_pairs import DATASETS, arguments
from whole_images import builder_of, read

from ldm_morph_jax.ops.appearance import distance
from ldm_morph_jax.paper.plan import dataset_title
from ldm_morph_jax.registering.verdict import LARGEST_DISTANCE
from ldm_morph_jax.report.tables import markdown_table
from ldm_morph_jax.runs.weights import shipped

WHOLE = 200  # pixels on the longer side; CAMUS's smaller ones were resized


def rows(name: str, source: Path):
    builder = builder_of(name, source)
    pairs = builder.find().pairs
    for split, entries in pairs.items():
        for entry in entries:
            if split != "test" and name != "camus_4ch":
                continue
            images = [image.array for image in read(builder, entry)[:2]]
            whole = max(images[0].shape) > WHOLE
            if split == "test" or whole:
                yield {
                    "dataset": name,
                    "whole": whole,
                    "id": entry.id,
                    **{known: distance(images, x).max() for known, x in shipped().items()},
                }


def markdown(table: pd.DataFrame) -> str:
    """The table of docs/registering.md."""
    weights = list(table.columns[3:])
    lines = []
    for (name, whole), part in table.groupby(["dataset", "whole"], sort=False):
        title = dataset_title(name) + (", whole" if name == "camus_4ch" and whole else "")
        closest = part[weights].idxmin(axis=1)
        lines.append([title, str(len(part))])
        for known in weights:
            values = part[known]
            within = (values <= LARGEST_DISTANCE).sum()
            lines[-1].append(f"{values.median():.1f}; {within} ({(closest == known).sum()})")
    return markdown_table(["", "pairs", *weights], lines)


def main() -> None:
    args = arguments().parse_args()
    table = pd.DataFrame([row for name in DATASETS for row in rows(name, getattr(args, name))])
    table.to_csv(args.out, index=False, lineterminator="\n", float_format="%.3f")
    print(markdown(table))


if __name__ == "__main__":
    main()
