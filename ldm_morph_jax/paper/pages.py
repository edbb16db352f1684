"""What a benchmark writes: tables, figures, index.html and benchmark.json, from what is on disk.

index.html                             all of it on one page, with links to each run's report
benchmark.json                         every number with its run directory
tables/{table1,table2,table3,table4,claims}.{md,csv,tex}
figures/fig4-<dataset>.png             DSC of every method
figures/fig5-<dataset>.png             one pair under every method
figures/fig6-<from>-<to>.png           the same for methods trained on another dataset
figures/fig7.png                       DSC and folds over beta
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm_morph_jax.evaluation import write_file
from ldm_morph_jax.files.writing import json_text
from ldm_morph_jax.paper.claims import (
    CLAIMS_HEADER,
    CLAIMS_NOTES,
    claim_cells,
    claim_records,
    claims_latex,
    claims_markdown,
)
from ldm_morph_jax.paper.contents import beta_sweeps, paper_tables, plots, sheets
from ldm_morph_jax.paper.plan import method_title
from ldm_morph_jax.paper.results import Result, Scores
from ldm_morph_jax.paper.tables import SHOWN, Block, Table, csv_text
from ldm_morph_jax.report import page
from ldm_morph_jax.report.style import png_bytes

RECORDED = (*SHOWN, "seconds_first_call", "n_pairs", "hardware", "versions", "date")


def write_benchmark(config, results: Sequence[Result], out: Path) -> None:
    """Write everything that the finished results allow; what failed or is missing is said.

    Args:
      config: the benchmark's configuration.
      results: every evaluation of the plan, done or not.
      out: the benchmark's directory, to which the results' directories are relative.
    """
    out = Path(out)
    tables = paper_tables(config, results)
    claims = claim_records(tables)
    texts = {f"{table.name}.md": table.markdown() for table in tables}
    texts |= {f"{table.name}.tex": table.latex() for table in tables}
    texts |= {f"{table.name}.csv": csv_text(table.records()) for table in tables}
    if claims:
        texts |= {"claims.md": claims_markdown(claims), "claims.tex": claims_latex(claims)}
        texts["claims.csv"] = csv_text(claims)
    for name, text in texts.items():
        write_file(out / "tables" / name, text.encode())
    shown = []
    for name, (caption, draw) in plots(config, results).items():
        write_file(out / "figures" / f"{name}.png", png_bytes(draw(False)))
        shown.append({"caption": caption, "themes": page.both_themes(draw), "image": None})
    for name, (caption, figure) in sheets(config, results, out).items():
        png = png_bytes(figure)
        write_file(out / "figures" / f"{name}.png", png)
        shown.append({"caption": caption, "themes": None, "image": page.file_uri(png)})
    text = page.render(
        "benchmark.html",
        title=config.title,
        counts=_counts(results),
        date=time.strftime("%Y-%m-%d %H:%M"),
        tables=[_table(table) for table in tables],
        claims={
            "header": CLAIMS_HEADER,
            "rows": [{"cells": claim_cells(c), "holds": c["holds"] == "yes"} for c in claims],
            "notes": CLAIMS_NOTES,
        },
        pictures=shown,
        results=results,
        method_title=method_title,
        config=json.dumps(config.to_dict(), indent=2, default=str),
    )
    write_file(out / "index.html", text.encode())
    record = _record(config, results, tables, claims)
    write_file(out / "benchmark.json", json_text(record).encode())


def _table(table: Table) -> dict:
    """A table as the template shows it."""
    blocks = [_block(block) for block in table.blocks]
    return {"number": table.number, "title": table.title, "blocks": blocks}


def _block(block: Block) -> dict:
    papers = [i for i, cell in enumerate(block.header) if cell.startswith("paper")]
    return {
        "title": block.title,
        "header": [cell.replace("<=", "≤") for cell in block.header],
        "paper_from": papers[0] if papers else len(block.header),
        "notes": block.notes,
        "rows": [
            {
                "cells": block.cells(row),
                "best": row is block.best,
                "failed": not row.scores.done,
                "links": _links(row.scores),
            }
            for row in block.rows
        ],
    }


def _links(scores: Scores) -> list[dict]:
    """To the reports of the runs behind a row."""
    return [
        {
            "text": "report" if result.seed is None else f"seed {result.seed}",
            "href": f"{result.directory}/report.html",
        }
        for result in scores.done
    ]


def _counts(results: Sequence[Result]) -> dict[str, int]:
    failed = sum(result.error is not None for result in results)
    done = sum(result.summary is not None for result in results)
    return {"done": done, "failed": failed, "not run": len(results) - done - failed}


def _record(config, results, tables: Sequence[Table], claims: Sequence[Mapping]) -> dict:
    """The content of benchmark.json."""
    stages = ("autoencoder", "diffusion", "registration")
    return {
        "title": config.title,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "counts": _counts(results),
        "seeds": list(config.seeds),
        "budgets": {
            dataset: {
                stage: {key: own[stage].train[key] for key in ("steps", "batch_size", "patience")}
                for stage in stages
            }
            for dataset, own in config.datasets.items()
        },
        "hardware": sorted({r.summary["hardware"] for r in results if r.summary}),
        "evaluations": [_evaluation_record(result) for result in results],
        "tables": {str(table.number): table.records() for table in tables},
        "claims": claims,
        "fig7": {
            dataset: [
                {"beta": beta, "runs": [result.run for result in scores.done]}
                | {key: scores.summary(key) for key in list(SHOWN)[:2]}
                for beta, scores in points
            ]
            for dataset, points in beta_sweeps(config, results).items()
        },
        "config": config.to_dict(),
    }


def _evaluation_record(result: Result) -> dict:
    record = {
        "method": result.name,
        "trained_on": result.trained_on if result.seed is not None else None,
        "tested_on": result.tested_on,
        "seed": result.seed,
        "run": result.run,
        "results": result.directory,
        "smoothness_weight": result.smoothness_weight,
        "converged": result.converged,
        "error": result.error,
    }
    return record | {key: result.summary[key] for key in RECORDED if result.summary}
