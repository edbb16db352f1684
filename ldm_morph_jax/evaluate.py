"""Score a trained run: `python -m ldm_morph_jax.evaluate --workdir runs/X --split test`.

Writes runs/X/evaluation/<split>/{pairs.csv, summary.json, report.html, figures/}. With `--method`
another method registers the same pairs ("initial": not at all; "lddmm"; "syn": ANTs SyN, needs the
extra `ants`), and the results go to evaluation/<split>-<method>/.
"""

from pathlib import Path

from absl import app, flags

from ldm_morph_jax import commands

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a trained run.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which pairs.")
METHOD = flags.DEFINE_enum(
    "method", None, ["initial", "lddmm", "syn"], "Register with this one instead."
)
SOURCE = flags.DEFINE_string("source", None, "Where the dataset's files are now, if moved.")


def evaluate() -> None:
    from ldm_morph_jax.methods.iterative import ITERATIVE_METHODS
    from ldm_morph_jax.methods.trained import load_run
    from ldm_morph_jax.report.evaluation import evaluate_split
    from ldm_morph_jax.report.tables import format_summary_table
    from ldm_morph_jax.training.run import dataset_of
    from ldm_morph_jax.training.workdir import load_config

    commands.use_compilation_cache()
    workdir, split = Path(WORKDIR.value), SPLIT.value
    config = load_config(workdir)
    if SOURCE.value:
        with config.unlocked():
            config.data.source = SOURCE.value
    dataset = dataset_of(config)
    if METHOD.value:
        name, register = METHOD.value, ITERATIVE_METHODS[METHOD.value]()
        out = workdir / "evaluation" / f"{split}-{name}"
    else:
        trained = load_run(workdir)
        name, register = trained.name, trained.displacement
        out = workdir / "evaluation" / split
    summary = evaluate_split(
        register,
        dataset.split(split),
        ids=dataset.ids(split),
        labels=dataset.labels,
        method=name,
        dataset=dataset.name,
        split=split,
        out_dir=out,
        config=config.to_dict(),
        workdir=workdir,
    )
    print(format_summary_table(summary))
    print(f"report: {out / 'report.html'}")


def main(arguments):
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    commands.run(evaluate)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
