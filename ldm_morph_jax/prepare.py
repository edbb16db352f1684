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
import dataclasses
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from ldm_morph_jax import commands
from ldm_morph_jax.data import contact_sheet, dataset_class, load_dataset
from ldm_morph_jax.data.base import Options
from ldm_morph_jax.files.writing import atomic


def prepare(
    dataset: str, *, source=None, out: str | Path = "data", pictures: bool = True, **options
):
    """Prepares a dataset below `out` unless that is done, with its contact sheets; returns it.

    Arguments are those of `ldm_morph_jax.data.load_dataset`, whose ValueErrors it raises.
    """
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
    with (prepared.path / "manifest.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
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


def build_parser(options: type[Options]) -> argparse.ArgumentParser:
    """The command's flags: its own, and one for every option of the dataset."""
    parser = argparse.ArgumentParser(
        prog="ldm-morph prepare",
        description=__doc__.split("\n\n")[0],
        epilog="With --dataset NAME, --help lists the options of that dataset.",
    )
    parser.add_argument("--dataset", required=True, help="camus_2ch, echonet, acdc, folder, ...")
    parser.add_argument("--source", type=Path, help="original files; folder: a CSV file of pairs")
    parser.add_argument("--out", type=Path, default=Path("data"), help="default: %(default)s")
    group = parser.add_argument_group("options of the dataset")
    for field in dataclasses.fields(options):
        flag = f"--{field.name.replace('_', '-')}"
        help = f"{field.metadata.get('help', '')} (default: {field.default})".strip()
        if isinstance(field.default, bool):
            group.add_argument(flag, action="store_true", help=help)
        else:
            group.add_argument(flag, type=type(field.default), default=field.default, help=help)
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments = commands.spelled(sys.argv[1:] if arguments is None else arguments, "-")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--dataset")
    name = finder.parse_known_args(arguments)[0].dataset

    def run() -> None:
        options = Options if name is None else dataset_class(name).Options
        given, unknown = build_parser(options).parse_known_args(arguments)
        names = [field.name for field in dataclasses.fields(options)]
        if unknown:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in names)
            raise ValueError(
                f"dataset {name}: unknown options {' '.join(unknown)}; there are: {flags}"
            )
        prepared = prepare(
            given.dataset,
            source=given.source,
            out=given.out,
            **{option: getattr(given, option) for option in names},
        )
        print(summary(prepared))

    commands.run(run)


if __name__ == "__main__":
    main()
