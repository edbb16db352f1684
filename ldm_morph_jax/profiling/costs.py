"""What a training step costs, from the configuration alone: no data, no weights, nothing allocated.

`plan` prints it and `speed` compares the clock with it.
"""

import math
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_morph_jax.devices.mesh import check_batch_size, replicated, sharded
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.ldm import build_autoencoder, build_schedule, build_unet
from ldm_morph_jax.runs.directory import abstract_autoencoder, abstract_unet
from ldm_morph_jax.training.loop import Stage, jit_step
from ldm_morph_jax.training.stages.autoencoder import autoencoder_stage
from ldm_morph_jax.training.stages.diffusion import diffusion_stage
from ldm_morph_jax.training.stages.registration import registration_stage

STAGES = ("autoencoder", "diffusion", "registration")
FLOAT = np.float32


class Program(NamedTuple):
    """A stage's step and the shapes (`jax.ShapeDtypeStruct`) of what it takes."""

    stage: Stage
    state: dict
    frozen: Any
    batch: dict


def abstract_ldm(config) -> dict:
    """Shapes of the frozen latent diffusion model, as `workdir.load_ldm` gives it."""
    autoencoder = abstract_autoencoder(config)
    return {
        "autoencoder": {name: autoencoder[name] for name in ("encoder", "codebook")},
        "unet": abstract_unet(config),
        "latent_scale": jax.ShapeDtypeStruct((), FLOAT),
    }


def stage_program(config, name: str, *, cached: bool) -> Program:
    """The program of a stage ("autoencoder", "diffusion", "registration").

    `cached`: whether batches bring the frozen features (latents for the diffusion stage).
    """
    batch_size, size = config[name].train.batch_size, config.data.image_size
    images = jax.ShapeDtypeStruct((batch_size, size, size, 1), FLOAT)
    batch = {"image": images}
    if name == "autoencoder":
        stage = autoencoder_stage(config, build_autoencoder(config), None, None)
        frozen = stage.frozen
    elif name == "diffusion":
        autoencoder = build_autoencoder(config)
        frozen = {
            "autoencoder": abstract_autoencoder(config),
            "latent_scale": jax.ShapeDtypeStruct((), FLOAT),
        }
        if cached:
            side = size // autoencoder.downsampling
            shape = (batch_size, side, side, autoencoder.latent_channels)
            batch = {"latent": jax.ShapeDtypeStruct(shape, FLOAT)}
        unet, schedule = build_unet(config), build_schedule(config)
        stage = diffusion_stage(config, autoencoder, unet, schedule, frozen, None, None)
    else:
        method = build_method(config)
        frozen = abstract_ldm(config) if method.reads_ldm else {}
        batch = {"moving": images, "fixed": images}
        if cached and method.features_are_constant:
            features = jax.eval_shape(method.image_features, frozen, images)
            batch |= {"moving_features": features, "fixed_features": features}
        stage = registration_stage(config, method, frozen, None, None, {})
    state = jax.eval_shape(stage.init, jax.random.key(0))
    frozen = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), frozen)
    return Program(stage, state, frozen, batch)


def lower_step(program: Program, mesh: Mesh):
    """The step as training compiles it, lowered for the mesh."""
    train = program.stage.train
    check_batch_size(train.batch_size, mesh, train.micro_batches)

    def placed(tree, sharding):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    return jit_step(program.stage, mesh, seed=0).lower(
        placed(program.state, replicated(mesh)),
        placed(program.frozen, replicated(mesh)),
        placed(program.batch, sharded(mesh)),
        np.int32(0),
    )


def step_flops(config, name: str, mesh: Mesh, *, cached: bool) -> float:
    """Floating point operations of one step, of all devices together.

    XLA counts the body of a loop once: micro-batches are therefore counted as one batch, and
    further steps of the DDIM inversion are added.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole[name].train.micro_batches = 1
    program = stage_program(whole, name, cached=cached)
    flops = lower_step(program, mesh).cost_analysis()["flops"]
    if name == "registration" and not cached and program.frozen:
        more = config.features.inversion_steps - 1
        method = build_method(config)
        if more and method.features_are_constant:
            flops += more * _unet_flops(config, 2 * config[name].train.batch_size)
    return flops


def _unet_flops(config, batch_size: int) -> float:
    unet, autoencoder = build_unet(config), build_autoencoder(config)
    side = config.data.image_size // autoencoder.downsampling
    z = jax.ShapeDtypeStruct((batch_size, side, side, autoencoder.latent_channels), FLOAT)
    t = jax.ShapeDtypeStruct((batch_size,), np.int32)
    apply = jax.jit(lambda params, z, t: unet.apply({"params": params}, z, t))
    return apply.lower(abstract_unet(config), z, t).cost_analysis()["flops"]


def count(tree) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def all_reduced_bytes(program_text: str) -> int:
    """Bytes that a compiled program (its HLO text) sums over the devices."""
    total = 0
    for result in re.findall(r"= (.*) all-reduce(?:-start)?\(", program_text):
        for kind, bits, shape in re.findall(r"\b(pred|bf|[fsu])(\d*)\[([\d,]*)\]", result):
            size = 1 if kind == "pred" else int(bits) // 8
            total += size * math.prod(int(n) for n in shape.split(",") if n)
    return total


def plan_stage(config, name: str, mesh, *, cached: bool) -> dict:
    """The numbers of one stage; bytes are per device, FLOPs of all devices together."""
    program = stage_program(config, name, cached=cached)
    lowered = lower_step(program, mesh)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "batch_size": program.stage.train.batch_size,
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
