"""What scripts have in common that go through ACDC's whole stacks patient by patient."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from kept_rows import KeptRows


def parser(description: str) -> argparse.ArgumentParser:
    """With --data, --patients, --step and --out; DIR of --data holds
    `*/patientXXX/patientXXX_frameYY.nii.gz` and their masks `_gt`."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--patients", default="101-150", help="first-last")
    options.add_argument("--step", type=int, default=1, help="every so many patients")
    options.add_argument("--out", type=Path, required=True)
    return options


def patients(args: argparse.Namespace) -> Iterator[tuple[int, list[Path], list[Path]]]:
    """(Number, images at end-diastole and end-systole, their masks) of the patients asked for."""
    first, last = map(int, args.patients.split("-"))
    for number in range(first, last + 1, args.step):
        [folder] = args.data.glob(f"*/patient{number:03d}")
        images = sorted(folder.glob("*_frame??.nii.gz"))
        yield number, images, [Path(str(f).replace(".nii.gz", "_gt.nii.gz")) for f in images]


def keep_rows(
    args: argparse.Namespace,
    key: str,
    values: list[str],
    measure: Callable[[list[Path], list[Path], str], dict],
) -> pd.DataFrame:
    """The table --out, to which the rows that it lacks of `patient` and `key` were added.

    measure: (images, masks, value of `key`) -> the other columns of a row.
    """
    rows = KeptRows(args.out, ("patient", key))
    for number, images, masks in patients(args):
        for value in values:
            if (number, value) not in rows:
                rows.add({"patient": number, key: value, **measure(images, masks, value)})
    return pd.read_csv(args.out)


def agreement(errors: pd.Series) -> str:
    """Cells of a table: bias, mean absolute error and 95 % limits of agreement."""
    bias, spread = errors.mean(), 1.96 * errors.std()
    return (
        f"{bias:+.1f} | {errors.abs().mean():.1f} | {bias - spread:+.1f} to {bias + spread:+.1f} |"
    )
