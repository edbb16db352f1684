"""Prepare a dataset.

    ldm-morph prepare --dataset camus_2ch --source DIR

Reads the original files once, checks them, and writes pairs ready for training below --out, with

    manifest.csv                 id, split, files, sha256 of the files, initial DSC of every pair
    preparation.json             options, pairs per split against the paper's, what was left out
    contact_sheet_SPLIT.png      some pairs of the split with their contours
    beats/ID/                    phantom_cine: every beat as NIfTI, for other programs

so that two labs can compare that they hold the same pairs. A finished preparation is found again
and left as it is; one that was interrupted starts anew. What each dataset needs: docs/datasets.md.
"""

import csv
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from ldm_morph_jax import commands
from ldm_morph_jax.data import contact_sheet, dataset_class, load_dataset
from ldm_morph_jax.data.base import DatasetBuilder
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `prepare` takes, whatever the dataset."""

    dataset: str
    """camus_2ch, echonet, acdc, folder, ...; with it, --help lists the options of that dataset"""

    source: Path | None = None
    """original files; folder: a CSV file of pairs"""

    out: Path = Path("data")
    """folder of prepared datasets"""


def options_for(dataset: type[DatasetBuilder]) -> type[Options]:
    """`Options` with those of a dataset."""
    whole_numbers = {
        field.name: Annotated[int, WHOLE]
        for field in dataclasses.fields(dataset.Options)
        if field.type is int
    }
    return dataclasses.dataclass(frozen=True, kw_only=True)(
        type("Options", (dataset.Options, Options), {"__annotations__": whole_numbers})
    )


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
        pairs, dsc = facts["pairs"].get(split, 0), scores[split]
        overlap = f"{np.mean(dsc):.3f} ({np.std(dsc):.3f})" if dsc else "-"
        lines.append(f"{split:<12}{pairs:>7}{paper.get(split, '-'):>7}   {overlap}")
    for reason, names in facts["left_out"].items():
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"left out, {reason}: {len(names)} ({shown})")
    labels = ", ".join(f"{text} ({label})" for label, text in prepared.labels.items())
    lines.append(f"scored structures: {labels or 'none, there are no masks'}")
    lines.append(f"spacing: {prepared.spacing}")
    lines.append(f"prepared: {prepared.path}")
    return "\n".join(lines)


def run(options: Options) -> None:
    """Do what the command line says."""
    fields = dataclasses.fields(dataset_class(options.dataset).Options)
    own = {field.name: getattr(options, field.name) for field in fields}
    prepared = load_dataset(options.dataset, source=options.source, directory=options.out, **own)
    prepared.write_files(prepared.path)
    for split in prepared.splits:
        sheet = prepared.path / f"contact_sheet_{split}.png"
        if not sheet.exists():
            with atomic(sheet) as part:
                contact_sheet(prepared, split, part)
    print(summary(prepared))


def named_dataset(arguments: Sequence[str]) -> str | None:
    """What --dataset names."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--dataset":
            return value if equals else following
    return None


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv

    def work() -> None:
        name = named_dataset(arguments)
        options = options_for(dataset_class(name)) if name else Options
        run(
            commands.parse_options(
                options, arguments, prog="ldm-morph prepare", description=__doc__
            )
        )

    commands.run(work)


if __name__ == "__main__":
    main()
