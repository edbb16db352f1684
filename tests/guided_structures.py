"""Dice of left ventricle, myocardium and left atrium of CAMUS' test pairs, guided and not.

    PYTHONPATH=. python tests/guided_structures.py --source DIR > structures.csv

The paper scores the left ventricle alone, and so does `evaluate`. These are the same 80 pairs,
end-diastole to end-systole, with the same settings, one after the other. A row is a pair.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.metrics import dice, nonpositive_jacobian_percent
from ldm_morph_jax.registering.pairs import refined_displacement
from ldm_morph_jax.registering.search import STEPS
from ldm_morph_jax.runs.anatomy import load_anatomy
from ldm_morph_jax.runs.trained import load_method

STRUCTURES = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
MODELS = ("sunnybrook-symmetric", "camus-4ch-small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="CAMUS")
    parser.add_argument("--prepared", type=Path, default=Path("data"), help="prepared datasets")
    args = parser.parse_args()
    options = {"source": args.source, "directory": args.prepared, "allow_partial": True}
    guide = load_anatomy("anatomy-echo")
    table = csv.writer(sys.stdout)
    table.writerow(["model", "guided", "patient", *STRUCTURES.values(), "folds_percent", "seconds"])
    for name in MODELS:
        model = load_method(name)
        dataset = load_dataset("camus_4ch", intensity=model.intensity, **options)
        pairs, about = dataset.split("test"), dataset.metadata("test")
        for pair, who in zip(pairs, about, strict=True):
            for anatomy in (None, guide):
                began = time.perf_counter()
                [u] = refined_displacement(
                    model,
                    pair["moving"][None],
                    pair["fixed"][None],
                    steps=STEPS,
                    anatomy=anatomy,
                    spacing=tuple(map(float, pairs[0]["spacing"])),
                )
                seconds = time.perf_counter() - began
                mask = warp(pair["moving_mask"][None], u[None], interpolation="nearest")[0]
                overlap = dice(np.asarray(mask), pair["fixed_mask"], STRUCTURES)
                scores = [f"{overlap[label]:.4f}" for label in STRUCTURES]
                scores += [f"{nonpositive_jacobian_percent(u):.4f}", f"{seconds:.2f}"]
                table.writerow([name, int(anatomy is not None), who["patient"], *scores])
                sys.stdout.flush()


def markdown(rows: pd.DataFrame) -> str:
    """Mean Dice of every structure, and of all with its 95 % interval over patients (seed 0)."""
    header = ["CAMUS-4CH, 80 test pairs", *STRUCTURES.values(), "all [95 %]"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (model, guided), part in rows.groupby(["model", "guided"], sort=False):
        scores = part[list(STRUCTURES.values())]
        of_patient = scores.mean(axis=1).to_numpy()
        draws = np.random.default_rng(0).choice(of_patient, (2000, len(of_patient))).mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        cells = [f"{mean:.3f}" for mean in scores.mean()]
        cells.append(f"{of_patient.mean():.3f} [{low:.3f}, {high:.3f}]")
        name = f"`{model}`, guided" if guided else f"`{model}`"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
