"""Tables 1 to 3 of a benchmark: from evaluations on disk to Markdown, CSV and LaTeX.

A table has one block per dataset. A score is first averaged over the seeds of a pair; mean and
standard deviation are over pairs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_morph_jax.evaluation import csv_text
from ldm_morph_jax.ops.metrics import summarise
from ldm_morph_jax.paper.reported import PaperScore
from ldm_morph_jax.paper.statistics import Comparison, compare
from ldm_morph_jax.report.tables import METRICS, latex_table, markdown_table

TITLES = {
    "initial": "Initial",
    "syn": "SyN",
    "lddmm": "LDDMM",
    "voxelmorph": "VoxelMorph",
    "cyclemorph": "CycleMorph",
    "diffusemorph": "DiffuseMorph",
    "transmorph": "TransMorph",
    "transmatch": "TransMatch",
    "ldm_morph": "LDM-Morph",
    "camus_2ch": "CAMUS-2CH",
    "camus_4ch": "CAMUS-4CH",
    "echonet": "EchoNet-Dynamic",
    "acdc": "ACDC",
    "sunnybrook": "Sunnybrook",
}
SHOWN = {
    metric.key: metric
    for metric in METRICS
    if metric.key in ("dsc", "nonpositive_jacobian_percent", "seconds_per_pair")
}
ABSENT = "-"


def title_of(name: str) -> str:
    """How a method or dataset is written; names of one's own as they are."""
    return TITLES.get(name, name)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run on one dataset's test pairs, as it is on disk.

    Attributes:
      method: name of the cell: a method, or a variant of LDM-Morph.
      trained_on: dataset; for a method without weights the one that it is tested on.
      tested_on: dataset.
      seed: None for a method without weights.
      run, results: the run directory and the directory of this evaluation, relative to the
        benchmark's.
      summary: content of summary.json; None when there is none.
      rows: content of pairs.csv, numbers as floats (NaN for an empty cell).
      error: why it failed, in one line, or None.
    """

    method: str
    trained_on: str
    tested_on: str
    seed: int | None
    run: str
    results: str
    summary: Mapping | None = None
    rows: Sequence[Mapping] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """A method on a dataset over all seeds that are done."""

    method: str
    entries: tuple[Entry, ...]

    @property
    def done(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.summary is not None]

    @property
    def errors(self) -> list[str]:
        return [
            f"{title_of(self.method)}{'' if e.seed is None else f', seed {e.seed}'}: {e.error}"
            for e in self.entries
            if e.error is not None
        ]

    def values(self, key: str) -> np.ndarray:
        """A score of every pair, `[N]`, averaged over seeds."""
        return np.mean([[row[key] for row in entry.rows] for entry in self.done], axis=0)

    def summary(self, key: str) -> dict:
        return summarise(self.values(key))


def score(entries: Sequence[Entry], method: str, trained_on: str, tested_on: str) -> Score:
    """The entries of a method: those of `trained_on`, or those without weights."""
    kept = (
        entry
        for entry in entries
        if entry.method == method and entry.tested_on == tested_on
        if entry.seed is None or entry.trained_on == trained_on
    )
    return Score(method, tuple(kept))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    label: what it is, in words
    leading: cells before the numbers
    comparison, against: the difference of DSC to another row, and that row's label
    """

    label: str
    leading: tuple[str, ...]
    score: Score
    paper: PaperScore | None
    comparison: Comparison | None = None
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Block:
    """The part of a table for one dataset."""

    title: str
    leading: tuple[str, ...]
    rows: tuple[Row, ...]
    times: bool
    facts: tuple[str, ...] = ()

    @property
    def best(self) -> Row | None:
        """The row with the highest mean DSC."""
        return _best(self.rows)

    @property
    def has_paper(self) -> bool:
        return any(row.paper for row in self.rows)

    @property
    def header(self) -> list[str]:
        shown = ["DSC", "difference to best other [95 %]", "p", "% J <= 0"]
        shown += ["s per pair", "s first call"] if self.times else []
        if self.has_paper:
            shown += ["paper: DSC", "paper: % J <= 0"] + ["paper: s"] * self.times
        return [*self.leading, *shown]

    def cells(self, row: Row) -> list[str]:
        """A row as text."""
        return [*row.leading, *_measured(row, self.times), *self._printed(row.paper)]

    def _printed(self, paper: PaperScore | None) -> list[str]:
        """The paper's cells."""
        if not self.has_paper:
            return []
        if paper is None:
            return [ABSENT] * (2 + self.times)
        folds, seconds = paper.nonpositive_jacobian_percent, paper.seconds_per_pair
        cells = [_paper_text("dsc", paper.dsc)]
        cells.append(_paper_text("nonpositive_jacobian_percent", folds) if folds else ABSENT)
        return cells + ([ABSENT if seconds is None else f"{seconds:.2f}"] if self.times else [])

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: partners of the comparison, facts, failures."""
        best, told = self.best, []
        if best is not None and best.against:
            told.append(
                f"The best other is {best.label} for every row but its own, where it is "
                f"{best.against}."
            )
        errors = [error for row in self.rows for error in row.score.errors]
        return [*told, *self.facts, *(f"Failed: {error}" for error in errors)]


def _measured(row: Row, times: bool) -> list[str]:
    score = row.score
    if not score.done:
        return ["failed" if score.errors else "not run"] + [ABSENT] * (5 if times else 3)
    done, of = len(score.done), len(score.entries)
    seeds = "" if done == of else f" ({done} of {of} seeds)"
    moves = score.method != "initial"
    cells = [SHOWN["dsc"].mean_std(score.summary("dsc")) + seeds]
    if row.comparison and row.comparison.n:
        c = row.comparison
        cells.append(f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]")
        cells.append("<0.001" if c.p_value < 0.001 else f"{c.p_value:.3f}")
    else:
        cells += [ABSENT, ABSENT]
    for key in ("nonpositive_jacobian_percent", "seconds_per_pair")[: 1 + times]:
        cells.append(SHOWN[key].mean_std(score.summary(key)) if moves else ABSENT)
    if times:
        first = _first_call(score)
        cells.append(ABSENT if first is None or not moves else f"{first:.1f}")
    return cells


def _first_call(score: Score) -> float | None:
    seconds = [entry.summary["seconds_first_call"] for entry in score.done]
    return float(np.mean(seconds)) if seconds else None


def _paper_text(key: str, value: tuple[float, float | None]) -> str:
    mean, std = (SHOWN[key].number(number) for number in value)
    return mean if value[1] is None else f"{mean} ({std})"


def _best(rows: Sequence[Row]) -> Row | None:
    scored = [row for row in rows if row.score.done]
    scored = [row for row in scored if not math.isnan(row.score.summary("dsc")["mean"])]
    return max(scored, key=lambda row: row.score.summary("dsc")["mean"], default=None)


def block(
    title: str,
    leading: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str], Score, PaperScore | None]],
    *,
    times: bool,
    facts: Sequence[str] = (),
) -> Block:
    """Rows (label, leading cells, score, the paper's score), compared with each other."""
    made = [Row(label, tuple(cells), *scores) for label, cells, *scores in rows]
    best = _best(made)
    second = _best([row for row in made if row is not best])
    compared = []
    for row in made:
        other = second if row is best else best
        if row.score.done and other is not None:
            result = compare(row.score.values("dsc"), other.score.values("dsc"))
            row = dataclasses.replace(row, comparison=result, against=other.label)
        compared.append(row)
    return Block(title, tuple(leading), tuple(compared), times, tuple(facts))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper: number, title, and its blocks."""

    number: int
    title: str
    blocks: tuple[Block, ...]

    def markdown(self) -> str:
        parts = [f"# Table {self.number}: {self.title}"]
        for part in self.blocks:
            cells = [part.cells(row) for row in part.rows]
            if part.best is not None:
                best = part.rows.index(part.best)
                first = len(part.leading)
                cells[best][first] = f"**{cells[best][first]}**"
            parts += [f"## {part.title}", markdown_table(part.header, cells)]
            parts.append("\n".join(f"* {note}" for note in part.notes))
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """One `table` environment per block; needs the packages booktabs and amssymb."""
        return "\n".join(
            latex_table(
                part.header,
                [part.cells(row) for row in part.rows],
                caption=f"{self.title}: {part.title}",
                notes=part.notes,
                bold=None if part.best is None else (part.rows.index(part.best), len(part.leading)),
            )
            for part in self.blocks
        )

    def csv(self) -> str:
        return csv_text(self.records())

    def records(self) -> list[dict]:
        """A row per method and dataset, unrounded."""
        return [
            {"table": self.number, "block": part.title} | _record(row, part.times)
            for part in self.blocks
            for row in part.rows
        ]


def _record(row: Row, times: bool) -> dict:
    entries = row.score.entries
    nan = float("nan")
    record = {
        "row": row.label,
        "method": row.score.method,
        "trained_on": entries[0].trained_on if entries else "",
        "tested_on": entries[0].tested_on if entries else "",
        "seeds": len(row.score.done),
        "pairs": len(row.score.done[0].rows) if row.score.done else 0,
    }
    for key in ("dsc", "nonpositive_jacobian_percent") + ("seconds_per_pair",) * times:
        values = row.score.summary(key) if row.score.done else {"mean": nan, "std": nan}
        record |= {f"{key}_mean": values["mean"], f"{key}_std": values["std"]}
    if times:
        first = _first_call(row.score)
        record["seconds_first_call"] = nan if first is None else first
    means = [entry.summary["dsc"]["mean"] for entry in row.score.done]
    record["dsc_std_over_seeds"] = float(np.std(means)) if len(means) > 1 else nan
    comparison = row.comparison or Comparison(0, nan, nan, nan, nan)
    record |= {
        "best_other": row.against or "",
        "dsc_difference": comparison.difference,
        "dsc_difference_low": comparison.low,
        "dsc_difference_high": comparison.high,
        "wilcoxon_p": comparison.p_value,
        "compared_pairs": comparison.n,
    }
    if row.paper:
        folds = row.paper.nonpositive_jacobian_percent or (None, None)
        record |= {
            "paper_dsc_mean": row.paper.dsc[0],
            "paper_dsc_std": row.paper.dsc[1],
            "paper_nonpositive_jacobian_percent_mean": folds[0],
            "paper_nonpositive_jacobian_percent_std": folds[1],
        }
        if times:
            record["paper_seconds_per_pair"] = row.paper.seconds_per_pair
    record["runs"] = " ".join(entry.run for entry in entries)
    record["error"] = "; ".join(row.score.errors)
    return record
