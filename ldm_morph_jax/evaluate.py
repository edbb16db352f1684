"""Score a trained run: `python -m ldm_morph_jax.evaluate --workdir runs/X --split test`.

Writes runs/X/evaluation/<split>/{pairs.csv, summary.json, report.html, figures/}. With `--method`
another method registers the same pairs ("initial": not at all; "lddmm"; "syn": ANTs SyN, needs the
extra `ants`), and the results go to evaluation/<split>-<method>/. With `--refine N` each pair's
displacement is refined by N steps of instance optimisation, as in `register`, and the results go to
evaluation/<split>-refine<N>/.
"""

import functools
from pathlib import Path

from absl import flags

from ldm_morph_jax import commands

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a trained run.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which pairs.")
METHOD = flags.DEFINE_enum(
    "method", None, ["initial", "lddmm", "syn"], "Register with this one instead."
)
REFINE = flags.DEFINE_integer(
    "refine", 0, "Steps of instance optimisation for every pair.", lower_bound=0
)
SOURCE = flags.DEFINE_string("source", None, "Where the dataset's files are now, if moved.")


def evaluate() -> None:
    from ldm_morph_jax.evaluation import evaluate_split
    from ldm_morph_jax.report.tables import format_summary_table
    from ldm_morph_jax.runs.directory import load_config
    from ldm_morph_jax.runs.trained import load_method, load_run
    from ldm_morph_jax.training.run import dataset_of

    commands.use_compilation_cache()
    workdir, split = Path(WORKDIR.value), SPLIT.value
    config = load_config(workdir)
    if SOURCE.value:
        with config.unlocked():
            config.data.source = SOURCE.value
    dataset = dataset_of(config)
    if METHOD.value and REFINE.value:
        raise ValueError(f"--refine starts from a trained network, --method is {METHOD.value}")
    if METHOD.value:
        name, register = METHOD.value, load_method(METHOD.value).displacement
        out = workdir / "evaluation" / f"{split}-{name}"
    else:
        trained = load_run(workdir)
        name, register = trained.name, trained.displacement
        out = workdir / "evaluation" / split
        if REFINE.value:
            from ldm_morph_jax.registering.prediction import refined_displacement

            register = functools.partial(refined_displacement, trained, steps=REFINE.value)
            name, out = f"{name} + {REFINE.value} steps", Path(f"{out}-refine{REFINE.value}")
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


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(evaluate, argv, required=["workdir"])


if __name__ == "__main__":
    main()
