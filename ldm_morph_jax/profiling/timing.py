"""Timing training steps and registration, on random data and random weights."""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.devices.mesh import global_batch, replicated
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.profiling import costs
from ldm_morph_jax.runs.directory import abstract_ldm
from ldm_morph_jax.training.program import lower_step
from ldm_morph_jax.training.stages import stage_program

# dense bfloat16 peak of one device in FLOP/s, from vendors' data sheets, keyed by the beginning of
# JAX's device_kind
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak of one device; None if it is not known, as for CPUs."""
    peaks = [peak for kind, peak in PEAKS.items() if device_kind.startswith(kind)]
    return peaks[0] if peaks else None


def clock(call: Callable[[], object], repeats: int, seconds: float) -> dict:
    """Seconds per call: {"median", "min", "max", "repeats"}; `call` must block until it is done."""
    call()
    times, began = [], time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - began < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return {"median": median, "min": min(times), "max": max(times), "repeats": len(times)}


def convolution_speed(seconds: float = 1.0) -> float:
    """FLOP/s at which one device computes a convolution and its gradient, in float32."""
    x, w = np.ones((4, 64, 64, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)

    def loss(x, w):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=axes).sum()

    call = jax.jit(jax.grad(lambda *a: loss(*a) ** 2, argnums=(0, 1)))
    timed = clock(lambda: jax.block_until_ready(call(x, w)), repeats=20, seconds=seconds)
    return 3 * 2 * x.size * w.shape[-1] * 9 / timed["median"]


def random_arrays(tree, rng):
    """Small normal random arrays of the given shapes, usable as weights, images and features."""

    def fill(a):
        return (0.1 * rng.standard_normal(a.shape)).astype(a.dtype)

    return jax.tree.map(fill, tree)


def time_step(config, name: str, *, cached: bool, repeats: int, seconds: float) -> dict:
    """One stage's training step."""
    rng = np.random.default_rng(0)
    program = stage_program(config, name, cached=cached)
    mesh = program.mesh
    state = jax.jit(program.init, out_shardings=replicated(mesh))(jax.random.key(0))
    frozen = jax.device_put(random_arrays(program.frozen, rng), replicated(mesh))
    batch = global_batch(random_arrays(program.batch, rng), mesh)
    lowered = lower_step(program, seed=config.seed)
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    holder = [state]
    del state  # it is donated

    def step():
        holder[0], terms = compiled(holder[0], frozen, batch, np.int32(0))
        jax.block_until_ready((holder[0], terms))

    result = {"batch_size": program.train.batch_size, "compile_seconds": compile_seconds}
    result["step_seconds"] = clock(step, repeats, seconds)
    flops = costs.step_flops(config, name, cached=cached)
    median = result["step_seconds"]["median"]
    result["images_per_second"] = program.images_per_step / median
    return result | _rate(flops, median, mesh.devices.size)


def time_registration(config, batch: int, *, given: bool, repeats: int, seconds: float) -> dict:
    """Registration of `batch` pairs on one device; `given`: with the features of all images."""
    rng = np.random.default_rng(0)
    method, space = build_method(config), grid_shape(config)
    params = jax.jit(lambda key: method.init(key, space))(jax.random.key(0))
    frozen = random_arrays(abstract_ldm(config), rng) if method.reads_ldm else {}
    moving, fixed = rng.random((2, batch, *space, 1), np.float32)
    arguments = params, frozen, moving, fixed
    function = method.displacement
    if given:
        features = [jax.eval_shape(method.image_features, frozen, moving)] * 2
        arguments = params, {}, moving, fixed, random_arrays(features, rng)

        def function(*arguments):
            return method.to_displacement(method.field_from_features(*arguments))

    arguments = jax.device_put(arguments)
    lowered = jax.jit(function).lower(*arguments)
    began = time.perf_counter()
    compiled = lowered.compile()
    result = {"batch_size": batch, "compile_seconds": time.perf_counter() - began}
    call = clock(lambda: jax.block_until_ready(compiled(*arguments)), repeats, seconds)
    per_pair = {name: call[name] / batch for name in ("median", "min", "max")}
    result["seconds_per_pair"] = per_pair | {"repeats": call["repeats"]}
    return result | _rate(costs.flops(function, *arguments), call["median"], 1)


def _rate(flops: float, seconds: float, devices: int) -> dict:
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "flops": flops,
        "flops_per_second": flops / seconds,
        "utilisation": flops / seconds / (peak * devices) if peak else None,
    }
