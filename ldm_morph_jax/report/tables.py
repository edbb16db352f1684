"""The scores of an evaluation: how each is written, and tables as text, Markdown and LaTeX."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from tabulate import DataRow, Line, TableFormat, tabulate


@dataclasses.dataclass(frozen=True)
class Metric:
    """One score: its key in rows and summaries, how to write it, the key of its value before.

    better: +1 when larger is better, -1 when smaller is
    """

    key: str
    name: str
    unit: str
    digits: int
    better: int
    initial: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float | None) -> str:
        """The value with this metric's digits; "-" for None (a score that does not exist)."""
        if value is None:
            return "-"
        return f"{value:.{self.digits}f}"

    def mean_std(self, summary: Mapping | None) -> str:
        """ "mean (std)" of a summary object, "-" without values."""
        if not summary or summary["mean"] is None:
            return "-"
        return f"{self.number(summary['mean'])} ({self.number(summary['std'])})"


METRICS = (
    Metric("dsc", "DSC", "", 3, +1, "dsc_initial"),
    Metric("hd95_px", "HD95", "px", 2, -1, "hd95_initial_px"),
    Metric("hd95_mm", "HD95", "mm", 2, -1, "hd95_initial_mm"),
    Metric("epe_px", "End-point error", "px", 2, -1, "epe_initial_px"),
    Metric(
        "epe_structures_px", "End-point error, structures", "px", 2, -1, "epe_structures_initial_px"
    ),
    Metric("mse", "MSE", "", 5, -1, "mse_initial"),
    Metric("nonpositive_jacobian_percent", "Folding, J <= 0", "%", 3, -1),
    Metric("sd_log_jacobian", "SD of log J", "", 3, -1),
    Metric("seconds_per_pair", "Time per pair", "s", 4, -1),
)


def structure_columns(labels: Mapping[int, str]) -> dict[int, str]:
    """label -> the structure's name as it ends a column name, e.g. "LV cavity" -> "lv_cavity"."""
    columns = {int(k): re.sub(r"\W+", "_", name).strip("_").lower() for k, name in labels.items()}
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"labels: found {dict(labels)}, expected names that differ")
    return columns


def scored(summary: Mapping) -> Iterator[tuple[Metric, str, Mapping]]:
    """(metric, structure, where its scores are) of a summary; "" stands for all structures.

    Single structures follow where there are several.
    """
    structures = summary["structures"] if len(summary["structures"]) > 1 else {}
    for metric in METRICS:
        if metric.key in summary:
            yield metric, "", summary
            if metric.key in ("dsc", "hd95_px"):
                for name, scores in structures.items():
                    yield metric, name, scores


def format_summary_table(summary: Mapping) -> str:
    """A summary (content of summary.json) for the terminal: mean (std) over pairs.

    A row per metric, before and after, and a row per structure where there are several.
    """
    rows = []
    for metric, structure, scores in scored(summary):
        before = metric.mean_std(scores[metric.initial]) if metric.initial else ""
        after = scores[metric.key]
        counted = f" [n={after['n']}]" if after["n_excluded"] else ""
        name = f"- {structure}" if structure else metric.title + counted
        rows.append([name, before, metric.mean_std(after)])
    title = "{method} on {dataset}, {split}: {n_pairs} pairs, mean (std)".format(**summary)
    notes = [f"note: {note}" for note in summary.get("notes", ())]
    return "\n".join([title, _table(["metric", "before", "after"], rows, "simple"), *notes])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first column to the left, the others to the right."""
    return _table(header, [[cell.replace("|", "\\|") for cell in row] for row in rows], "pipe")


def latex_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    notes: Sequence[str] = (),
    bold: tuple[int, int] | None = None,
) -> str:
    """Cells as a LaTeX table with rules of booktabs (packages booktabs and amssymb).

    Args:
        header, rows: plain text, escaped here.
        caption: above the table.
        notes: a line each below it.
        bold: (row, column) of one cell.
    """
    lines = [[latex_text(cell) for cell in row] for row in rows]
    if bold is not None:
        row, column = bold
        lines[row][column] = rf"\textbf{{{lines[row][column]}}}"
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            _table([latex_text(cell) for cell in header], lines, _BOOKTABS),
            r"\end{tabular}",
            *(rf"\par\footnotesize {latex_text(note)}" for note in notes),
            r"\end{table}",
            "",
        ]
    )


# the inside of a tabular; tabulate's own "latex_booktabs" would escape what is bold
_BOOKTABS = TableFormat(
    lineabove=Line(r"\toprule", "", "", ""),
    linebelowheader=Line(r"\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=Line(r"\bottomrule", "", "", ""),
    headerrow=DataRow("", " & ", r" \\"),
    datarow=DataRow("", " & ", r" \\"),
    padding=0,
    with_header_hide=None,
)
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {
        "<": "$<$",
        ">": "$>$",
        "≤": r"$\leq$",
        "✓": r"$\checkmark$",
        "β": r"$\beta$",
        "†": r"$\dagger$",
    }
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return text.replace("<=", "≤").translate(_LATEX)


def _table(header, rows, style) -> str:
    """Text is left as it is; the first column to the left, the others to the right."""
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt=style, disable_numparse=True, colalign=align)
