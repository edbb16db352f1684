"""Tell what training will need.

    ldm-morph plan --config NAME [--devices N]

Compiles each stage's step ahead of time, without data, weights or allocating its memory, and prints
parameters, FLOPs, memory and communication. Without --devices for the devices of this machine;
with it for N simulated ones. On a CPU the memory is an upper bound for a GPU or TPU: XLA computes
many bfloat16 operations in float32 there, and does not order them for least memory.
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

    json: Path | None = None
    """also write the numbers to this file"""


def run(options: Options) -> None:
    """Do what the command line says."""
    import jax

    if options.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)

    from ldm_morph_jax.devices.mesh import data_mesh
    from ldm_morph_jax.profiling import costs

    config, mesh = options.read_config(), data_mesh()
    planned = {}
    for name in options.known_stages():
        print(f"compiling {name} for {mesh.devices.size} devices", file=sys.stderr, flush=True)
        planned[name] = costs.plan_stage(config, name, mesh, cached=options.cached)
    print(costs.table(planned))
    kind = jax.devices()[0].device_kind
    print(
        f"{mesh.devices.size} x {kind}, jax {jax.__version__}, {config.compute.dtype}, "
        f"remat {config.compute.remat}, features cached {options.cached}; GB per device"
    )
    if options.json:
        facts = {
            "devices": mesh.devices.size,
            "device_kind": kind,
            "jax": jax.__version__,
            "compute": config.compute.to_dict(),
            "cached": options.cached,
            "stages": planned,
        }
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    commands.main("plan", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
