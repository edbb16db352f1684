"""What training will need: `python -m ldm_morph_jax.plan --config configs/X.py [--devices N]`.

Compiles each stage's step ahead of time, without data, weights or allocating its memory, and prints
parameters, FLOPs, memory and communication. Without --devices for the devices of this machine;
with it for N simulated ones. On a CPU the memory is an upper bound for a GPU or TPU: XLA computes
many bfloat16 operations in float32 there, and does not order them for least memory.
"""

import json
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from ldm_morph_jax import commands

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, configs/X.py.")
DEVICES = flags.DEFINE_integer("devices", None, "Plan for so many simulated devices.")
STAGES = flags.DEFINE_list(
    "stages", ["autoencoder", "diffusion", "registration"], "Which stages, separated by commas."
)
CACHED = flags.DEFINE_bool("cached", True, "Whether frozen features come from the cache.")
JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")


def plan_stage(config, name: str, mesh, *, cached: bool) -> dict:
    """The numbers of one stage; bytes are per device, FLOPs of all devices together."""
    from ldm_morph_jax.training import costs

    program = costs.stage_program(config, name, cached=cached)
    lowered = costs.lower_step(program, mesh)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "batch_size": program.stage.train.batch_size,
        "parameters": costs.count(program.state["params"]),
        "frozen_parameters": costs.count(program.frozen),
        "flops_per_step": costs.step_flops(config, name, mesh, cached=cached),
        "peak_bytes": peak,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "all_reduced_bytes_per_step": costs.all_reduced_bytes(compiled.as_text()),
        "compile_seconds": round(seconds, 1),
    }


def table(planned: dict[str, dict]) -> str:
    """The numbers for people."""
    head = (
        f"{'stage':<14}{'batch':>6}{'parameters':>13}{'frozen':>13}{'GFLOP/step':>12}"
        f"{'peak GB':>9}{'of it temporary':>17}{'MB all-reduced':>16}{'compiled':>10}"
    )
    rows = [
        f"{name:<14}{p['batch_size']:>6}{p['parameters']:>13,}{p['frozen_parameters']:>13,}"
        f"{p['flops_per_step'] / 1e9:>12,.1f}{p['peak_bytes'] / 1e9:>9.2f}"
        f"{p['temporary_bytes'] / 1e9:>17.2f}{p['all_reduced_bytes_per_step'] / 1e6:>16.2f}"
        f"{p['compile_seconds']:>8.0f} s"
        for name, p in planned.items()
    ]
    return "\n".join([head, *rows])


def plan() -> None:
    import jax

    if DEVICES.value is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES.value)

    from ldm_morph_jax.training import costs
    from ldm_morph_jax.training.mesh import data_mesh

    unknown = sorted(set(STAGES.value) - set(costs.STAGES))
    if unknown:
        raise ValueError(f"--stages: found {', '.join(unknown)}, expected {costs.STAGES}")
    mesh = data_mesh()
    planned = {}
    for name in STAGES.value:
        print(f"compiling {name} for {mesh.devices.size} devices", file=sys.stderr, flush=True)
        planned[name] = plan_stage(CONFIG.value, name, mesh, cached=CACHED.value)
    print(table(planned))
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


def main(arguments):
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    commands.run(plan)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
