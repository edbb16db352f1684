"""What a benchmark says: every comparison of its tables in one list, with what it rests on."""

from collections.abc import Mapping, Sequence

from ldm_morph_jax.paper.tables import LEVEL, Table, p_text
from ldm_morph_jax.report.tables import latex_table, markdown_table

CLAIMS_HEADER = (
    *("Table", "on", "claim", "difference of DSC [95 %]", "p", "p, corrected"),
    *("patients", "pairs", "seeds", "holds"),
)


def claim_records(tables: Sequence[Table]) -> list[dict]:
    """Every claim of the tables with what it rests on, unrounded."""
    return [
        {
            "table": table.number,
            "on": block.title,
            "claim": one.text,
            "difference": one.comparison.difference,
            "low": one.comparison.low,
            "high": one.comparison.high,
            "p": one.comparison.p_value,
            "p_corrected": one.corrected_p,
            "patients": one.comparison.patients,
            "pairs": one.comparison.pairs,
            "seeds_first": one.comparison.seeds[0],
            "seeds_second": one.comparison.seeds[1],
            "holds": "yes" if one.holds else "no",
            "files": " ".join(
                f"{result.directory}/pairs.csv"
                for row in (one.first, one.second)
                for result in row.scores.done
            ),
        }
        for table in tables
        for block in table.blocks
        for one in block.claims
    ]


def claim_cells(record: Mapping) -> list[str]:
    """A record as text, under CLAIMS_HEADER."""
    c = record
    return [
        *(str(c["table"]), c["on"], c["claim"]),
        f"{c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}]",
        *(p_text(c["p"]), p_text(c["p_corrected"])),
        *(str(c["patients"]), str(c["pairs"]), f"{c['seeds_first']} and {c['seeds_second']}"),
        c["holds"],
    ]


CLAIMS_NOTES = (
    "First row minus second; patients and, where there are several, training seeds are resampled.",
    "p: Wilcoxon's signed-rank test of the patients' means; corrected for all claims of the table "
    "(Holm).",
    f"A claim holds where the interval is above zero and the corrected p below {LEVEL:g}. With one "
    "seed the interval does not know what another training would give.",
)


def claims_markdown(records: Sequence[Mapping]) -> str:
    """The claims with the files they rest on."""
    lines = [f"* {note}" for note in CLAIMS_NOTES]
    files = [f"* {c['claim']} ({c['on']}): {c['files']}" for c in records]
    table = markdown_table(CLAIMS_HEADER, [claim_cells(record) for record in records])
    parts = ["# What it says", table, "\n".join(lines), "## Files", "\n".join(files)]
    return "\n\n".join(parts) + "\n"


def claims_latex(records: Sequence[Mapping]) -> str:
    cells = [claim_cells(record) for record in records]
    return latex_table(CLAIMS_HEADER, cells, caption="What it says", notes=CLAIMS_NOTES)
