"""Train and score every method; write the paper's tables and figures.

    ldm-morph benchmark --config benchmark/X --out results/X

Trains every method on every dataset, evaluates all of them on the test pairs, and writes tables,
figures and index.html below --out (docs/benchmark.md). The same command goes on after any
interruption. `--methods`, `--datasets` and `--seeds` do a part of the plan; `--dry-run` prints it.
A method that fails is marked in the tables, and the exit status is then 1.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ldm_morph_jax import commands

_NAMES = Parameter(metavar="NAME,...")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.ConfigOptions):
    """What `benchmark` takes."""

    out: Path
    """directory of the benchmark; made when missing"""

    methods: Annotated[tuple[str, ...] | None, commands.COMMAS, _NAMES] = None
    """only these methods (or variants)"""

    datasets: Annotated[tuple[str, ...] | None, commands.COMMAS, _NAMES] = None
    """only what is tested on these datasets"""

    seeds: Annotated[tuple[int, ...] | None, commands.COMMAS, Parameter(metavar="N,...")] = None
    """only these seeds"""

    dry_run: bool = False
    """print the plan and what of it is done"""


def run(options: Options) -> bool:
    """Do what the command line says. Returns whether every method could be trained and scored."""
    from ldm_morph_jax.paper.run import describe, run_benchmark

    config = options.read_config()
    only = {"methods": options.methods, "datasets": options.datasets, "seeds": options.seeds}
    if options.dry_run:
        print(describe(config, options.out, **only))
        return True
    commands.use_compilation_cache()
    failed = run_benchmark(config, options.out, **only)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"benchmark: {options.out}/index.html")
    return not failed


def main(argv: list[str] | None = None) -> None:
    commands.main("benchmark", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
