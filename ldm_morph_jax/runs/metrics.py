"""Reads the metrics.jsonl files that training writes."""

import json
import math
from pathlib import Path


def read_curves(workdir: str | Path) -> dict[str, dict[str, dict[str, tuple[list, list]]]]:
    """Stage -> quantity -> "training" or "validation" -> (steps, values), in the order of training.

    Reads the metrics.jsonl of every stage in a run directory; {} if nothing was logged. Missing
    values (null) are NaN. A last line truncated by a kill is ignored.

    Raises:
        ValueError: another line is not a JSON object with a "step".
    """
    files = sorted(
        Path(workdir).glob("*/metrics.jsonl"), key=lambda file: (file.stat().st_mtime, file)
    )
    return {file.parent.name: _read(file) for file in files}


def _read(path: Path) -> dict[str, dict[str, tuple[list, list]]]:
    lines = path.read_text().split("\n")
    quantities: dict[str, dict[str, tuple[list, list]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # truncated: the process was killed while writing
                continue
            message = f"{path}:{number}: found {line[:80]!r}, expected a JSON object with a step"
            raise ValueError(message) from error
        for name, value in record.items():
            if value is None or isinstance(value, int | float):
                kind, _, quantity = name.rpartition("/")
                kind = kind or "training"
                steps, values = quantities.setdefault(quantity, {}).setdefault(kind, ([], []))
                steps.append(step)
                values.append(math.nan if value is None else value)
    return quantities
