"""The numbers of an evaluation as a table, for the terminal and for Markdown."""

import dataclasses
import re
from collections.abc import Mapping, Sequence


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
STRUCTURE_METRICS = tuple(metric for metric in METRICS if metric.key in ("dsc", "hd95_px"))


def structure_columns(labels: Mapping[int, str]) -> dict[int, str]:
    """label -> the structure's name as it ends a column name, e.g. "LV cavity" -> "lv_cavity"."""
    columns = {int(k): re.sub(r"\W+", "_", name).strip("_").lower() for k, name in labels.items()}
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"labels: found {dict(labels)}, expected names that differ")
    return columns


def format_summary_table(summaries: Mapping | Sequence[Mapping], *, markdown: bool = False) -> str:
    """Scores as mean (std) over pairs.

    One summary: a row per metric, before and after, and a row per structure where there are
    several. Several: a row per method and a column per metric, after a row "initial" per dataset.

    Args:
        summaries: one summary of `evaluate_split` (or its summary.json), or several.
        markdown: a Markdown table instead of aligned plain text.
    """
    if isinstance(summaries, Mapping):
        title, header, rows = _one(summaries)
    elif summaries:
        title, header, rows = _several(summaries)
    else:
        raise ValueError("summaries: found none, expected at least one")
    table = markdown_table(header, rows) if markdown else _plain(header, rows)
    return f"{title}\n\n{table}" if markdown else f"{title}\n{table}"


def _one(summary):
    title = "{method} on {dataset}, {split}: {n_pairs} pairs, mean (std)".format(**summary)
    rows = []
    for metric in METRICS:
        if metric.key not in summary:
            continue
        scores = summary[metric.key]
        name = metric.title + (f" [n={scores['n']}]" if scores["n_excluded"] else "")
        before = metric.mean_std(summary[metric.initial]) if metric.initial else ""
        rows.append([name, before, metric.mean_std(scores)])
        structures = summary.get("structures", {})
        if metric in STRUCTURE_METRICS and len(structures) > 1:
            for structure, entry in structures.items():
                before = metric.mean_std(entry[metric.initial])
                rows.append([f"- {structure}", before, metric.mean_std(entry[metric.key])])
    return title, ["metric", "before", "after"], rows


def _several(summaries):
    metrics = [metric for metric in METRICS if any(metric.key in s for s in summaries)]
    keys = list(dict.fromkeys((s["dataset"], s["split"]) for s in summaries))
    rows = []
    for dataset, split in keys:
        group = [s for s in summaries if (s["dataset"], s["split"]) == (dataset, split)]
        place = [f"{dataset}, {split}"] if len(keys) > 1 else []
        before = [metric.mean_std(group[0].get(metric.initial)) for metric in metrics]
        rows.append([*place, "initial", *before])
        for s in group:
            rows.append([*place, s["method"], *(m.mean_std(s.get(m.key)) for m in metrics)])
    header = [*(["dataset"] if len(keys) > 1 else []), "method", *(m.title for m in metrics)]
    first = summaries[0]
    title = "mean (std) over pairs"
    if len(keys) == 1:
        title = "{dataset}, {split}: {n_pairs} pairs, ".format(**first) + title
    return title, header, rows


def _widths(header, rows):
    return [max(map(len, column)) for column in zip(header, *rows, strict=True)]


def _line(cells, widths, separator):
    """First column to the left, numbers to the right."""
    first, *rest = zip(cells, widths, strict=True)
    return separator.join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in rest)])


def _plain(header, rows):
    widths = _widths(header, rows)
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([_line(header, widths, "  "), rule, *(_line(r, widths, "  ") for r in rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first column to the left, the others to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = _widths(header, rows)
    rule = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [header, rule, *rows]
    return "\n".join("| " + _line(line, widths, " | ") + " |" for line in lines)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "✓": r"$\checkmark$", "β": r"$\beta$", "→": r"$\rightarrow$"}
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return text.replace("<=", "≤").translate(_LATEX).replace("≤", r"$\leq$")


def latex_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    notes: Sequence[str] = (),
    bold: tuple[int, int] | None = None,
) -> str:
    """Cells as a LaTeX table with rules of booktabs.

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
    body = [" & ".join(line) + r" \\" for line in ([latex_text(cell) for cell in header], *lines)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {latex_text(note)}" for note in notes),
            r"\end{table}",
            "",
        ]
    )
