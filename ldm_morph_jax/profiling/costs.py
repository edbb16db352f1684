"""The cost of a training step, from the configuration alone: no data or weights are allocated.

`plan` prints it, and `speed` compares measured times with it.
"""

import math
import re
import time

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_morph_jax.methods.ldm import build_autoencoder, build_unet
from ldm_morph_jax.models.backend import straightforward
from ldm_morph_jax.runs.directory import abstract_unet
from ldm_morph_jax.training.program import lower_step
from ldm_morph_jax.training.stages import stage_program


def flops(function, *arguments) -> float:
    """Floating-point operations of a call, counted by XLA on the program before it is compiled."""
    with straightforward():
        # a new function, since JAX remembers the program of one that it has traced
        return jax.jit(lambda *a: function(*a)).lower(*arguments).cost_analysis()["flops"]


def step_flops(config, name: str, mesh: Mesh, *, cached: bool) -> float:
    """Floating-point operations of one step, summed over all devices.

    XLA counts the body of a loop only once. Micro-batches are therefore counted as one batch, and
    the other steps of the DDIM inversion are added.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole[name].train.micro_batches = 1
    program = stage_program(whole, name, cached=cached)
    with straightforward():
        counted = lower_step(program, mesh, seed=config.seed).cost_analysis()["flops"]
    if name == "registration" and not cached and program.frozen:
        c = config.features
        reads_taps = config.registration.model.get("fusion") != "none"
        if c.noising == "ddim" and c.inversion_steps > 1 and reads_taps:
            more = c.inversion_steps - 1
            counted += more * _unet_flops(config, 2 * program.train.batch_size)
    return counted


def _unet_flops(config, batch_size: int) -> float:
    unet, autoencoder = build_unet(config), build_autoencoder(config)
    side = config.data.image_size // autoencoder.downsampling
    z = jax.ShapeDtypeStruct((batch_size, side, side, autoencoder.latent_channels), np.float32)
    t = jax.ShapeDtypeStruct((batch_size,), np.int32)
    return flops(
        lambda params, *inputs: unet.apply({"params": params}, *inputs), abstract_unet(config), z, t
    )


def count(tree) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def all_reduced_bytes(program_text: str) -> int:
    """Bytes that a compiled program (its HLO text) all-reduces over the devices."""
    total = 0
    for result in re.findall(r"= (.*) all-reduce(?:-start)?\(", program_text):
        for kind, bits, shape in re.findall(r"\b(pred|bf|[fsu])(\d*)\[([\d,]*)\]", result):
            size = 1 if kind == "pred" else int(bits) // 8
            total += size * math.prod(int(n) for n in shape.split(",") if n)
    return total


def plan_stage(config, name: str, mesh, *, cached: bool) -> dict:
    """The numbers of one stage; bytes are per device, FLOPs are summed over all devices."""
    program = stage_program(config, name, cached=cached)
    lowered = lower_step(program, mesh, seed=config.seed)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "batch_size": program.train.batch_size,
        "parameters": count(program.state["params"]),
        "frozen_parameters": count(program.frozen),
        "flops_per_step": step_flops(config, name, mesh, cached=cached),
        "peak_bytes": peak,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "all_reduced_bytes_per_step": all_reduced_bytes(compiled.as_text()),
        "compile_seconds": round(seconds, 1),
    }


def table(planned: dict[str, dict]) -> str:
    """The numbers as readable text."""
    head = (
        f"{'stage':<14}{'batch':>6}{'parameters':>13}{'frozen':>13}{'GFLOP/step':>12}"
        f"{'peak GB':>9}{'temporary GB':>17}{'MB all-reduced':>16}{'compiled':>10}"
    )
    rows = [
        f"{name:<14}{p['batch_size']:>6}{p['parameters']:>13,}{p['frozen_parameters']:>13,}"
        f"{p['flops_per_step'] / 1e9:>12,.1f}{p['peak_bytes'] / 1e9:>9.2f}"
        f"{p['temporary_bytes'] / 1e9:>17.2f}{p['all_reduced_bytes_per_step'] / 1e6:>16.2f}"
        f"{p['compile_seconds']:>8.0f} s"
        for name, p in planned.items()
    ]
    return "\n".join([head, *rows])
