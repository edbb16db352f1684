"""Score a method on a split: `ldm-morph evaluate --workdir runs/X --split test`.

    evaluate --workdir runs/X                        a run on its own dataset
    evaluate --workdir runs/X --model lddmm          another model on the dataset of a run
    evaluate --model sunnybrook-symmetric --source DIR    shipped weights on the data they know
    evaluate --model runs/X --dataset acdc --source DIR     on another dataset
    evaluate --model syn --config acdc --config.data.source=DIR

A model is a run directory, a weights file, the name of shipped weights, or a method that needs no
training ("initial": no registration; "lddmm"; "syn": ANTs SyN, needs the extra `ants`). With
`--refine N` each pair is refined by N steps on the whole image, as `register` does it by default
with 82.

Writes {pairs.csv, summary.json, report.html, figures/} to --out. By default that is
runs/X/evaluation/<split>[-<dataset>][-<model>][-refine<N>], what is the run's own left out, and
evaluation/<model>-<dataset>-<split>[-refine<N>] where no run is given.
"""

import functools
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from ldm_morph_jax import commands

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a trained run.")
MODEL = flags.DEFINE_string("model", None, "What registers; the run of --workdir by default.")
flags.DEFINE_alias("method", "model")
CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment whose data to take.")
DATASET = flags.DEFINE_string(
    "dataset", None, "Dataset to take, with the model's grid and scaling."
)
SOURCE = flags.DEFINE_string("source", None, "Where the dataset's files are now.")
DATA = flags.DEFINE_string("data", None, "Where prepared datasets are kept; as trained by default.")
ALLOW_PARTIAL = flags.DEFINE_bool(
    "allow_partial", False, "Take those of the paper's patients that are there."
)
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which pairs.")
REFINE = flags.DEFINE_integer(
    "refine",
    0,
    "Steps of refinement for every pair, as in `register`; 0: the network alone.",
    lower_bound=0,
)
OUT = flags.DEFINE_string("out", None, "Directory to write.")


def data_config(model, run: Path | None):
    """The configuration whose `data` are scored: of --config, of the run, or of the model."""
    from ldm_morph_jax.config import paper_config
    from ldm_morph_jax.runs.directory import load_config

    if CONFIG.value is not None:
        config = CONFIG.value
    elif run is not None:
        config = load_config(run)
    else:
        config = model.config or paper_config()
    with config.unlocked():
        if DATASET.value and DATASET.value != config.data.name:
            config.data.name, config.data.options = DATASET.value, {}
        if SOURCE.value:
            config.data.source = SOURCE.value
        if DATA.value:
            config.data.directory = DATA.value
        if ALLOW_PARTIAL.value:
            config.data.options.allow_partial = True
    if model.image_size not in (None, config.data.image_size):
        raise ValueError(
            f"data.image_size is {config.data.image_size}, expected {model.image_size}, which the "
            "model was trained for"
        )
    return config


def output_directory(named: str, run: Path | None, config) -> Path:
    """--out, or the place that the module's docstring states."""
    from ldm_morph_jax.runs.directory import load_config

    if OUT.value:
        return Path(OUT.value)
    parts = [SPLIT.value]
    if run is None:
        folder, parts = Path("evaluation"), [Path(named).stem, config.data.name, *parts]
    else:
        folder = run / "evaluation"
        if config.data.name != load_config(run).data.name:
            parts.append(config.data.name)
        if Path(named) != run:
            parts.append(Path(named).stem)
    return folder / "-".join([*parts, *[f"refine{REFINE.value}"] * (REFINE.value > 0)])


def evaluate() -> None:
    from ldm_morph_jax.evaluation import evaluate_split
    from ldm_morph_jax.report.tables import format_summary_table
    from ldm_morph_jax.runs.dataset import dataset_of
    from ldm_morph_jax.runs.metrics import read_curves
    from ldm_morph_jax.runs.trained import load_method, model_names

    commands.use_compilation_cache()
    named = MODEL.value or WORKDIR.value
    if named is None:
        raise ValueError("expected --workdir RUN, or --model with a run, a file or a name")
    is_run = Path(named).is_dir() and named not in model_names()
    run = WORKDIR.value or (named if is_run else None)
    run = None if run is None else Path(run)
    model = load_method(named)
    config = data_config(model, run)
    out = output_directory(named, run, config)
    name, register = model.name, model.displacement
    if REFINE.value:
        from ldm_morph_jax.registering.pairs import refined_displacement

        if model.iterative:
            raise ValueError(f"--refine starts from a trained network, --model is {named}")
        name = f"{name} + {REFINE.value} steps"
        register = functools.partial(refined_displacement, model, steps=REFINE.value)
    summary = evaluate_split(
        register,
        dataset_of(config),
        SPLIT.value,
        out,
        method=name,
        config=config.to_dict(),
        curves=read_curves(run) if run is not None and Path(named) == run else None,
    )
    print(format_summary_table(summary))
    print(f"report: {out / 'report.html'}")


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(evaluate, argv)


if __name__ == "__main__":
    main()
