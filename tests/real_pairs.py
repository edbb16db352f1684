"""What the scripts share that make committed rows from the real datasets."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ldm_morph_jax.data import Dataset, load_dataset

# name -> options: scaled as for the weights that `register` takes by default
DATASETS = {
    "sunnybrook": {"intensity": "percentile"},
    "acdc": {"intensity": "percentile", "allow_partial": True},
    "camus_4ch": {"intensity": "percentile", "allow_partial": True},
}


def arguments() -> argparse.ArgumentParser:
    """Where the datasets are, as `ldm-morph prepare --source` takes them, and where to write."""
    parser = argparse.ArgumentParser()
    for name in DATASETS:
        parser.add_argument(f"--{name}", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", default="data", help="where prepared data are kept")
    return parser


def opened(name: str, args: argparse.Namespace) -> Dataset:
    return load_dataset(name, source=getattr(args, name), directory=args.data, **DATASETS[name])


def kept(file: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The rows in a file, which are made and written where it is missing."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        make().to_csv(file, index=False, lineterminator="\n")
    return pd.read_csv(file)


def fell(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of pairs that overlap clearly less than before."""
    return table[table.dsc < table.dsc_initial - 0.005]
