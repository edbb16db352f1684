"""Prepare a dataset: `python -m ldm_morph_jax.prepare --dataset camus_2ch --source DIR`.

Reads the original files once, checks them, and writes pairs ready for training below --out, with

    manifest.csv                 id, split, files, sha256 of the files, initial DSC of every pair
    preparation.json             options, pairs per split against the paper's, what was left out
    contact_sheet_SPLIT.png      some pairs of the split with their contours

so that two labs can compare that they hold the same pairs. A finished preparation is found again
and left as it is; one that was interrupted starts anew. What each dataset needs: docs/datasets.md.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from ldm_morph_jax import commands


def prepare(
    dataset: str, *, source=None, out: str | Path = "data", pictures: bool = True, **options
):
    """Prepares a dataset below `out` unless that is done, with its contact sheets; returns it.

    Arguments are those of `ldm_morph_jax.data.load_dataset`, whose ValueErrors it raises.
    """
    from ldm_morph_jax.data import contact_sheet, load_dataset
    from ldm_morph_jax.files.images import atomic

    prepared = load_dataset(dataset, source=source, directory=out, **options)
    for split in prepared.splits if pictures else ():
        sheet = prepared.path / f"contact_sheet_{split}.png"
        if not sheet.exists():
            with atomic(sheet) as part:
                contact_sheet(prepared, split, part)
    return prepared


def summary(prepared) -> str:
    """Pairs per split against the paper's, their initial DSC, what was left out, where it lies."""
    facts, scores = prepared.preparation, defaultdict(list)
    with (prepared.path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dsc_initial"]:
                scores[row["split"]].append(float(row["dsc_initial"]))
    paper = facts["paper_pairs"]
    lines = [f"{'split':<12}{'pairs':>7}{'paper':>7}   initial DSC, mean (standard deviation)"]
    for split in dict.fromkeys([*paper, *facts["pairs"]]):
        found, dsc = facts["pairs"].get(split, 0), scores[split]
        overlap = f"{np.mean(dsc):.3f} ({np.std(dsc):.3f})" if dsc else "-"
        lines.append(f"{split:<12}{found:>7}{paper.get(split, '-'):>7}   {overlap}")
    for reason, names in facts["left_out"].items():
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"left out, {reason}: {len(names)} ({shown})")
    labels = ", ".join(f"{text} ({label})" for label, text in prepared.labels.items())
    lines.append(f"scored structures: {labels or 'none, there are no masks'}")
    lines.append(f"spacing: {prepared.spacing}")
    lines.append(f"prepared: {prepared.path}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ldm-morph prepare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", required=True, help="camus_2ch, echonet, acdc, folder, ...")
    parser.add_argument("--source", type=Path, help="original files; folder: a CSV file of pairs")
    parser.add_argument("--out", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="take those of the paper's patients that are there; training then needs "
        "--config.data.options.allow_partial=True",
    )
    parser.add_argument("--image-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--intensity", default="minmax", help="minmax (default) or percentile")
    parser.add_argument("--reverse", action="store_true", help="moving = ES, fixed = ED")
    given = commands.parse(parser, arguments)

    def run() -> None:
        prepared = prepare(
            given.dataset,
            source=given.source,
            out=given.out,
            image_size=given.image_size,
            intensity=given.intensity,
            reverse=given.reverse,
            **({"allow_partial": True} if given.allow_partial else {}),
        )
        print(summary(prepared))

    commands.run(run)


if __name__ == "__main__":
    main()
