"""What Tables 1 to 4 and Figs. 4 to 7 show, and which claims they make."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ldm_morph_jax.paper import reported
from ldm_morph_jax.paper.plan import (
    OURS,
    REFINED,
    ablation_rows,
    dataset_title,
    method_title,
    sweep,
    table_rows,
)
from ldm_morph_jax.paper.results import Result, Scores, select
from ldm_morph_jax.paper.tables import (
    SHOWN,
    Block,
    Claim,
    Row,
    StructureBlock,
    Table,
    claim,
    corrected,
)
from ldm_morph_jax.report.figures import methods_sheet
from ldm_morph_jax.report.plots import box_plot, sweep_plot
from ldm_morph_jax.report.tables import structure_columns
from ldm_morph_jax.report.views import PairView, pair_view
from ldm_morph_jax.report.volumes import shown_planes

PARTS = ("LDM features", "LGCA", "latent loss")  # Table 3, in the order in which they are added


def paper_tables(config, results: Sequence[Result]) -> list[Table]:
    """Tables 1 to 4 as far as there are results, p-values corrected table by table."""
    tables = [
        Table(1, "All methods", tuple(_table1(config, results))),
        Table(2, "Generalisation to another dataset", tuple(_table2(config, results))),
        Table(3, "Ablation of LDM-Morph", tuple(_table3(config, results))),
        Table(4, "Structures, not in the paper", tuple(_table4(config, results))),
    ]
    return [corrected(table) for table in tables if table.blocks]


def _table1(config, results) -> Iterator[Block]:
    """All methods on all datasets."""
    for dataset, own in config.datasets.items():
        rows = _method_rows(config, results, dataset, dataset, reported.TABLE_1, own.data.name)
        if rows:
            facts = [*_pairs(rows), *_budgets(config, own), *_weights(config, rows), *_times(rows)]
            yield _against_ours(dataset_title(dataset), rows, times=True, facts=tuple(facts))


def _table2(config, results) -> Iterator[Block]:
    """Trained on one dataset, tested on another."""
    experiments = {**config.datasets, **config.unseen}
    for trained_on, tested_on in config.transfer:
        names = [experiments[name].data.name for name in (trained_on, tested_on)]
        paper = reported.TABLE_2 if names[0] == reported.TABLE_2_TRAINED_ON else {}
        rows = _method_rows(config, results, trained_on, tested_on, paper, names[1])
        if rows:
            title = f"trained on {dataset_title(trained_on)}, tested on {dataset_title(tested_on)}"
            facts = (*_pairs(rows), *_budgets(config, experiments[trained_on]))
            yield _against_ours(title, rows, times=False, facts=facts)


def _table3(config, results) -> Iterator[Block]:
    """LDM-Morph with and without its parts, each compared with the row above."""
    for dataset, own in config.datasets.items() if config.ablation else ():
        rows = []
        for name, has in ablation_rows(own.registration).items():
            label = " + ".join(part for part, there in zip(PARTS, has, strict=True) if there)
            cells = tuple("✓" if there else "" for there in has)
            scores = select(results, name, dataset, dataset)
            paper = reported.TABLE_3.get((has, own.data.name))
            rows.append(Row(label or "none of them", cells, scores, paper))
        kept = _with_results(rows)
        if kept:
            steps = [
                claim(f"adding {part} helps", row, above)
                for part, above, row in zip(PARTS, rows[:-1], rows[1:], strict=True)
            ]
            steps.append(claim("LDM-Morph is ahead of none of its parts", rows[-1], rows[0]))
            above = dict(zip(rows[1:], rows[:-1], strict=True))
            yield Block(
                dataset_title(dataset),
                PARTS,
                kept,
                claims=tuple(step for step in steps if step is not None),
                references=tuple(above.get(row) for row in kept),
                reference="the row above",
                facts=(*_pairs(kept), *_budgets(config, own)),
            )


def _table4(config, results) -> Iterator[Block]:
    """All methods on all datasets by structure, with distances in mm."""
    for dataset in config.datasets:
        rows = _method_rows(config, results, dataset, dataset, {}, "")
        done = [result for row in rows for result in row.scores.done]
        if done:
            named = done[0].summary["structures"]
            columns = structure_columns({one["label"]: name for name, one in named.items()})
            yield StructureBlock(
                dataset_title(dataset),
                ("Method",),
                rows,
                claims=(),
                references=(None,) * len(rows),
                reference="",
                facts=("Mean (std) over pairs; DSC and HD95 are means over a pair's structures.",),
                structures={name: columns[one["label"]] for name, one in named.items()},
            )


def _method_rows(config, results, trained_on, tested_on, paper: Mapping, data: str):
    """The rows of Table 1 or 2; `paper` is the paper's table, `data` its column."""
    rows = []
    for name in table_rows(config):
        title = method_title(name)
        scores = select(results, name, trained_on, tested_on)
        rows.append(Row(title, (title,), scores, paper.get((name, data))))
    return _with_results(rows)


def _with_results(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Without the rows of which nothing has been run."""
    return tuple(
        row for row in rows if row.scores.done or any(result.error for result in row.scores.results)
    )


def _against_ours(title: str, rows: tuple[Row, ...], **more) -> Block:
    """A block whose rows are compared with LDM-Morph, and with its refined row if there is one."""
    named = {row.scores.name: row for row in rows}
    ours, refined = named.get(OURS), named.get(f"{OURS}-{REFINED}")
    claims: list[Claim | None] = []
    for winner in (ours, refined):
        for row in rows:
            if winner is not None and row is not winner and not (winner is ours and row is refined):
                claims.append(claim(f"{winner.label} is ahead of {row.label}", winner, row))
    return Block(
        title,
        ("Method",),
        rows,
        claims=tuple(one for one in claims if one is not None),
        references=tuple(None if row is ours else ours for row in rows),
        reference=method_title(OURS),
        **more,
    )


# -- facts below the tables


def _pairs(rows: Sequence[Row]) -> list[str]:
    """How many pairs, patients and seeds the numbers are over."""
    done = [row.scores for row in rows if row.scores.done]
    if not done:
        return []
    pairs = sorted({len(scores.patients) for scores in done})
    patients = sorted({len(set(scores.patients)) for scores in done})
    sentence = (
        f"Mean (std) over {' or '.join(map(str, pairs))} test pairs of "
        f"{' or '.join(map(str, patients))} patients"
    )
    seeds = sorted({r.seed for scores in done for r in scores.done if r.seed is not None})
    if len(seeds) == 1:
        sentence += f", seed {seeds[0]}"
    elif seeds:
        several = [row.label for row in rows if len(row.scores.done) > 1]
        sentence += f"; averaged over seeds {', '.join(map(str, seeds))}: {'; '.join(several)}"
    return [
        f"{sentence}. Intervals resample patients and seeds; p is corrected for the whole table."
    ]


def _budgets(config, own) -> list[str]:
    """The budget of training, in words; `own` is the experiment."""
    c = own.registration.train
    batch = f"{c.batch_size} pair{'s' * (c.batch_size > 1)}"
    sentences = f"Budget of every learned method: {c.steps} steps of {batch}"
    if c.patience:
        sentences += f" at most, until {c.patience} validations in a row are no better"
    sentences = [f"{sentences}; best of the validations every {c.evaluate_every} steps."]
    if own.ldm_from is None and OURS in config.methods:
        a, d = own.autoencoder.train, own.diffusion.train
        sentences.append(
            "The latent diffusion model, trained once for all of LDM-Morph: autoencoder "
            f"{a.steps} steps of {a.batch_size} images, diffusion {d.steps} of {d.batch_size}."
        )
    return sentences


def _weights(config, rows: Sequence[Row]) -> list[str]:
    """How the smoothness weights were chosen, where they were."""
    if len(config.weights) == 1:
        return []
    chosen = []
    for row in rows:
        weights = [r.smoothness_weight for r in row.scores.done if r.smoothness_weight is not None]
        if weights and not row.scores.name.endswith(f"-{REFINED}"):
            chosen.append(f"{row.label} {weights[0]:g}")
    factors = ", ".join(f"{factor:g}" for factor in config.weights)
    return [
        f"Smoothness weights: the best on validation of each method's own times {factors}, first "
        f"seed: {'; '.join(chosen)}."
    ]


def _times(rows: Sequence[Row]) -> list[str]:
    """On what and when the times were taken."""
    done = [result.summary for row in rows for result in row.scores.done]
    if not done:
        return []
    machines = sorted({summary["hardware"] for summary in done})
    dates = sorted(summary["date"] for summary in done)
    return [
        "Times: one pair per call, after a first call that compiles, on "
        f"{' and on '.join(machines)}, {dates[0]} to {dates[-1]}."
    ]


# -- figures


def plots(config, results: Sequence[Result]) -> dict[str, tuple[str, Callable[[bool], Figure]]]:
    """Figs. 4 and 7: name -> (caption, function that draws for a light or `dark` page)."""
    figures = {}
    for dataset in config.datasets:
        scores = [select(results, name, dataset, dataset) for name in table_rows(config)]
        values = {  # variants on a second line, where they have room
            method_title(s.name).replace(", ", ",\n"): s.pair_means("dsc") for s in scores if s.done
        }
        if values:
            figures[f"fig4-{dataset}"] = (
                f"Fig. 4: DSC of the test pairs of {dataset_title(dataset)}",
                lambda dark, values=values: box_plot(values, ylabel="DSC", dark=dark),
            )
    panels = {"DSC": {}, "J ≤ 0, %": {}}
    for dataset, points in beta_sweeps(config, results).items():
        if len(points) > 1:
            betas = [beta for beta, _ in points]
            for panel, key in zip(panels, SHOWN, strict=False):
                means = [scores.summary(key)["mean"] for _, scores in points]
                panels[panel][dataset_title(dataset)] = betas, means
    if panels["DSC"]:
        figures["fig7"] = (
            "Fig. 7: DSC and folds of LDM-Morph over β, the weight of the pixel similarity "
            "(1 − β is that of the latent similarity)",
            lambda dark: sweep_plot(panels, xlabel="β", dark=dark),
        )
    return figures


def beta_sweeps(config, results: Sequence[Result]) -> dict[str, list[tuple[float, Scores]]]:
    """Dataset -> (beta, scores) of the betas that are done, ascending."""
    sweeps = {}
    for dataset, own in config.datasets.items():
        points = [
            (beta, select(results, name, dataset, dataset))
            for name, beta in sweep(own.registration, config.betas).items()
        ]
        sweeps[dataset] = [point for point in points if point[1].done]
    return sweeps


def sheets(config, results: Sequence[Result], out: Path) -> dict[str, tuple[str, Figure]]:
    """Figs. 5 and 6, name -> (caption, figure): a pair of every dataset, and of every transfer."""
    pictures = [(f"fig5-{name}", "Fig. 5", name, name) for name in config.datasets]
    pictures += [(f"fig6-{a}-{b}", "Fig. 6", a, b) for a, b in config.transfer]
    figures = {}
    for name, number, trained_on, tested_on in pictures:
        scores = [select(results, row, trained_on, tested_on) for row in table_rows(config)]
        shown = [score.done[0] for score in scores if score.done]
        if not shown:
            continue
        where = dataset_title(tested_on)
        if trained_on != tested_on:
            where += f", methods trained on {dataset_title(trained_on)}"
        caption = f"{number}: the pair of {where} whose overlap before registration is the median"
        figures[name] = caption, _sheet(shown, out)
    return figures


def _sheet(results: Sequence[Result], out: Path) -> Figure:
    """The example that every result kept, side by side."""
    views, captions = {}, {}
    structures = results[0].summary["structures"]
    labels = {entry["label"]: name for name, entry in structures.items()}
    for result in results:
        with np.load(out / result.directory / "example.npz", allow_pickle=False) as stored:
            example = dict(stored)
        row = result.pairs.set_index("id").loc[str(example["id"])]
        name = method_title(result.name)
        views[name] = _view(example, labels)
        dsc, folds = (SHOWN[k].number(row[k]) for k in list(SHOWN)[:2])
        captions[name] = f"DSC {dsc}, folds {folds} %"
    return methods_sheet(views, captions=captions, title=str(example["id"]))


def _view(example: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> PairView:
    """An example as it is drawn: itself, or the plane of a volume with most of its structures."""
    planes = shown_planes(**{k: example[k][None] for k in example if k != "id"})
    return pair_view(**{k: array[0] for k, array in planes.items()}, labels=labels)
