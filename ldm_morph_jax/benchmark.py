"""The paper's tables and figures, all methods, one command:

    python -m ldm_morph_jax.benchmark --config configs/benchmark/X.py --out results/X

Trains every method on every dataset, evaluates all of them on the test pairs, and writes tables,
figures and index.html below --out (docs/benchmark.md). The same command goes on after any
interruption. `--methods`, `--datasets` and `--seeds` do a part of the plan; `--dry-run` prints it.
A method that fails is marked in the tables, and the exit status is then 1.
"""

import sys

from absl import flags
from ml_collections import config_flags

from ldm_morph_jax import commands

CONFIG = config_flags.DEFINE_config_file("config", None, "Benchmark, by name or file.")
OUT = flags.DEFINE_string("out", None, "Directory of the benchmark; made when missing.")
METHODS = flags.DEFINE_list("methods", None, "Only these methods (or variants), by commas.")
DATASETS = flags.DEFINE_list("datasets", None, "Only what is tested on these datasets.")
SEEDS = flags.DEFINE_list("seeds", None, "Only these seeds.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and what of it is done.")


def whole_numbers(texts: list[str] | None) -> list[int] | None:
    """["0", "1"] -> [0, 1]."""
    if texts is None:
        return None
    if not all(text.isdigit() for text in texts):
        raise ValueError(f"--seeds is {','.join(texts)}, expected whole numbers, for example 0,1")
    return [int(text) for text in texts]


def benchmark() -> bool:
    from ldm_morph_jax.paper.run import describe, run_benchmark

    only = {
        "methods": METHODS.value,
        "datasets": DATASETS.value,
        "seeds": whole_numbers(SEEDS.value),
    }
    if DRY_RUN.value:
        print(describe(CONFIG.value, OUT.value, **only))
        return True
    commands.use_compilation_cache()
    failed = run_benchmark(CONFIG.value, OUT.value, **only)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"benchmark: {OUT.value}/index.html")
    return not failed


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(benchmark, argv, required=["config", "out"])


if __name__ == "__main__":
    main()
