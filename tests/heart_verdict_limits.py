"""The verdict on tracked hearts, on beats whose truth is known; a table of docs/tracking.md.

    PYTHONPATH=. python tests/heart_verdict_limits.py --acdc DIR --out verdict.csv

DIR holds ACDC's patientXXX with masks. Tracks development beats of the phantom (seeds 60 to 63,
both views, 12 frames), and end-diastole to end-systole of validation patients 81 to 100 in one
slice: a cine of two frames. Each is tracked with its own mask and, as something that must be found,
with the mask of end-systole. A result is wrong where its area change misses that of the masks by
more than ten points.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ldm_morph_jax import load
from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.images import read_image, read_mask
from ldm_morph_jax.registering.verdict import IMPLAUSIBLE, PLAUSIBLE, UNCERTAIN
from ldm_morph_jax.report.tables import markdown_table

WRONG = 0.10
LEVELS = (PLAUSIBLE, UNCERTAIN, IMPLAUSIBLE)


def rows_of(kind, name, registrar, frames, masks, cavity, other, **options):
    """Rows of a cine `[T, H, W]` with its masks `[T, H, W]`; `other`: masks that do not fit it."""
    areas = (masks == cavity).sum(axis=(1, 2))
    true = 1 - areas.min() / areas[0]
    for given, mask in {"its own": masks[0], **other}.items():
        try:
            tracked = registrar.track(frames, mask=mask, **options)
        except ValueError as error:
            yield {
                "kind": kind,
                "name": name,
                "mask": given,
                "verdict": "refused",
                "sentence": error,
            }
            continue
        numbers = tracked.summary
        yield {
            "kind": kind,
            "name": name,
            "mask": given,
            "area_change": numbers["fractional_area_change"],
            "true_area_change": true,
            "verdict": numbers["verdict"]["level"],
            "sentence": numbers["verdict"]["sentence"],
        }


def phantoms(registrar):
    for look, view in (("sax", "sax"), ("echo", "apical")):
        for seed in range(60, 64):
            beat = phantom_cine(seed, look=look, frames=12)
            other = {"of end-systole": beat.masks[beat.end_systole]}
            spacing = FIELD_OF_VIEW_MM / beat.frames.shape[1]
            options = {"view": view, "spacing": spacing, "times": beat.times, "period": "whole"}
            name = f"phantom, {view}"
            yield from rows_of(name, seed, registrar, beat.frames, beat.masks, 1, other, **options)


def patients(registrar, source: Path):
    for number in range(81, 101):
        [folder] = source.rglob(f"patient{number:03d}")
        files = sorted(folder.glob("*_frame??.nii.gz"))
        images = [read_image(file, "all") for file in files]
        masks = [
            read_mask(str(file).replace(".nii.gz", "_gt.nii.gz"), image, "all").array
            for file, image in zip(files, images, strict=True)
        ]
        shown = [(mask == k).any(axis=(1, 2)) for mask in masks for k in (2, 3)]
        for k in np.flatnonzero(np.all(shown, axis=0))[1:2]:  # the second that shows the wall
            frames = np.stack([image.array[k] for image in images])
            both = np.stack([mask[k] for mask in masks])
            other = {"of end-systole": both[1]}
            name = f"{folder.name}-{k}"
            spacing = images[0].spacing
            yield from rows_of("ACDC", name, registrar, frames, both, 3, other, spacing=spacing)


def markdown(table: pd.DataFrame) -> str:
    """The table of docs/tracking.md."""
    header = [
        "",
        "beats",
        *LEVELS,
        "refused",
        "wrong by more than 10 points (of these not plausible)",
    ]
    lines = []
    for (kind, mask), part in table.groupby(["kind", "mask"], sort=False):
        wrong = part[(part.area_change - part.true_area_change).abs() > WRONG]
        cells = [f"{kind}, mask {mask}", len(part)]
        cells += [(part.verdict == level).sum() for level in (*LEVELS, "refused")]
        cells.append(f"{len(wrong)} ({(wrong.verdict != PLAUSIBLE).sum()})")
        lines.append(list(map(str, cells)))
    return markdown_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--acdc", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    registrar = load()
    rows = tqdm(itertools.chain(phantoms(registrar), patients(registrar, args.acdc)), mininterval=5)
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False, lineterminator="\n", float_format="%.4f")
    print(markdown(table))


if __name__ == "__main__":
    main()
