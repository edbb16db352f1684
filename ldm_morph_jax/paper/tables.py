"""The form of the tables: rows with scores, what they are compared with, Markdown, CSV, LaTeX.

A table has one block per dataset. A score is first averaged over the seeds of a pair; mean and
standard deviation are over pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ldm_morph_jax.paper.reported import PaperScore
from ldm_morph_jax.paper.results import Scores
from ldm_morph_jax.paper.statistics import Comparison, compare, holm
from ldm_morph_jax.report.tables import METRICS, Metric, latex_table, markdown_table

# the columns of numbers, in order
SHOWN = {
    metric.key: metric
    for metric in METRICS
    if metric.key in ("dsc", "nonpositive_jacobian_percent", "seconds_per_pair")
}
# of Table 4: DSC, which those of the structures follow, and what else is shown of each pair
PAIR_KEYS = ("dsc", "hd95_mm", "nonpositive_jacobian_percent", "sd_log_jacobian")
MOTION_KEYS = PAIR_KEYS[2:]  # have no value where nothing moves
ABSENT = "-"
NOT_CONVERGED = "†"
LEVEL = 0.05  # a claim holds below this corrected p, with its interval above zero


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A line of a table: what it is in words, the cells before the numbers, and its scores."""

    label: str
    leading: tuple[str, ...]
    scores: Scores
    paper: PaperScore | None = None

    @property
    def dsc(self) -> float:
        """Mean DSC; NaN without a result."""
        return self.scores.summary("dsc")["mean"] if self.scores.done else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Claim:
    """That `first` has a higher DSC than `second`.

    text: the claim in words
    comparison: first minus second
    corrected_p: corrected for all claims of its table (Holm)
    """

    text: str
    first: Row
    second: Row
    comparison: Comparison
    corrected_p: float = float("nan")

    @property
    def holds(self) -> bool:
        return self.comparison.low > 0 and self.corrected_p < LEVEL


def claim(text: str, first: Row, second: Row) -> Claim | None:
    """The claim, if both rows have results."""
    if not (first.scores.done and second.scores.done):
        return None
    if first.scores.ids != second.scores.ids:
        raise ValueError(f"{first.label} and {second.label}: found other pairs, expected the same")
    values = (row.scores.values("dsc") for row in (first, second))
    return Claim(text, first, second, compare(*values, first.scores.patients))


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The part of a table for one dataset.

    Attributes:
      title: the dataset, or what was trained and tested on what.
      leading: header of the rows' leading cells.
      rows: those of which anything has been run.
      claims: comparisons of its rows.
      references: for every row the one that it is compared with in its own line, or None.
      reference: in words, what that is.
      times: whether there are columns of times.
      facts: notes below the block.
    """

    title: str
    leading: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    references: tuple[Row | None, ...]
    reference: str
    times: bool = False
    facts: tuple[str, ...] = ()

    @property
    def best(self) -> Row | None:
        """The row with the highest mean DSC."""
        scored = [row for row in self.rows if not np.isnan(row.dsc)]
        return max(scored, key=lambda row: row.dsc, default=None)

    @property
    def has_paper(self) -> bool:
        return any(row.paper for row in self.rows)

    @property
    def keys(self) -> dict[str, Metric]:
        """The scores that it shows, and how each is written."""
        return dict(list(SHOWN.items())[: 2 + self.times])

    @property
    def header(self) -> list[str]:
        shown = ["DSC", f"difference to {self.reference} [95 %]", "p", "% J <= 0"]
        shown += ["s per pair", "s first call"] if self.times else []
        if self.has_paper:
            shown += ["paper: DSC", "paper: % J <= 0"] + ["paper: s"] * self.times
        return [*self.leading, *shown]

    def compared(self, row: Row) -> tuple[Comparison, float] | None:
        """A row minus its reference, and the corrected p."""
        reference = self.references[self.rows.index(row)]
        for claim in self.claims:
            if claim.first is row and claim.second is reference:
                return claim.comparison, claim.corrected_p
            if claim.first is reference and claim.second is row:
                return claim.comparison.reversed, claim.corrected_p
        return None

    def cells(self, row: Row) -> list[str]:
        """A row as text."""
        return [*row.leading, *self._measured(row), *self._printed(row.paper)]

    def _measured(self, row: Row) -> list[str]:
        scores = row.scores
        if not scores.done:
            return [_state(row)] + [ABSENT] * (5 if self.times else 3)
        moves = scores.name != "initial"
        cells = [_text("dsc", scores) + _marks(scores)]
        compared = self.compared(row)
        cells += [difference_text(compared[0]), p_text(compared[1])] if compared else [ABSENT] * 2
        keys = list(self.keys)[1:]
        cells += [_text(key, scores) if moves else ABSENT for key in keys]
        if self.times:
            cells.append(f"{_first_call(scores):.1f}" if moves else ABSENT)
        return cells

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
        """What a reader has to know: facts, marks, failures."""
        lines = list(self.facts)
        late = [row.label for row in self.rows if NOT_CONVERGED in _marks(row.scores)]
        if late:
            lines.append(
                f"{NOT_CONVERGED} Not converged, validation was still getting better at the last "
                f"step: {', '.join(late)}."
            )
        for row in self.rows:
            for result in row.scores.results:
                if result.error is not None:
                    seed = "" if result.seed is None else f", seed {result.seed}"
                    lines.append(f"Failed: {row.label}{seed}: {result.error}")
        return lines


@dataclasses.dataclass(frozen=True, eq=False)
class StructureBlock(Block):
    """The part of a table for one dataset that shows each structure's DSC, HD95 in mm and folds.

    structures: name -> how it ends the columns of pairs.csv (`report.tables.structure_columns`).
    """

    structures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def keys(self) -> dict[str, Metric]:
        metrics = {metric.key: metric for metric in METRICS}
        of_structures = {f"dsc_{column}": metrics["dsc"] for column in self.structures.values()}
        of_pairs = {key: metrics[key] for key in PAIR_KEYS}
        return {"dsc": metrics["dsc"]} | of_structures | of_pairs

    @property
    def header(self) -> list[str]:
        of_structures = [f"DSC, {name}" for name in self.structures]
        return [*self.leading, "DSC", *of_structures, "HD95, mm", "% J <= 0", "SD of log J"]

    def _measured(self, row: Row) -> list[str]:
        if not row.scores.done:
            return [_state(row)] + [ABSENT] * (len(self.keys) - 1)
        moves = row.scores.name != "initial"
        return [
            metric.mean_std(row.scores.summary(key)) if moves or key not in MOTION_KEYS else ABSENT
            for key, metric in self.keys.items()
        ]


def difference_text(c: Comparison) -> str:
    """ "+0.012 [+0.003, +0.021]"."""
    return f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"


def p_text(p: float) -> str:
    """Three digits; "-" for a comparison without a pair."""
    if np.isnan(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _text(key: str, scores: Scores) -> str:
    return SHOWN[key].mean_std(scores.summary(key))


def _state(row: Row) -> str:
    """Of a row without results."""
    return "failed" if any(result.error for result in row.scores.results) else "not run"


def _marks(scores: Scores) -> str:
    """What is special about a row's results."""
    done, planned = len(scores.done), len(scores.results)
    late = any(result.converged is False for result in scores.done)
    seeds = f" ({done} of {planned} seeds)" if 0 < done < planned else ""
    return seeds + f" {NOT_CONVERGED}" * late


def _first_call(scores: Scores) -> float:
    return float(np.mean([result.summary["seconds_first_call"] for result in scores.done]))


def _paper_text(key: str, value: tuple[float, float | None]) -> str:
    mean, std = (SHOWN[key].number(number) for number in value)
    return mean if value[1] is None else f"{mean} ({std})"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table: number (1 to 3 are the paper's), title, and its blocks."""

    number: int
    title: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"table{self.number}"

    def markdown(self) -> str:
        parts = [f"# Table {self.number}: {self.title}"]
        for block in self.blocks:
            cells = [block.cells(row) for row in block.rows]
            if block.best is not None:
                best, first = block.rows.index(block.best), len(block.leading)
                cells[best][first] = f"**{cells[best][first]}**"
            parts += [f"## {block.title}", markdown_table(block.header, cells)]
            parts.append("\n".join(f"* {note}" for note in block.notes))
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """One `table` environment per block; needs the packages booktabs and amssymb."""
        return "\n".join(
            latex_table(
                block.header,
                [block.cells(row) for row in block.rows],
                caption=f"{self.title}: {block.title}",
                notes=block.notes,
                bold=block.best and (block.rows.index(block.best), len(block.leading)),
            )
            for block in self.blocks
        )

    def records(self) -> list[dict]:
        """A row per method and dataset, unrounded."""
        return [
            {"table": self.number, "block": block.title} | _record(row, block)
            for block in self.blocks
            for row in block.rows
        ]


def corrected(table: Table) -> Table:
    """The table with all its claims' p-values corrected for their number."""
    claims = [claim for block in table.blocks for claim in block.claims]
    p_values = iter(holm([claim.comparison.p_value for claim in claims]))
    blocks = tuple(
        dataclasses.replace(
            block,
            claims=tuple(
                dataclasses.replace(claim, corrected_p=float(next(p_values)))
                for claim in block.claims
            ),
        )
        for block in table.blocks
    )
    return dataclasses.replace(table, blocks=blocks)


def csv_text(records: Sequence[Mapping]) -> str:
    """Records as CSV; NaN and None are empty cells."""
    return pd.DataFrame(records).to_csv(index=False, lineterminator="\n")


def _record(row: Row, block: Block) -> dict:
    scores, nan = row.scores, float("nan")
    results = scores.results
    record = {
        "row": row.label,
        "method": scores.name,
        "trained_on": results[0].trained_on,
        "tested_on": results[0].tested_on,
        "seeds": len(scores.done),
        "pairs": len(scores.patients) if scores.done else 0,
        "patients": len(set(scores.patients)) if scores.done else 0,
    }
    for key in block.keys:
        values = scores.summary(key) if scores.done else {"mean": nan, "std": nan}
        record |= {f"{key}_mean": values["mean"], f"{key}_std": values["std"]}
    if block.times:
        record["seconds_first_call"] = _first_call(scores) if scores.done else nan
    means = [result.summary["dsc"]["mean"] for result in scores.done]
    record["dsc_std_over_seeds"] = float(np.std(means, ddof=1)) if len(means) > 1 else nan
    comparison, p = block.compared(row) or (Comparison(*[nan] * 4, 0, 0, (0, 0)), nan)
    record |= {
        "dsc_difference": comparison.difference,
        "dsc_difference_low": comparison.low,
        "dsc_difference_high": comparison.high,
        "p": comparison.p_value,
        "p_corrected": p,
    }
    weights = {r.smoothness_weight for r in scores.done if r.smoothness_weight is not None}
    record["smoothness_weight"] = weights.pop() if len(weights) == 1 else nan
    late = {result.converged for result in scores.done}
    record["converged"] = "" if late <= {None} else str(False not in late).lower()
    paper = row.paper or PaperScore((nan, nan))
    folds = paper.nonpositive_jacobian_percent or (nan, nan)
    if block.has_paper:
        record |= {
            "paper_dsc_mean": paper.dsc[0],
            "paper_dsc_std": paper.dsc[1],
            "paper_nonpositive_jacobian_percent_mean": folds[0],
            "paper_nonpositive_jacobian_percent_std": folds[1],
        }
        if block.times:
            record["paper_seconds_per_pair"] = paper.seconds_per_pair
    record["runs"] = " ".join(result.run for result in results)
    record["error"] = "; ".join(result.error for result in results if result.error)
    return record
