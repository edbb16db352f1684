"""What a benchmark consists of: its configuration, and the runs and tests that follow from it.

A cell is one method on one dataset with one seed, and has a run directory of its own:

    OUT/runs/<dataset>/<method>-seed<k>/    a learned method, or a variant of LDM-Morph
    OUT/runs/<dataset>/<method>/            a method without weights
    OUT/runs/<dataset>/ldm-seed<k>/         the latent diffusion model that LDM-Morph's cells share

A cell is evaluated on the test pairs of its own dataset, and perhaps of others (Table 2).
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ldm_morph_jax.config import with_method
from ldm_morph_jax.methods import build_method, method_names

OURS = "ldm_morph"


def benchmark_config(**changes) -> ConfigDict:
    """A benchmark, by default of all methods of the paper's tables; the datasets are to choose.

    `configs/benchmark/*.py` start from it.
    """
    return ConfigDict(
        {
            "title": "Benchmark",
            # name -> experiment (the configuration of LDM-Morph): its data, seed and the budget of
            # all learned methods are taken from it, and `ldm_from` if there is one already
            "datasets": ConfigDict(),
            # name -> experiment, whose data are tested on and never trained on
            "unseen": ConfigDict(),
            "methods": (
                *("initial", "syn", "lddmm", "voxelmorph", "cyclemorph", "diffusemorph"),
                *("transmorph", "transmatch", OURS),
            ),
            "baseline_size": "paper",  # or "small": the baselines' networks (config.with_method)
            "seeds": (0,),
            "ablation": True,  # Table 3; it and the betas take LDM-Morph among the methods
            "betas": (0.2, 0.4, 0.6, 0.8, 1.0),  # Fig. 7
            "transfer": (),  # Table 2: pairs (trained on, tested on)
        }
        | changes
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One method on one dataset with one seed.

    Attributes:
      dataset: name in the benchmark; trained there, unless the method has no weights.
      name: the method, a variant of LDM-Morph, or "ldm".
      seed: None for a method without weights.
      config: what `training.run.train` takes; for a method without weights its name.
      workdir: the run directory.
      ldm: the cell whose latent diffusion model this one needs.
    """

    dataset: str
    name: str
    seed: int | None
    config: ConfigDict
    workdir: Path
    ldm: "Cell | None" = None

    @property
    def stages(self) -> tuple[str, ...]:
        """What is trained in the cell, in order."""
        if self.seed is None:
            return ()
        return ("autoencoder", "diffusion") if self.name == "ldm" else ("registration",)

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.name} on {self.dataset}{seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A cell's test on the dataset `target`, whose experiment is `data_of`."""

    cell: Cell
    target: str
    data_of: ConfigDict

    @property
    def config(self) -> dict:
        """The cell's configuration, and the data that it is tested on."""
        return self.cell.config.to_dict() | {"tested_on": {"data": self.data_of.data.to_dict()}}

    @property
    def directory(self) -> Path:
        name = "test" if self.target == self.cell.dataset else f"test-{self.target}"
        return self.cell.workdir / "evaluation" / name

    def __str__(self) -> str:
        other = "" if self.target == self.cell.dataset else f", tested on {self.target}"
        return f"{self.cell}{other}"


def variant_name(own: ConfigDict, fusion: str, beta: float) -> str:
    """The cell of LDM-Morph with these settings; `own` is the registration part of its experiment.

    Rows of Table 3 and points of Fig. 7 that coincide have one name, so one cell.
    """
    if (fusion, beta) == (own.model.fusion, own.pixel_weight):
        return OURS
    return f"{OURS}-beta{beta:g}" if fusion == own.model.fusion else f"{OURS}-{fusion}"


def ablation_rows(own: ConfigDict) -> dict[str, tuple[bool, bool, bool]]:
    """Table 3: cell -> has LDM features, LGCA, the latent loss; as `variant_name`."""
    return {
        variant_name(own, "none", 1.0): (False, False, False),
        variant_name(own, "concat", 1.0): (True, False, False),
        variant_name(own, own.model.fusion, 1.0): (True, True, False),
        OURS: (True, True, True),
    }


def sweep(own: ConfigDict, betas: Sequence[float]) -> dict[str, float]:
    """Fig. 7: cell -> beta, in ascending order, the method's own among them."""
    wanted = sorted({*betas, own.pixel_weight}) if betas else ()
    return {variant_name(own, own.model.fusion, beta): beta for beta in wanted}


def _variants(config: ConfigDict, own: ConfigDict) -> dict[str, tuple[str, float]]:
    """All cells of LDM-Morph beyond its own: name -> (fusion, beta)."""
    wanted = [(own.model.fusion, beta) for beta in config.betas]
    if config.ablation:
        wanted += [("none", 1.0), ("concat", 1.0), (own.model.fusion, 1.0)]
    found = {variant_name(own, *settings): settings for settings in wanted}
    found.pop(OURS, None)
    return found


def all_evaluations(config: ConfigDict, out: Path) -> list[Evaluation]:
    """Every evaluation of a benchmark below the directory `out`, by what is tested on.

    Raises ValueError for an unknown method, seeds that repeat, and transfers between datasets that
    the benchmark does not have or whose images differ in size.
    """
    _check(config)
    experiments = {**config.datasets, **config.unseen}
    untrained = method_names(trained=False)
    iterative = [m for m in config.methods if m in untrained]
    learned = [m for m in config.methods if m not in untrained]
    cells = {name: list(_learned_cells(config, name, learned, out)) for name in config.datasets}
    evaluations = []
    for target, data_of in experiments.items():
        for method in iterative:
            named = ConfigDict({"method": method})
            cell = Cell(target, method, None, named, out / "runs" / target / method)
            evaluations.append(Evaluation(cell, target, data_of))
        evaluations += [Evaluation(cell, target, data_of) for cell in cells.get(target, ())]
        for source, tested_on in config.transfer:
            if tested_on == target:
                kept = (cell for cell in cells[source] if cell.name in learned)
                evaluations += [Evaluation(cell, target, data_of) for cell in kept]
    return evaluations


def _learned_cells(config, dataset: str, learned: Sequence[str], out: Path) -> Iterator[Cell]:
    """The cells that are trained on a dataset: methods, then variants of LDM-Morph."""
    base, folder = config.datasets[dataset], out / "runs" / dataset
    seed = config.seeds[0]
    ldm = Cell(dataset, "ldm", seed, _changed(base, seed=seed), folder / f"ldm-seed{seed}")

    def cell(name, seed, changed):
        workdir = folder / f"{name}-seed{seed}"
        if not build_method(changed).reads_ldm:
            changed.ldm_from = None
        elif base.ldm_from is None:
            changed.ldm_from = str(ldm.workdir)
            return Cell(dataset, name, seed, changed, workdir, ldm)
        return Cell(dataset, name, seed, changed, workdir)

    for name in learned:
        for seed in config.seeds:
            changed = _changed(base, seed=seed)
            if name != OURS:
                changed = with_method(changed, name, config.baseline_size)
            yield cell(name, seed, changed)
    variants = _variants(config, base.registration) if OURS in learned else {}
    for name, (fusion, beta) in variants.items():
        for seed in config.seeds:
            changed = _changed(base, seed=seed)
            changed.registration.model.fusion = fusion
            changed.registration.pixel_weight = beta
            yield cell(name, seed, changed)


def _changed(base: ConfigDict, **changes) -> ConfigDict:
    config = copy.deepcopy(base)
    config.update(changes)
    return config


def _check(config: ConfigDict) -> None:
    known = method_names()
    refuse_unknown("config.methods", config.methods, known)
    if len(set(config.seeds)) < len(config.seeds) or not config.seeds:
        raise ValueError(f"config.seeds is {config.seeds}, expected at least one, none twice")
    if not config.datasets:
        raise ValueError("config.datasets is empty, expected name -> experiment")
    both = sorted(set(config.datasets) & set(config.unseen))
    if both:
        raise ValueError(f"config.unseen has {', '.join(both)}, expected none of config.datasets")
    for pair in config.transfer:
        source, target = pair
        refuse_unknown("config.transfer, trained on", [source], tuple(config.datasets))
        known = tuple(name for name in (*config.datasets, *config.unseen) if name != source)
        refuse_unknown("config.transfer, tested on", [target], known)
        sizes = [{**config.datasets, **config.unseen}[name].data.image_size for name in pair]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"config.transfer {source} -> {target}: images of {sizes[0]} and {sizes[1]} "
                "pixels, expected one size"
            )


def refuse_unknown(what: str, found: Sequence, known: Sequence) -> None:
    """Raise ValueError when something is not known, listing what is."""
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(
            f"{what}: {', '.join(map(str, unknown))} unknown, expected some of "
            f"{', '.join(map(str, known))}"
        )


def restrict(
    evaluations: Sequence[Evaluation],
    *,
    methods: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Evaluation]:
    """Those of some methods (or variants), datasets (tested on) and seeds; None for all.

    Methods without weights belong to every seed. Raises ValueError for an unknown name.
    """
    kept = list(evaluations)
    for what, wanted, of in (
        ("--methods", methods, lambda one: one.cell.name),
        ("--datasets", datasets, lambda one: one.target),
        ("--seeds", seeds, lambda one: one.cell.seed),
    ):
        if wanted is not None:
            known = dict.fromkeys(of(one) for one in evaluations if of(one) is not None)
            refuse_unknown(what, wanted, tuple(known))
            kept = [one for one in kept if of(one) is None or of(one) in wanted]
    return kept


def tasks(evaluations: Sequence[Evaluation]) -> list[Cell | Evaluation]:
    """What to do for these evaluations, in order: a cell stands for its training.

    Dataset by dataset; all training that a dataset's evaluations need comes before the first of
    them, so that its methods are timed in one go.
    """
    ordered: list[Cell | Evaluation] = []
    trained = set()
    for target in dict.fromkeys(one.target for one in evaluations):
        here = [one for one in evaluations if one.target == target]
        for one in here:
            for cell in (one.cell.ldm, one.cell):
                if cell is not None and cell.stages and cell.workdir not in trained:
                    trained.add(cell.workdir)
                    ordered.append(cell)
        ordered += here
    return ordered
