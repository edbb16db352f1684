"""Score the weights that ship with the package on the Sunnybrook test pairs, refined or not.

    python tests/shipped_weights.py --source DIR --out OUT [--refine 50]

Writes what `evaluate` writes of a run: OUT/{pairs.csv, summary.json, report.html, figures/}. DIR
holds the Sunnybrook files (docs/datasets.md); the prepared data go to OUT/data.
"""

import argparse
import functools
from pathlib import Path

from ldm_morph_jax import commands, load
from ldm_morph_jax.evaluation import evaluate_split
from ldm_morph_jax.registering.prediction import refined_displacement
from ldm_morph_jax.report.tables import format_summary_table
from ldm_morph_jax.training.run import dataset_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--refine", type=int, default=0)
    arguments = parser.parse_args()

    commands.use_compilation_cache()
    trained = load("sunnybrook-small").method
    config = trained.config
    with config.unlocked():
        config.data.source = arguments.source
        config.data.directory = str(arguments.out / "data")
    dataset = dataset_of(config)
    register, name = trained.displacement, trained.name
    if arguments.refine:
        register = functools.partial(refined_displacement, trained, steps=arguments.refine)
        name = f"{name} + {arguments.refine} steps"
    summary = evaluate_split(
        register,
        dataset.split("test"),
        ids=dataset.ids("test"),
        labels=dataset.labels,
        method=name,
        dataset=dataset.name,
        split="test",
        out_dir=arguments.out,
        config=config.to_dict(),
        workdir=arguments.out,
    )
    print(format_summary_table(summary))


if __name__ == "__main__":
    main()
