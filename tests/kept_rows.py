"""A CSV table that a script writes row by row, and goes on with when it is started again."""

import csv
from collections.abc import Sequence
from pathlib import Path


class KeptRows:
    """The rows of a file; `keys` are the columns that tell them apart."""

    def __init__(self, path: Path, keys: Sequence[str]):
        self.path, self.done = path, set()
        if path.exists():
            with open(path, newline="") as file:
                self.done = {tuple(row[key] for key in keys) for row in csv.DictReader(file)}

    def __contains__(self, values: Sequence) -> bool:
        return tuple(map(str, values)) in self.done

    def add(self, row: dict) -> None:
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
