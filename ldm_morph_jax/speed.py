"""Tell how fast it runs here.

    ldm-morph speed --config NAME --json out.json

Times, on random data and random weights: every stage's training step, with and without the cache of
frozen features, compilation apart; and registration, per pair, in batches. Medians with the range
over repeats, beside the floating point operations that XLA counts. The configuration's batch sizes
can be too large for a small machine: `--config.autoencoder.train.batch_size=1`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ldm_morph_jax import commands
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.ConfigOptions, commands.StagesOption):
    """What `speed` takes."""

    batches: Annotated[tuple[int, ...], commands.COMMAS, Parameter(metavar="N,...")] = (1, 8, 64)
    """pairs per call of registration"""

    repeats: Annotated[int, WHOLE] = 10
    """timed calls of each kind, after one that is not"""

    seconds: float = 60.0
    """stop repeating a kind after so long"""

    json: Path | None = None
    """also write the numbers to this file"""


def run(options: Options) -> None:
    """Do what the command line says."""
    import jax

    from ldm_morph_jax.methods import build_method
    from ldm_morph_jax.profiling.timing import peak_flops, time_registration, time_step
    from ldm_morph_jax.runs.directory import environment

    config = options.read_config()
    stages = options.stages_of(config)
    limits = {"repeats": options.repeats, "seconds": options.seconds}
    if min(options.batches, default=0) < 1:
        found = ",".join(map(str, options.batches))
        raise ValueError(f"--batches: found {found}, expected numbers of pairs")
    frozen_features = build_method(config).reads_ldm
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {config.compute.dtype}")
    steps, registrations = [], []
    for name in stages:
        has_cache = name == "diffusion" or (name == "registration" and frozen_features)
        for cached in (True, False) if has_cache else (False,):
            row = {"stage": name, "cached": cached if has_cache else None}
            row |= time_step(config, name, cached=cached, **limits)
            steps.append(row)
            cache = {True: ", cached features", False: ", features anew", None: ""}[row["cached"]]
            _print(f"step of {name}, batch {row['batch_size']}{cache}", row, row["step_seconds"])
    for batch in options.batches:
        for given in (False, True) if frozen_features else (False,):
            row = time_registration(config, batch, given=given, **limits)
            registrations.append({"features_given": given} | row)
            what = "features given" if given else "features included"
            _print(f"registration per pair, batch {batch}, {what}", row, row["seconds_per_pair"])
    if options.json:
        facts = {
            "environment": environment(),
            "compute": config.compute.to_dict(),
            "image_size": config.data.image_size,
            "depth": config.data.depth,
            "peak_flops_of_a_device": peak_flops(jax.devices()[0].device_kind),
            "steps": steps,
            "registration": registrations,
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def _print(name: str, row: dict, seconds: dict) -> None:
    used = f", {row['utilisation']:.1%} of peak" if row["utilisation"] else ""
    speed = f", {row['images_per_second']:.2f} images/s" if "images_per_second" in row else ""
    print(
        f"{name}: {seconds['median']:.4g} s ({seconds['min']:.4g} to {seconds['max']:.4g}, "
        f"{seconds['repeats']} times){speed}, {row['flops'] / 1e9:.4g} GFLOP, "
        f"{row['flops_per_second'] / 1e9:.4g} GFLOP/s{used}; compiled in "
        f"{row['compile_seconds']:.1f} s",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    commands.main("speed", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
