"""Score a method on a split.

    evaluate --workdir runs/X                        a run on its own dataset
    evaluate --workdir runs/X --model lddmm          another model on the dataset of a run
    evaluate --model sunnybrook-symmetric --source DIR    shipped weights on the data they know
    evaluate --model runs/X --dataset acdc --source DIR     on another dataset
    evaluate --model syn --config acdc --config.data.source=DIR
    evaluate --displacements DIR --beats data/phantom_cine/.../beats   any program, on the phantom

An anatomy network (configs/anatomy.py) is scored by Dice of its structures; evaluated on the
validation split, a run is calibrated first.

A model is a run directory, a weights file, the name of shipped weights, or a method that needs no
training ("initial": no registration; "lddmm"; "syn": ANTs SyN, needs the extra `ants`). With
`--refine N` each pair is refined by N steps on the whole image, as `register` does it by default
with 82.

Of displacements, OUT/beats.csv has a row per beat: end-point error, strain found and true, DSC.
Otherwise writes {pairs.csv, summary.json, report.html, figures/} to --out. By default that is
runs/X/evaluation/<split>[-<dataset>][-<model>][-refine<N>], what is the run's own left out, and
evaluation/<model>-<dataset>-<split>[-refine<N>] where no run is given.
"""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

from cyclopts import Parameter

from ldm_morph_jax import commands
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.OptionalConfig):
    """What `evaluate` takes."""

    workdir: str | None = None
    """directory of a trained run"""

    model: Annotated[str | None, Parameter(name=("--model", "--method"))] = None
    """what registers; by default the run of --workdir"""

    dataset: str | None = None
    """dataset to take, with the model's grid and scaling; --config names an experiment instead"""

    source: str | None = None
    """where the dataset's files are now"""

    data: str | None = None
    """where prepared datasets are kept; by default where they were for training"""

    allow_partial: bool = False
    """take those of the paper's patients that are there"""

    split: Literal["train", "validation", "test"] = "test"
    """which pairs"""

    refine: Annotated[int, WHOLE] = 0
    """steps of refinement for every pair, as in `register`; 0: the network alone"""

    anatomy: str | None = None
    """network that guides the refinement, as in `register --anatomy`"""

    displacements: Path | None = None
    """instead of a model: a folder of displacements that some program found on --beats"""

    beats: Path | None = None
    """beats that `prepare --dataset phantom_cine` wrote, with the truth"""

    out: Path | None = None
    """directory to write"""

    def __post_init__(self):
        if (self.displacements is None) != (self.beats is None):
            raise ValueError("--displacements and --beats go together, expected both or neither")
        if self.refine < 0:
            raise ValueError(f"--refine is {self.refine}, expected 0 or more steps")


def data_config(options: Options, model, workdir: Path | None):
    """The configuration whose `data` are scored: of --config, of the run, or of the model."""
    from ldm_morph_jax.config import paper_config
    from ldm_morph_jax.runs.directory import load_config

    of_run = load_config(workdir) if workdir and not options.config else None
    config = options.read_config() or of_run or model.config or paper_config()
    with config.unlocked():
        if options.dataset and options.dataset != config.data.name:
            config.data.name, config.data.options = options.dataset, {}
        if options.source:
            config.data.source = options.source
        if options.data:
            config.data.directory = options.data
        if options.allow_partial:
            config.data.options.allow_partial = True
    for key in ("image_size", "depth") if model.image_size is not None else ():
        found, expected = config.data[key], model.config.data[key]
        if found != expected:
            raise ValueError(
                f"data.{key} is {found}, expected {expected}, which the model was trained for"
            )
    return config


def output_directory(options: Options, named: str, workdir: Path | None, config) -> Path:
    """--out, or the place that the module's docstring states."""
    from ldm_morph_jax.runs.directory import load_config

    if options.out:
        return options.out
    parts = [options.split]
    if workdir is None:
        folder, parts = Path("evaluation"), [Path(named).stem, config.data.name, *parts]
    else:
        folder = workdir / "evaluation"
        if config.data.name != load_config(workdir).data.name:
            parts.append(config.data.name)
        if Path(named) != workdir:
            parts.append(Path(named).stem)
    parts += [f"refine{options.refine}"] * (options.refine > 0)
    parts += [Path(options.anatomy).stem] if options.anatomy else []
    return folder / "-".join(parts)


def notes_on(options: Options, workdir: Path | None, dataset) -> list[str]:
    """Sentences of doubt about scores on a run's own dataset; none on another one."""
    from ldm_morph_jax.runs.dataset import notes_on_changes

    if workdir is None or options.config or options.dataset:
        return []
    return notes_on_changes(workdir, dataset, options.split)


def run(options: Options) -> None:
    """Do what the command line says."""
    from ldm_morph_jax.evaluation import evaluate_split
    from ldm_morph_jax.report.tables import format_summary_table
    from ldm_morph_jax.runs.anatomy import anatomy_network, is_anatomy
    from ldm_morph_jax.runs.dataset import dataset_of
    from ldm_morph_jax.runs.metrics import read_curves
    from ldm_morph_jax.runs.trained import load_method, model_names

    commands.use_compilation_cache()
    if options.displacements is not None:
        return run_displacements(options)
    named = options.model or options.workdir
    if named is None:
        raise ValueError("expected --workdir RUN, or --model with a run, a file or a name")
    is_run = Path(named).is_dir() and named not in model_names()
    workdir = options.workdir or (named if is_run else None)
    workdir = None if workdir is None else Path(workdir)
    if is_anatomy(named):
        return run_anatomy(options, named, workdir)
    model = load_method(named)
    config = data_config(options, model, workdir)
    out = output_directory(options, named, workdir, config)
    name, register = model.name, model.displacement
    if options.refine:
        from ldm_morph_jax.registering.pairs import refined_displacement

        if model.iterative:
            raise ValueError(f"--refine starts from a trained network, --model is {named}")
        name = f"{name} + {options.refine} steps"
        register = functools.partial(refined_displacement, model, steps=options.refine)
    if config.data.depth and not model.method.takes_volumes:
        raise ValueError(f"{config.data.name} has volumes, {name} registers images only")
    if config.data.depth and options.refine:
        raise ValueError(f"--refine searches in images, {config.data.name} has volumes")
    dataset = dataset_of(config)
    if options.anatomy:
        if not options.refine:
            raise ValueError("--anatomy guides the refinement, expected --refine N, too")
        anatomy = anatomy_network(options.anatomy)
        spacing = tuple(map(float, dataset.split(options.split)[0]["spacing"]))
        name = f"{name} + {anatomy.name}"
        register = functools.partial(register, anatomy=anatomy, spacing=spacing)
    summary = evaluate_split(
        register,
        dataset,
        options.split,
        out,
        method=name,
        config=config.to_dict(),
        curves=read_curves(workdir) if workdir == Path(named) else None,
        notes=notes_on(options, workdir, dataset),
    )
    print(format_summary_table(summary))
    print(f"report: {out / 'report.html'}")


def run_displacements(options: Options) -> None:
    """Score displacements on beats of the phantom; writes OUT/beats.csv, prints a table."""
    from ldm_morph_jax.beat_scores import format_scores, score_beats
    from ldm_morph_jax.files.writing import atomic

    rows = score_beats(options.beats, options.displacements)
    out = options.out or Path("evaluation") / f"phantom_cine-{options.displacements.name}"
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "beats.csv") as part:
        rows.to_csv(part, index=False, float_format="%.5g", lineterminator="\n")
    print(format_scores({options.displacements.name: rows}))
    print(f"scores: {out / 'beats.csv'}")


def run_anatomy(options: Options, named: str, workdir: Path | None) -> None:
    """Score an anatomy network; on validation patients it is calibrated first."""
    from ldm_morph_jax.anatomy_scores import calibrate, format_summary, score_anatomy
    from ldm_morph_jax.config import config_from_json
    from ldm_morph_jax.runs.anatomy import load_anatomy, save_calibration
    from ldm_morph_jax.runs.dataset import dataset_of

    if options.refine:
        raise ValueError(f"--refine is for what registers, {named} is an anatomy network")
    model = load_anatomy(named)
    of_model = SimpleNamespace(config=config_from_json(model.config), image_size=None)
    config = data_config(options, of_model, workdir)
    dataset = dataset_of(config)
    if options.split == "validation" and workdir == Path(named):
        model, calibration = calibrate(model, dataset)
        save_calibration(model, workdir, calibration)
    out = output_directory(options, named, workdir, config)
    notes = notes_on(options, workdir, dataset)
    print(format_summary(score_anatomy(model, dataset, options.split, out, notes)))
    print(f"scores: {out}")


def main(argv: list[str] | None = None) -> None:
    commands.main("evaluate", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
