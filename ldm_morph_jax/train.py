"""Train a method.

    ldm-morph train --config NAME --workdir runs/X

Any key of the configuration is an option: `--config.registration.train.steps=2000`. The same
command continues an interrupted run from its newest checkpoint and skips complete stages. It trains
on all devices of this machine, or, started once per machine (or GPU), on all devices of all of
them: docs/scaling.md.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ldm_morph_jax import commands
from ldm_morph_jax.experiments import experiment_names, experiment_title
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.ConfigOptions):
    """What `train` takes."""

    workdir: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """directory of the run; made when missing"""

    print_config: bool = False
    """print all keys of the configuration with their values, and train nothing"""

    coordinator: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    """address of process 0 of several"""

    num_processes: Annotated[int | None, WHOLE] = None
    """number of processes of the run"""

    process_id: Annotated[int | None, WHOLE] = None
    """which of them this is, from 0"""

    distributed: Annotated[bool | None, Parameter(negative="--no-distributed")] = None
    """find the other processes through the scheduler (TPU pod, SLURM, Open MPI, GKE); default:
    where SLURM or GKE started several"""

    profile_steps: Annotated[str | None, Parameter(metavar="FIRST:LAST")] = None
    """profile these steps of every stage"""


def profile_range(text: str | None) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15)."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"--profile-steps is {text!r}, expected FIRST:LAST, for example 10:15")
    return int(first), int(last)


def config_text(config) -> str:
    """Every key of a configuration as it is set on the command line, a line each."""
    from flax.traverse_util import flatten_dict

    flat = flatten_dict(config.to_dict(), sep=".", keep_empty_nodes=True)
    return "\n".join(f"--config.{key}={shlex.quote(str(value))}" for key, value in flat.items())


def run(options: Options) -> None:
    """Do what the command line says."""
    if options.print_config:
        print(config_text(options.read_config()))
        return
    if options.workdir is None:
        raise ValueError("--workdir is missing")

    from ldm_morph_jax.devices import processes  # JAX is imported once the options are read
    from ldm_morph_jax.training.run import train

    processes.join(
        options.coordinator,
        options.num_processes,
        options.process_id,
        distributed=options.distributed,
    )
    commands.use_compilation_cache()
    config, profile_steps = options.read_config(), profile_range(options.profile_steps)
    metrics = train(config, options.workdir, profile_steps=profile_steps)
    if not processes.is_main():
        return
    for stage, values in metrics.items():
        shown = "  ".join(f"{name} {v:.4g}" for name, v in values.items() if name != "score")
        print(f"{stage}: {shown}")
    print(f"trained: {options.workdir}")


def experiments_text() -> str:
    """The experiments with the first line of their docstrings."""
    names = [name for name in experiment_names() if not name.startswith("benchmark/")]
    return "\n".join(["experiments:", *(f"  {name:<24}{experiment_title(name)}" for name in names)])


def main(argv: list[str] | None = None) -> None:
    commands.main("train", Options, run, argv, f"{__doc__}\n{experiments_text()}")


if __name__ == "__main__":
    main()
