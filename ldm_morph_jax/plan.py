"""Tell what training will need.

    ldm-morph plan --config NAME [--devices N]

Counts parameters and FLOPs of each stage without data, weights or memory for them, measures for a
second how fast this machine computes, and estimates how long training takes. With --compile it also
compiles each stage's step ahead of time, which can take minutes, for memory and communication.
Without --devices for the devices of this machine; with it for N simulated ones. On a CPU the memory
is an upper bound for a GPU or TPU: XLA computes many bfloat16 operations in float32 there, and does
not order them for least memory.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ldm_morph_jax import commands
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.ConfigOptions, commands.StagesOption):
    """What `plan` takes."""

    devices: Annotated[int | None, WHOLE] = None
    """plan for so many simulated devices"""

    cached: Annotated[bool, Parameter(negative=("--no-cached", "--nocached"))] = True
    """frozen features come from the cache"""

    compile: bool = False
    """compile the steps, too: memory, communication, time to compile"""

    json: Path | None = None
    """also write the numbers to this file"""


def run(options: Options) -> None:
    """Do what the command line says."""
    import jax

    if options.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)

    from ldm_morph_jax.devices.mesh import available
    from ldm_morph_jax.profiling import costs
    from ldm_morph_jax.profiling.timing import convolution_speed

    config, devices, planned = options.read_config(), len(available()), {}
    for name in options.stages_of(config):
        print(f"counting {name}", file=sys.stderr, flush=True)
        planned[name] = costs.plan_stage(config, name, cached=options.cached)
        if options.compile:
            print(f"compiling {name} for {devices} devices", file=sys.stderr, flush=True)
            planned[name] |= costs.compiled_costs(config, name, cached=options.cached)
    print(costs.table(planned))
    kind = jax.devices()[0].device_kind
    memory = "; GB per device" if options.compile else ""
    sharing = config.compute.devices_per_image
    shared = f", {sharing} to a volume" if sharing > 1 else ""
    print(
        f"{devices} x {kind}{shared}, jax {jax.__version__}, {config.compute.dtype}, "
        f"remat {config.compute.remat}, features cached {options.cached}{memory}"
    )
    facts = {
        "devices": devices,
        "device_kind": kind,
        "jax": jax.__version__,
        "compute": config.compute.to_dict(),
        "cached": options.cached,
        "stages": planned,
    }
    if options.devices is None:  # simulated ones have no speed
        speed = devices * convolution_speed()
        facts |= {"flops_per_second": speed, "seconds": costs.duration(planned, speed)}
        print(
            f"about {_time(facts['seconds'])} of training steps on this machine, if they compute "
            f"like a convolution, {speed / 1e9:,.0f} GFLOP/s; data, compilation and validation "
            "come on top"
        )
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def _time(seconds: float) -> str:
    """A duration in its largest sensible unit."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def main(argv: list[str] | None = None) -> None:
    commands.main("plan", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
