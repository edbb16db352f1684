"""The tables of times of docs/results/speed, of the files that the timing commands wrote.

    PYTHONPATH=. python tests/speed_tables.py

docs/results/speed lists the commands. tests/test_documented_numbers.py asserts that the
document holds exactly these tables.
"""

import json
import statistics
from pathlib import Path

from ldm_morph_jax.report.tables import markdown_table

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "speed"
CACHED = {None: "", True: ", features cached", False: ", not cached"}


def tables() -> list[str]:
    """In the order of the document."""
    small, paper, torch, forms = (
        json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("small", "paper", "against_torch", "alternatives")
    )
    return [
        markdown_table(
            ("training step", "batch", "seconds", "images/s", "GFLOP/s", "compilation, s"),
            [_step("small", row) for row in small["steps"]]
            + [_step("paper", row) for row in paper["steps"]],
        ),
        markdown_table(
            ("registration, seconds per pair", "computing features", "features given"),
            [*_registrations("small", small), *_registrations("paper size", paper)],
        ),
        markdown_table(
            ("one pair", "seconds", "of PyTorch's, as published"), list(_against_torch(torch))
        ),
        markdown_table(
            ("what", "before, ms", "after, ms", "ratio"),
            [_form(case) for case in forms["cases"]],
        ),
    ]


def _step(size, row):
    return (
        f"{size} {row['stage']}{CACHED[row['cached']]}",
        str(row["batch_size"]),
        _spread(row["step_seconds"]),
        f"{row['images_per_second']:.3g}",
        f"{row['flops_per_second'] / 1e9:.0f}",
        f"{row['compile_seconds']:.1f}",
    )


def _registrations(size, facts):
    by_batch = {}
    for row in facts["registration"]:
        by_batch.setdefault(row["batch_size"], {})[row["features_given"]] = row
    for batch, rows in by_batch.items():
        cells = (_spread(rows[given]["seconds_per_pair"]) for given in (False, True))
        yield f"{size}, batch {batch}", *cells


def _against_torch(facts):
    medians = {name: statistics.median(t) for name, t in facts["seconds_per_pair"].items()}
    published = next(median for name, median in medians.items() if "as published" in name)
    for name, times in facts["seconds_per_pair"].items():
        spread = {"median": medians[name], "min": min(times), "max": max(times)}
        yield name, _spread(spread), f"{medians[name] / published:.2f}"


def _form(case):
    before, after = case["plain_seconds"], case["seconds"]
    return case["what"], f"{1e3 * before:.1f}", f"{1e3 * after:.1f}", f"{before / after:.1f}"


def _spread(seconds):
    return f"{seconds['median']:.3g} ({seconds['min']:.3g}-{seconds['max']:.3g})"


if __name__ == "__main__":
    print("\n\n".join(tables()))
