"""The cost of a training step, from the configuration alone: no data or weights are allocated.

`plan` prints it, and `speed` compares measured times with it.
"""

import math
import re
import time

import jax
import numpy as np

from ldm_morph_jax.methods.ldm import build_unet
from ldm_morph_jax.models.backend import straightforward
from ldm_morph_jax.runs.directory import abstract_unet, latent_shape
from ldm_morph_jax.training.program import lower_step
from ldm_morph_jax.training.stages import stage_program


def flops(function, *arguments) -> float:
    """Floating-point operations of a call, counted by XLA on the program before it is compiled."""
    with straightforward():
        # a new function, since JAX remembers the program of one that it has traced
        return jax.jit(lambda *a: function(*a)).lower(*arguments).cost_analysis()["flops"]


def step_flops(config, name: str, *, cached: bool) -> float:
    """Floating-point operations of one step, summed over all devices.

    XLA counts the body of a loop only once. Micro-batches are therefore counted as one batch, and
    the other steps of the DDIM inversion are added.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole[name].train.micro_batches = 1
    program = stage_program(whole, name, cached=cached)
    with straightforward():
        counted = lower_step(program, seed=config.seed).cost_analysis()["flops"]
    if name == "registration" and not cached and program.frozen:
        c = config.features
        reads_taps = config.registration.model.get("fusion") != "none"
        if c.noising == "ddim" and c.inversion_steps > 1 and reads_taps:
            more = c.inversion_steps - 1
            counted += more * _unet_flops(config, 2 * program.train.batch_size)
    return counted


def _unet_flops(config, batch_size: int) -> float:
    unet = build_unet(config)
    z = jax.ShapeDtypeStruct((batch_size, *latent_shape(config)), np.float32)
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


def plan_stage(config, name: str, *, cached: bool) -> dict:
    """What one stage computes, counted without compiling it; FLOPs are summed over all devices."""
    program = stage_program(config, name, cached=cached)
    return {
        "batch_size": program.train.batch_size,
        "steps": program.train.steps,
        "parameters": count(program.state["params"]),
        "frozen_parameters": count(program.frozen),
        "flops_per_step": step_flops(config, name, cached=cached),
    }


def compiled_costs(config, name: str, *, cached: bool) -> dict:
    """What one stage's compiled step needs; bytes are per device."""
    program = stage_program(config, name, cached=cached)
    lowered = lower_step(program, seed=config.seed)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "peak_bytes": peak,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "all_reduced_bytes_per_step": all_reduced_bytes(compiled.as_text()),
        "compile_seconds": round(seconds, 1),
    }


def duration(planned: dict[str, dict], flops_per_second: float) -> float:
    """Seconds that all steps take at this speed."""
    return sum(p["steps"] * p["flops_per_step"] for p in planned.values()) / flops_per_second


def table(planned: dict[str, dict]) -> str:
    """The numbers as readable text."""
    columns = {  # heading, width, format
        "batch_size": ("batch", 6, lambda n: f"{n}"),
        "steps": ("steps", 9, lambda n: f"{n:,}"),
        "parameters": ("parameters", 13, lambda n: f"{n:,}"),
        "frozen_parameters": ("frozen", 13, lambda n: f"{n:,}"),
        "flops_per_step": ("GFLOP/step", 12, lambda n: f"{n / 1e9:,.1f}"),
        "peak_bytes": ("peak GB", 9, lambda n: f"{n / 1e9:.2f}"),
        "temporary_bytes": ("temporary GB", 14, lambda n: f"{n / 1e9:.2f}"),
        "all_reduced_bytes_per_step": ("MB all-reduced", 16, lambda n: f"{n / 1e6:.2f}"),
        "compile_seconds": ("compiled", 10, lambda n: f"{n:.0f} s"),
    }
    shown = {key: c for key, c in columns.items() if all(key in p for p in planned.values())}
    lines = [f"{'stage':<14}" + "".join(f"{head:>{width}}" for head, width, _ in shown.values())]
    for name, numbers in planned.items():
        cells = (f"{text(numbers[key]):>{width}}" for key, (_, width, text) in shown.items())
        lines.append(f"{name:<14}" + "".join(cells))
    return "\n".join(lines)
