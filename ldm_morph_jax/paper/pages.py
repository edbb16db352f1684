"""What a benchmark writes: tables, figures, index.html and benchmark.json, from what is on disk.

index.html                      all of it on one page, with links to each run's report
benchmark.json                  every number with its run directory
tables/table{1,2,3}.{md,csv,tex}
figures/fig4-<dataset>.png      DSC of every method
figures/fig5-<dataset>.png      one pair under every method
figures/fig6-<from>-<to>.png    the same for methods trained on another dataset
figures/fig7.png                DSC and folds over beta
"""

import importlib.resources
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from ldm_morph_jax.evaluation import without_nan, write_file
from ldm_morph_jax.paper import reported
from ldm_morph_jax.paper.plan import ablation_rows, sweep
from ldm_morph_jax.paper.tables import (
    SHOWN,
    Entry,
    Score,
    Table,
    block,
    score,
    title_of,
)
from ldm_morph_jax.report import figures, html

RECORDED = ("seconds_first_call", "n_pairs", "hardware", "versions", "date")
SCORES = ("dsc", "nonpositive_jacobian_percent", "seconds_per_pair")


def write_benchmark(config, entries: Sequence[Entry], out: Path) -> None:
    """Write everything that the finished entries allow; what failed or is missing is said.

    Args:
      config: the benchmark's configuration.
      entries: every run of the plan on every dataset that it is tested on, done or not.
      out: the benchmark's directory, to which the entries' directories are relative.
    """
    out = Path(out)
    tables = [
        table
        for table in (_table1(config, entries), _table2(config, entries), _table3(config, entries))
        if table.blocks
    ]
    for table in tables:
        for suffix, text in (
            ("md", table.markdown()),
            ("csv", table.csv()),
            ("tex", table.latex()),
        ):
            write_file(out / "tables" / f"table{table.number}.{suffix}", text.encode())
    plots, sheets = _plots(config, entries), dict(_sheets(config, entries, out))
    pictures = {name: plot() for name, (_, plot) in plots.items()}
    pictures |= {name: figure for name, (_, figure) in sheets.items()}
    pictures = {name: figures.png_bytes(figure) for name, figure in pictures.items()}
    for name, content in pictures.items():
        write_file(out / "figures" / f"{name}.png", content)
    shown = [
        (caption, html._both_themes(lambda dark, plot=plot: plot(dark=dark)))
        for caption, plot in plots.values()
    ]
    shown += [(caption, html._png_uri(pictures[name])) for name, (caption, _) in sheets.items()]
    write_file(out / "index.html", _page(config, entries, tables, shown).encode())
    text = json.dumps(without_nan(_record(config, entries, tables)), indent=2, allow_nan=False)
    write_file(out / "benchmark.json", (text + "\n").encode())


# -- tables


def _table1(config, entries) -> Table:
    """All methods on all datasets."""
    blocks = []
    for dataset, own in config.datasets.items():
        rows = []
        for method in config.methods:
            scores = score(entries, method, dataset, dataset)
            paper = reported.TABLE_1.get((method, own.data.name))
            rows.append((title_of(method), [title_of(method)], scores, paper))
        rows = _with_results(rows)
        if rows:
            facts = [*_budgets(own), *_timing([scores for _, _, scores, _ in rows])]
            facts = [*_pairs(rows), *facts]
            blocks.append(block(title_of(dataset), ["Method"], rows, times=True, facts=facts))
    return Table(1, "All methods", tuple(blocks))


def _table2(config, entries) -> Table:
    """Trained on one dataset, tested on another."""
    blocks = []
    experiments = {**config.datasets, **config.unseen}
    for trained_on, tested_on in config.transfer:
        names = [experiments[name].data.name for name in (trained_on, tested_on)]
        rows = []
        for method in config.methods:
            scores = score(entries, method, trained_on, tested_on)
            paper = reported.TABLE_2.get((method, names[1]))
            paper = paper if names[0] == reported.TABLE_2_TRAINED_ON else None
            rows.append((title_of(method), [title_of(method)], scores, paper))
        rows = _with_results(rows)
        if rows:
            title = f"trained on {title_of(trained_on)}, tested on {title_of(tested_on)}"
            facts = [*_pairs(rows), *_budgets(experiments[trained_on])]
            blocks.append(block(title, ["Method"], rows, times=False, facts=facts))
    return Table(2, "Generalisation to another dataset", tuple(blocks))


def _table3(config, entries) -> Table:
    """LDM-Morph with and without its parts."""
    blocks = []
    parts = ("LDM features", "LGCA", "latent loss")
    for dataset, own in config.datasets.items() if config.ablation else ():
        rows = []
        for name, has in ablation_rows(own.registration).items():
            present = [part for part, there in zip(parts, has, strict=True) if there]
            label = " + ".join(present) or "none of them"
            cells = ["✓" if there else "" for there in has]
            paper = reported.TABLE_3.get((has, own.data.name))
            rows.append((label, cells, score(entries, name, dataset, dataset), paper))
        rows = _with_results(rows)
        if rows:
            facts = [*_pairs(rows), *_budgets(own)]
            blocks.append(block(title_of(dataset), parts, rows, times=False, facts=facts))
    return Table(3, "Ablation of LDM-Morph", tuple(blocks))


def _with_results(rows):
    """Without the rows of which nothing has been run."""
    return [row for row in rows if row[2].done or row[2].errors]


def _pairs(rows) -> list[str]:
    """How many pairs and seeds the numbers are over."""
    done = [entry for _, _, scores, _ in rows for entry in scores.done]
    pairs = sorted({len(entry.rows) for entry in done})
    seeds = sorted({entry.seed for entry in done if entry.seed is not None})
    told = []
    if pairs:
        told.append(f"Mean (std) over {' or '.join(map(str, pairs))} test pairs")
        if seeds:
            word = "seed" if len(seeds) == 1 else "scores averaged over seeds"
            told[0] += f", {word} {', '.join(map(str, seeds))}"
        told[0] += "."
    return told


def _budgets(own) -> list[str]:
    """The budget of training, in words; `own` is the experiment."""
    c = own.registration.train
    told = [
        f"Budget of every learned method: {c.steps} steps of {c.batch_size} pair"
        f"{'s' * (c.batch_size > 1)}, best of the validations every {c.evaluate_every} steps."
    ]
    if own.ldm_from is None:
        a, d = own.autoencoder.train, own.diffusion.train
        told.append(
            "The latent diffusion model, trained once for all of LDM-Morph: autoencoder "
            f"{a.steps} steps of {a.batch_size} images, diffusion {d.steps} of {d.batch_size}."
        )
    return told


def _timing(scores: Sequence[Score]) -> list[str]:
    """On what and when the times were taken."""
    done = [entry.summary for one in scores for entry in one.done]
    if not done:
        return []
    machines = sorted({summary["hardware"] for summary in done})
    dates = sorted(summary["date"] for summary in done)
    return [
        "Times: one pair per call, after a first call that compiles, on "
        f"{' and on '.join(machines)}, {dates[0]} to {dates[-1]}."
    ]


# -- figures


def _plots(config, entries) -> dict:
    """Name -> (caption, function of `dark` that draws)."""
    plots = {}
    for dataset in config.datasets:
        scores = [score(entries, method, dataset, dataset) for method in config.methods]
        values = {title_of(s.method): s.values("dsc") for s in scores if s.done}
        if values:
            plots[f"fig4-{dataset}"] = (
                f"Fig. 4: DSC of the test pairs of {title_of(dataset)}",
                lambda dark=False, values=values: figures.box_plot(values, ylabel="DSC", dark=dark),
            )
    panels = {"DSC": {}, "J ≤ 0, %": {}}
    for dataset, points in _sweeps(config, entries).items():
        if len(points) > 1:
            betas = [beta for beta, _ in points]
            for panel, key in zip(panels, SCORES, strict=False):
                means = [scores.summary(key)["mean"] for _, scores in points]
                panels[panel][title_of(dataset)] = betas, means
    if panels["DSC"]:
        plots["fig7"] = (
            "Fig. 7: DSC and folds of LDM-Morph over β, the weight of the pixel similarity "
            "(1 − β is that of the latent similarity)",
            lambda dark=False: figures.sweep_plot(panels, xlabel="β", dark=dark),
        )
    return plots


def _sweeps(config, entries) -> dict[str, list[tuple[float, Score]]]:
    """Dataset -> (beta, score) of the betas that are done, ascending."""
    found = {}
    for dataset, own in config.datasets.items():
        points = [
            (beta, score(entries, name, dataset, dataset))
            for name, beta in sweep(own.registration, config.betas).items()
        ]
        found[dataset] = sorted(point for point in points if point[1].done)
    return found


def _sheets(config, entries, out: Path) -> Iterator[tuple[str, tuple[str, Figure]]]:
    """(name, (caption, figure)): a pair of every dataset, and of every transfer."""
    pictures = [(f"fig5-{name}", "Fig. 5", name, name) for name in config.datasets]
    pictures += [(f"fig6-{a}-{b}", "Fig. 6", a, b) for a, b in config.transfer]
    for name, number, trained_on, tested_on in pictures:
        scores = [score(entries, method, trained_on, tested_on) for method in config.methods]
        shown = [one.done[0] for one in scores if one.done]
        if not shown:
            continue
        where = title_of(tested_on)
        if trained_on != tested_on:
            where += f", methods trained on {title_of(trained_on)}"
        caption = f"{number}: the pair of {where} whose overlap before registration is the median"
        yield name, (caption, _sheet(shown, out))


def _sheet(entries: Sequence[Entry], out: Path) -> Figure:
    """The example that every entry kept, side by side."""
    displacements, captions = {}, {}
    for entry in entries:
        with np.load(out / entry.results / "example.npz", allow_pickle=False) as stored:
            example = dict(stored)
        row = next(row for row in entry.rows if row["id"] == str(example["id"]))
        name = title_of(entry.method)
        displacements[name] = example["displacement"]
        captions[name] = "DSC {}, folds {} %".format(*(SHOWN[k].number(row[k]) for k in SCORES[:2]))
    structures = entries[0].summary["structures"]
    return figures.methods_sheet(
        displacements=displacements,
        captions=captions,
        labels={entry["label"]: name for name, entry in structures.items()},
        title=str(example["id"]),
        **{k: example[k] for k in ("moving", "fixed", "moving_mask", "fixed_mask", "spacing")},
    )


# -- page and record


def _page(config, entries, tables, pictures) -> str:
    source = importlib.resources.files("ldm_morph_jax.report") / "templates" / "benchmark.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        title=config.title,
        counts=_counts(entries),
        date=time.strftime("%Y-%m-%d %H:%M"),
        tables=[
            {
                "number": table.number,
                "title": table.title,
                "blocks": [
                    {
                        "title": part.title,
                        "header": [cell.replace("<=", "≤") for cell in part.header],
                        "paper_from": next(
                            (i for i, cell in enumerate(part.header) if cell.startswith("paper")),
                            len(part.header),
                        ),
                        "notes": part.notes,
                        "rows": [
                            {
                                "cells": part.cells(row),
                                "best": row is part.best,
                                "failed": not row.score.done,
                                "links": _links(row.score),
                            }
                            for row in part.rows
                        ],
                    }
                    for part in table.blocks
                ],
            }
            for table in tables
        ],
        pictures=[
            {"caption": caption, "themes": image if isinstance(image, Mapping) else None}
            | {"image": image}
            for caption, image in pictures
        ],
        entries=entries,
        title_of=title_of,
        config=json.dumps(config.to_dict(), indent=2, default=str),
    )


def _links(scores: Score) -> list[dict]:
    """To the reports of the runs behind a row."""
    return [
        {
            "text": "report" if entry.seed is None else f"seed {entry.seed}",
            "href": f"{entry.results}/report.html",
        }
        for entry in scores.done
    ]


def _counts(entries) -> dict[str, int]:
    failed = sum(entry.error is not None for entry in entries)
    done = sum(entry.summary is not None for entry in entries)
    return {"done": done, "failed": failed, "not run": len(entries) - done - failed}


def _record(config, entries, tables) -> dict:
    """The content of benchmark.json."""
    return {
        "title": config.title,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "counts": _counts(entries),
        "seeds": list(config.seeds),
        "budgets": {
            dataset: {
                stage: {key: own[stage].train[key] for key in ("steps", "batch_size")}
                for stage in ("autoencoder", "diffusion", "registration")
            }
            for dataset, own in config.datasets.items()
        },
        "hardware": sorted({e.summary["hardware"] for e in entries if e.summary}),
        "evaluations": [
            {
                "method": entry.method,
                "trained_on": entry.trained_on if entry.seed is not None else None,
                "tested_on": entry.tested_on,
                "seed": entry.seed,
                "run": entry.run,
                "results": entry.results,
                "error": entry.error,
            }
            | {
                key: entry.summary[key]
                for key in (
                    *SCORES,
                    "seconds_first_call",
                    "n_pairs",
                    "hardware",
                    "versions",
                    "date",
                )
                if entry.summary
            }
            for entry in entries
        ],
        "tables": {str(table.number): table.records() for table in tables},
        "fig7": {
            dataset: [
                {"beta": beta, "runs": [entry.run for entry in scores.done]}
                | {key: scores.summary(key) for key in SCORES[:2]}
                for beta, scores in points
            ]
            for dataset, points in _sweeps(config, entries).items()
        },
        "config": json.loads(json.dumps(config.to_dict(), default=str)),
    }
