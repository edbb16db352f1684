"""What a benchmark consists of: its configuration, and the runs and evaluations it asks for.

Every run has a directory of its own:

    OUT/runs/<dataset>/<name>-seed<k>/            a learned method, or a variant of it
    OUT/runs/<dataset>/<name>-weight<w>-seed<k>/  a try with another smoothness weight
    OUT/runs/<dataset>/<name>/                    a method without weights
    OUT/runs/<dataset>/ldm-seed<k>/               the latent diffusion model that runs share

Names are METHOD or METHOD-VARIANT. A run is evaluated on the test pairs of its own dataset, and
perhaps of others (Table 2).
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ldm_morph_jax.config import grid_shape, paper_config, smoothed_velocity, with_method
from ldm_morph_jax.methods import build_method, method_class, method_names
from ldm_morph_jax.methods.velocity import HEAD_DEFAULTS
from ldm_morph_jax.registering.search import STEPS

OURS = "ldm_morph"
OUR_HEAD = "velocity"  # variant: another method's network with the head and loss of LDM-Morph
PAPER_LOSS = "mse"  # variant: LDM-Morph with the paper's similarity, where it has another
REFINED = "refined"  # variant: LDM-Morph, each pair refined on the whole image

# what makes up the head, and what it is trained with, below config.registration
HEAD_KEYS = (*HEAD_DEFAULTS, "similarity", "smoothness_weight")
# what small networks have in common with LDM-Morph's, below config.registration.train
SMALL_TRAINING_KEYS = ("learning_rate", "schedule", "warmup_steps")

VARIANT_TITLES = {OUR_HEAD: "our head", PAPER_LOSS: "MSE", REFINED: "refined"}
DATASET_TITLES = {
    "camus_2ch": "CAMUS-2CH",
    "camus_4ch": "CAMUS-4CH",
    "echonet": "EchoNet-Dynamic",
    "acdc": "ACDC",
    "acdc_3d": "ACDC, volumes",
    "sunnybrook": "Sunnybrook",
}


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
            # those of the methods that have a second row with what is not LDM-Morph's network: its
            # velocity, smoothing, similarity and smoothness weight
            "our_head": (),
            "baseline_size": "paper",  # or "small": the baselines' networks (config.with_method)
            "seeds": (0,),
            # methods that are trained with every seed (LDM-Morph with all its variants); the others
            # with the first; () = all methods with every seed
            "seeded": (),
            # every learned method is trained with its own smoothness weight times each of these,
            # with the first seed, and keeps what is best on the validation pairs
            "weights": (1.0,),
            "refine": 0,  # steps per pair for a row "LDM-Morph, refined"; 0 = no such row
            "ablation": True,  # Table 3; it and the betas take LDM-Morph among the methods
            "betas": (0.2, 0.4, 0.6, 0.8, 1.0),  # Fig. 7
            "transfer": (),  # Table 2: pairs (trained on, tested on)
        }
        | changes
    )


# what the plans with small networks have in common (docs/benchmark.md)
SMALL_PLAN = {
    "our_head": ("voxelmorph", "transmorph", "transmatch"),
    "baseline_size": "small",
    "seeds": (0, 1, 2),
    "seeded": (OURS, f"voxelmorph-{OUR_HEAD}", f"transmorph-{OUR_HEAD}"),
    "weights": (0.5, 1.0),
    "refine": STEPS,
    "betas": (0.6, 1.0),
}


def small_experiment(experiment: ConfigDict) -> ConfigDict:
    """The head and the budget of the small plans; changes and returns `experiment`.

    The head is `config.smoothed_velocity`. Registration trains for at most 800 steps, until four
    validations in a row, 100 steps apart, have brought nothing; with less patience VoxelMorph,
    whose first displacements are nearly zero, would be stopped before it begins to move. The
    learning rate stays constant: a decay would have to know the end. The latent diffusion model,
    which all of LDM-Morph shares, is trained for longer than in the preset "small".
    """
    experiment.autoencoder.train.update(steps=1500, batch_size=16, evaluate_every=500)
    experiment.diffusion.train.update(steps=2000, batch_size=32, evaluate_every=1000)
    experiment.diffusion.ema_decay = 0.998
    experiment.registration.train.update(
        steps=800, evaluate_every=100, patience=4, schedule="constant"
    )
    return smoothed_velocity(experiment)


def method_title(name: str) -> str:
    """How tables write a method or a variant of it."""
    method, _, variant = name.partition("-")
    title = method_class(method).title
    return f"{title}, {VARIANT_TITLES.get(variant, variant)}" if variant else title


def dataset_title(name: str) -> str:
    """How tables write a dataset; other names than the known ones stay as they are."""
    return DATASET_TITLES.get(name, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One method on one dataset with one seed.

    Attributes:
      dataset: name in the benchmark; trained there, unless the method has no weights.
      name: a method, a variant of one, or "ldm".
      seed: None for a method without weights.
      config: what `training.run.train` takes; for a method without weights its name.
      workdir: the run directory.
      ldm: the run whose latent diffusion model this one needs.
      tries: runs that differ in their smoothness weight; this one takes that of the best.
      is_best_try: whether it has nothing to train itself, but is the best of `tries`.
    """

    dataset: str
    name: str
    seed: int | None
    config: ConfigDict
    workdir: Path
    ldm: "Run | None" = None
    tries: tuple["Run", ...] = ()
    is_best_try: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """What is trained in the run, in order."""
        if self.seed is None:
            return ()
        return ("autoencoder", "diffusion") if self.name == "ldm" else ("registration",)

    @property
    def needs(self) -> list["Run"]:
        """What has to be trained before, first things first."""
        return [*([] if self.ldm is None else [self.ldm]), *self.tries]

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.name} on {self.dataset}{seed}"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A run's test on the dataset `target`, whose experiment is `data_of`; perhaps refined."""

    run: Run
    target: str
    data_of: ConfigDict
    refine: int = 0

    @property
    def name(self) -> str:
        """The row that it belongs to."""
        return f"{self.run.name}-{REFINED}" if self.refine else self.run.name

    @property
    def tested_on(self) -> dict:
        """What of the target's configuration the scores depend on."""
        return {"data": self.data_of.data.to_dict()}

    @property
    def needs(self) -> list[Run]:
        """What has to be trained before, first things first."""
        return [*self.run.needs, self.run]

    @property
    def directory(self) -> Path:
        parts = ["test"]
        parts += [self.target] * (self.target != self.run.dataset)
        parts += [f"refine{self.refine}"] * (self.refine > 0)
        return self.run.workdir / "evaluation" / "-".join(parts)

    def __str__(self) -> str:
        other = "" if self.target == self.run.dataset else f", tested on {self.target}"
        return f"{self.run}{other}" + (f", {self.refine} steps refined" if self.refine else "")


# -- rows and variants


def table_rows(config: ConfigDict) -> list[str]:
    """The rows of Tables 1 and 2."""
    rows = []
    other_loss = any(own.registration.similarity != "mse" for own in config.datasets.values())
    for method in config.methods:
        rows += [f"{OURS}-{PAPER_LOSS}"] * (method == OURS and other_loss)
        rows.append(method)
        rows += [f"{method}-{OUR_HEAD}"] * (method in config.our_head)
        rows += [f"{method}-{REFINED}"] * (method == OURS and config.refine > 0)
    return rows


def variant_name(own: ConfigDict, fusion: str, beta: float) -> str:
    """The run of LDM-Morph with these settings; `own` is the registration part of its experiment.

    Rows of Table 3 and points of Fig. 7 that coincide have one name, so one run.
    """
    if (fusion, beta) == (own.model.fusion, own.pixel_weight):
        return OURS
    return f"{OURS}-beta{beta:g}" if fusion == own.model.fusion else f"{OURS}-{fusion}"


def ablation_rows(own: ConfigDict) -> dict[str, tuple[bool, bool, bool]]:
    """Table 3: run -> has LDM features, LGCA, the latent loss; as `variant_name`."""
    return {
        variant_name(own, "none", 1.0): (False, False, False),
        variant_name(own, "concat", 1.0): (True, False, False),
        variant_name(own, own.model.fusion, 1.0): (True, True, False),
        OURS: (True, True, True),
    }


def sweep(own: ConfigDict, betas: Sequence[float]) -> dict[str, float]:
    """Fig. 7: run -> beta, in ascending order, the method's own among them."""
    weights = sorted({*betas, own.pixel_weight}) if betas else ()
    return {variant_name(own, own.model.fusion, beta): beta for beta in weights}


def _variants(config: ConfigDict, own: ConfigDict) -> dict[str, tuple[str, float]]:
    """All variants of LDM-Morph that are trained beyond its own: name -> (fusion, beta)."""
    settings_of_all = [(own.model.fusion, beta) for beta in config.betas]
    if config.ablation:
        settings_of_all += [("none", 1.0), ("concat", 1.0), (own.model.fusion, 1.0)]
    variants = {variant_name(own, *settings): settings for settings in settings_of_all}
    variants.pop(OURS, None)
    return variants


# -- the plan


def all_evaluations(config: ConfigDict, out: Path) -> list[Evaluation]:
    """Every evaluation of a benchmark below the directory `out`, by what is tested on.

    Raises ValueError for an unknown method, seeds that repeat, and transfers between datasets that
    the benchmark does not have or whose images differ in size.
    """
    _check(config)
    experiments = {**config.datasets, **config.unseen}
    iterative = [m for m in config.methods if not method_class(m).trained]
    rows = table_rows(config)
    runs = {name: list(_learned_runs(config, name, out)) for name in config.datasets}
    evaluations = []

    def test(run, target):
        evaluations.append(Evaluation(run, target, experiments[target]))
        if run.name == OURS and config.refine:
            evaluations.append(Evaluation(run, target, experiments[target], config.refine))

    for target in experiments:
        for method in iterative:
            workdir = out / "runs" / target / method
            test(Run(target, method, None, ConfigDict({"method": method}), workdir), target)
        for run in runs.get(target, ()):
            test(run, target)
        for source, tested_on in config.transfer:
            for run in runs[source] if tested_on == target else ():
                if run.name in rows:
                    test(run, target)
    return evaluations


def _learned_runs(config, dataset: str, out: Path) -> Iterator[Run]:
    """The runs that are evaluated: methods, their second rows, then variants of LDM-Morph."""
    base, folder = config.datasets[dataset], out / "runs" / dataset
    first, of_ldm = config.seeds[0], copy.deepcopy(base)
    of_ldm.seed = first
    ldm = Run(dataset, "ldm", first, of_ldm, folder / f"ldm-seed{first}")

    def run(name, seed, settings, **more):
        changed = copy.deepcopy(settings)
        changed.seed = seed
        workdir = folder / f"{name}-seed{seed}"
        reads_ldm = build_method(changed).reads_ldm
        if not reads_ldm:
            changed.ldm_from = None
        elif base.ldm_from is None:
            changed.ldm_from, more["ldm"] = str(ldm.workdir), ldm
        return Run(dataset, name, seed, changed, workdir, **more)

    def with_weight(name, settings, factor):
        changed = copy.deepcopy(settings)
        changed.registration.smoothness_weight *= factor
        weight = changed.registration.smoothness_weight
        return run(f"{name}-weight{weight:g}", first, changed)

    def seeds(name):
        return config.seeds if not config.seeded or name in config.seeded else config.seeds[:1]

    tries = {}
    rows = _settings(config, base)
    for name, settings in rows.items():
        if len(config.weights) > 1 and "smoothness_weight" in settings.registration:
            tries[name] = tuple(with_weight(name, settings, factor) for factor in config.weights)
        for seed in seeds(name):
            best = name in tries and seed == first
            yield run(name, seed, settings, tries=tries.get(name, ()), is_best_try=best)
    variants = _variants(config, base.registration) if OURS in rows else {}
    for name, (fusion, beta) in variants.items():
        changed = copy.deepcopy(rows[OURS])
        changed.registration.model.fusion = fusion
        changed.registration.pixel_weight = beta
        for seed in seeds(OURS):
            yield run(name, seed, changed, tries=tries.get(OURS, ()))


def _settings(config, base: ConfigDict) -> dict[str, ConfigDict]:
    """The configuration of every row of Table 1 that is trained."""
    configs = {}
    for method in config.methods:
        if not method_class(method).trained:
            continue
        if method == OURS:
            if base.registration.similarity != "mse":
                papers = paper_config().registration.smoothness_weight
                changed = copy.deepcopy(base)
                changed.registration.update({"similarity": "mse", "smoothness_weight": papers})
                configs[f"{OURS}-{PAPER_LOSS}"] = changed
            configs[OURS] = copy.deepcopy(base)
            continue
        configs[method] = with_method(base, method, config.baseline_size)
        if config.baseline_size == "small":
            ours = {key: base.registration.train[key] for key in SMALL_TRAINING_KEYS}
            configs[method].registration.train.update(ours)
        if method in config.our_head:
            second = copy.deepcopy(configs[method])
            second.registration.update({key: base.registration[key] for key in HEAD_KEYS})
            if "smoothness_of" in second.registration:
                second.registration.smoothness_of = "displacement"  # as LDM-Morph's
            configs[f"{method}-{OUR_HEAD}"] = second
    if len(config.weights) == 1:
        for settings in configs.values():
            if "smoothness_weight" in settings.registration:
                settings.registration.smoothness_weight *= config.weights[0]
    return configs


def _check(config: ConfigDict) -> None:
    if "methods" not in config:
        raise ValueError(
            "--config names an experiment, expected a benchmark (benchmark/phantom, ...)"
        )
    refuse_unknown("config.methods", config.methods, method_names())
    learned = [m for m in config.methods if method_class(m).trained]
    with_head = [
        m for m in learned if m != OURS and "integration_steps" in method_class(m).defaults
    ]
    refuse_unknown("config.our_head", config.our_head, with_head)
    rows = [row for row in table_rows(config) if not row.endswith(f"-{REFINED}")]
    refuse_unknown("config.seeded", config.seeded, [r for r in rows if r.split("-")[0] in learned])
    for key in ("seeds", "weights"):
        if len(set(config[key])) < len(config[key]) or not config[key]:
            raise ValueError(f"config.{key} is {config[key]}, expected at least one, none twice")
    if not config.datasets:
        raise ValueError("config.datasets is empty, expected name -> experiment")
    volumes = [n for n, own in {**config.datasets, **config.unseen}.items() if own.data.depth]
    if volumes:
        of_images = [m for m in config.methods if not method_class(m).takes_volumes]
        if of_images:
            able = [m for m in method_names() if method_class(m).takes_volumes]
            raise ValueError(
                f"config.methods: {', '.join(of_images)} register images; of volumes "
                f"({', '.join(volumes)}) expected some of {', '.join(able)}"
            )
        if config.refine:
            raise ValueError(
                f"config.refine is {config.refine}, expected 0: {', '.join(volumes)} has volumes, "
                "which are not refined from a network's start"
            )
    both = sorted(set(config.datasets) & set(config.unseen))
    if both:
        raise ValueError(f"config.unseen has {', '.join(both)}, expected none of config.datasets")
    for pair in config.transfer:
        source, target = pair
        refuse_unknown("config.transfer, trained on", [source], tuple(config.datasets))
        known = tuple(name for name in (*config.datasets, *config.unseen) if name != source)
        refuse_unknown("config.transfer, tested on", [target], known)
        sizes = [grid_shape({**config.datasets, **config.unseen}[name]) for name in pair]
        if sizes[0] != sizes[1]:
            found = " and ".join("x".join(map(str, size)) for size in sizes)
            raise ValueError(
                f"config.transfer {source} -> {target}: images of {found} pixels, expected one size"
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
    for what, chosen, of in (
        ("--methods", methods, lambda evaluation: evaluation.name),
        ("--datasets", datasets, lambda evaluation: evaluation.target),
        ("--seeds", seeds, lambda evaluation: evaluation.run.seed),
    ):
        if chosen is not None:
            known = dict.fromkeys(value for value in map(of, evaluations) if value is not None)
            refuse_unknown(what, chosen, tuple(known))
            kept = [evaluation for evaluation in kept if of(evaluation) in (None, *chosen)]
    return kept


def tasks(evaluations: Sequence[Evaluation]) -> list[Run | Evaluation]:
    """What to do for these evaluations, in order: a run stands for its training.

    Dataset by dataset; all training that a dataset's evaluations need comes before the first of
    them, so that its methods are timed in one go.
    """
    ordered: list[Run | Evaluation] = []
    trained = set()
    for target in dict.fromkeys(evaluation.target for evaluation in evaluations):
        here = [evaluation for evaluation in evaluations if evaluation.target == target]
        for evaluation in here:
            for needed in evaluation.needs:
                for run in (*needed.needs, needed):
                    if run.stages and run.workdir not in trained:
                        trained.add(run.workdir)
                        ordered.append(run)
        ordered += here
    return ordered
