"""What training will need: `python -m ldm_morph_jax.plan --config configs/X.py [--devices N]`.

Compiles each stage's step ahead of time, without data, weights or allocating its memory, and prints
parameters, FLOPs, memory and communication. Without --devices for the devices of this machine;
with it for N simulated ones. On a CPU the memory is an upper bound for a GPU or TPU: XLA computes
many bfloat16 operations in float32 there, and does not order them for least memory.
"""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from ldm_morph_jax import commands

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, by name or file.")
DEVICES = flags.DEFINE_integer("devices", None, "Plan for so many simulated devices.")
STAGES = flags.DEFINE_list(
    "stages", ["autoencoder", "diffusion", "registration"], "Which stages, separated by commas."
)
CACHED = flags.DEFINE_bool("cached", True, "Whether frozen features come from the cache.")
JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")


def plan() -> None:
    import jax

    if DEVICES.value is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES.value)

    from ldm_morph_jax.devices.mesh import data_mesh
    from ldm_morph_jax.profiling import costs
    from ldm_morph_jax.training.stages import STAGES as KNOWN

    unknown = sorted(set(STAGES.value) - set(KNOWN))
    if unknown:
        raise ValueError(f"--stages: found {', '.join(unknown)}, expected {', '.join(KNOWN)}")
    mesh = data_mesh()
    planned = {}
    for name in STAGES.value:
        print(f"compiling {name} for {mesh.devices.size} devices", file=sys.stderr, flush=True)
        planned[name] = costs.plan_stage(CONFIG.value, name, mesh, cached=CACHED.value)
    print(costs.table(planned))
    kind = jax.devices()[0].device_kind
    print(
        f"{mesh.devices.size} x {kind}, jax {jax.__version__}, {CONFIG.value.compute.dtype}, "
        f"remat {CONFIG.value.compute.remat}, features cached {CACHED.value}; GB per device"
    )
    if JSON.value:
        facts = {
            "devices": mesh.devices.size,
            "device_kind": kind,
            "jax": jax.__version__,
            "compute": CONFIG.value.compute.to_dict(),
            "cached": CACHED.value,
            "stages": planned,
        }
        Path(JSON.value).write_text(json.dumps(facts, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(plan, argv, required=["config"])


if __name__ == "__main__":
    main()
