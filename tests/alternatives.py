"""What the package computes in a form of its own, beside the straightforward form: same? faster?

    PYTHONPATH=.:tests python tests/alternatives.py --repeats 30 \\
        --out docs/results/speed/alternatives.json

Medians over repeats of both forms, taken in turns, at the sizes of configs/sunnybrook_small.py
(4 pairs of 128 x 128) unless a line says otherwise; tests/speed_tables.py makes the table of
docs/results/speed of them. tests/test_alternatives.py asserts that both forms give the same.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from ldm_morph_jax.config import experiment
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.models import layers
from ldm_morph_jax.models.registration import upsample_axis
from ldm_morph_jax.ops.geometry import (
    integrate_velocity,
    resize_displacement,
    smooth_gaussian,
    warp,
)
from ldm_morph_jax.ops.losses import ncc
from ldm_morph_jax.profiling.timing import random_arrays
from ldm_morph_jax.runs.directory import abstract_ldm, environment

CONFIG = Path(__file__).parents[1] / "configs" / "sunnybrook_small.py"


class Case(NamedTuple):
    """Two forms of one computation, functions of the same arrays.

    same: whether both are meant to give the same up to rounding.
    """

    what: str
    plain: Callable
    ours: Callable
    arguments: tuple
    same: bool = True


def cases(batch: int = 4, size: int = 128) -> dict[str, Case]:
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    moving, fixed = jnp.asarray(rng.random((2, batch, size, size, 1)), jnp.float32)
    u = smooth_gaussian(30 * normal(batch, size, size, 2), 8.0)
    small = normal(batch, size // 4, size // 4, 32)
    found = {
        "warp": Case(
            "warp and squared error, gradient in the displacement: one gather of 2 x 2 windows "
            "instead of `map_coordinates`",
            _gradient(lambda u, moving, fixed: _mse(_warp_by_map_coordinates(moving, u), fixed)),
            _gradient(lambda u, moving, fixed: _mse(warp(moving, u), fixed)),
            (u, moving, fixed),
        ),
        "bicubic": Case(
            "bicubic upsampling, gradient: its adjoint written out instead of derived",
            *_of_forms(
                upsample_axis, lambda up: _gradient(lambda x: jnp.sum(jnp.sin(up(up(x, 1), 2))))
            ),
            (small,),
        ),
        "transposed": Case(
            "transposed convolution, 32 channels of 32 x 32, gradient in weights and input: "
            "one convolution to the four parities instead of a dilated one",
            *_of_forms(
                layers.transposed_convolution,
                lambda conv: jax.jit(
                    jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel))), (0, 1))
                ),
            ),
            (small, normal(3, 3, 32, 32)),
        ),
        "ncc": Case(
            "NCC 9 x 9, gradient: `reduce_window` along one axis after the other instead of a "
            "convolution with ones",
            _gradient(_ncc_by_convolution),
            _gradient(ncc),
            (moving, fixed),
        ),
        "smoothing": Case(
            "Gaussian of 3 px on half-size velocities, gradient: slices instead of a convolution",
            _gradient(lambda v: jnp.sum(jnp.sin(_smooth_by_convolution(v, 3.0)))),
            _gradient(lambda v: jnp.sum(jnp.sin(smooth_gaussian(v, 3.0)))),
            (u[:, ::2, ::2],),
        ),
    }
    return found | _layers(normal, batch, size) | _whole_method(moving, fixed, u)


def _layers(normal, batch, size) -> dict[str, Case]:
    """What the frozen encoder does on both images of every pair."""
    images, channels = 2 * batch, 16
    x, scale, bias = 1 + normal(images, size, size, channels), normal(channels), normal(channels)
    latent = (images, (size // 4) ** 2, 1, 32)

    def normalised(norm):
        return lambda *inputs: norm(*inputs, groups=8, epsilon=1e-6, dtype=jnp.float32)

    def convolved(conv):
        options = {"padding": ((1, 1), (1, 1)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return jax.jit(lambda x, kernel: conv(x, kernel, (1, 1), **options))

    def volumes(conv):
        options = {"padding": ((1, 1),) * 3, "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}
        return _gradient(lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel, (1, 1, 1), **options))))

    return {
        "convolution": Case(
            "convolution 3 x 3 of a pair, 256 channels of 64 x 64 (paper's size), forward: "
            "Winograd's method",
            *_of_forms(layers.convolution, convolved),
            (normal(2, size // 2, size // 2, 256), normal(3, 3, 256, 256)),
        ),
        "volume": Case(
            "convolution 3 x 3 x 3 of a pair, 48 channels of 8 x 64 x 64 to 16, gradient: "
            "convolutions of planes",
            *_of_forms(layers.convolution, volumes),
            (normal(2, 8, size // 2, size // 2, 48), normal(3, 3, 3, 48, 16)),
        ),
        "volume_head": Case(
            "the same, 16 channels to 3, of which all planes of the kernel are one convolution",
            *_of_forms(layers.convolution, volumes),
            (normal(2, 8, size // 2, size // 2, 16), normal(3, 3, 3, 16, 3)),
        ),
        "attention": Case(
            "attention over 32 x 32 positions of 32 channels, forward: heads among the batch "
            "instead of `jax.nn.dot_product_attention`",
            *_of_forms(layers.dot_product_attention, jax.jit),
            (normal(*latent), normal(*latent), normal(*latent)),
        ),
        "group_norm": Case(
            "GroupNorm of 16 channels in 8 groups, forward: means over positions, then over "
            "channels instead of `nn.GroupNorm`",
            *_of_forms(layers.normalise_groups, lambda norm: jax.jit(normalised(norm))),
            (x, scale, bias),
        ),
        "group_norm_gradient": Case(
            "the same, gradient",
            *_of_forms(
                layers.normalise_groups,
                lambda norm: _gradient(lambda *inputs: jnp.sum(jnp.sin(normalised(norm)(*inputs)))),
            ),
            (x, scale, bias),
        ),
    }


def _whole_method(moving, fixed, u) -> dict[str, Case]:
    config = experiment(CONFIG)
    method = build_method(config)
    frozen = jax.device_put(random_arrays(abstract_ldm(config), np.random.default_rng(0)))
    height, width = u.shape[1:3]

    def smoothed_at_full_size(v):
        v = smooth_gaussian(v, method.head.velocity_sigma)
        v = resize_displacement(v, (height // 2, width // 2))
        return resize_displacement(
            integrate_velocity(v, method.head.integration_steps), (height, width)
        )

    def one_by_one(frozen, moving, fixed):
        features = method.features(frozen, moving), method.features(frozen, fixed)
        return jax.tree.map(lambda *both: jnp.concatenate(both), *features)

    pair = moving[:1], fixed[:1]
    fixed_latent = jax.jit(method.features.encode)(frozen, pair[1])

    def objective(u, frozen, moving, fixed, latent):
        return method.objective(frozen, moving, fixed, u, fixed_latent=latent)["loss"]

    return {
        "velocity": Case(
            "velocity to displacement, gradient: smoothed after halving instead of before",
            _gradient(lambda v: jnp.mean(smoothed_at_full_size(v) ** 2)),
            _gradient(lambda v: jnp.mean(method.to_displacement(v) ** 2)),
            (u,),
            same=False,
        ),
        "features": Case(
            "frozen features of a pair: one batched call instead of two",
            jax.jit(one_by_one),
            jax.jit(lambda frozen, *pair: method.features(frozen, jnp.concatenate(pair))),
            (frozen, *pair),
        ),
        "refinement": Case(
            "gradient of the training loss, one pair: the fixed image's latent kept",
            _gradient(lambda *known: objective(*known[:-1], latent=None)),
            _gradient(objective),
            (u[:1], frozen, *pair, fixed_latent),
        ),
    }


def _of_forms(chosen, use: Callable) -> tuple[Callable, Callable]:
    """`use` of the straightforward form and of the one for the CPU (`models.backend`)."""
    return use(chosen.other), use(chosen.cpu)


def _gradient(function):
    """In the first argument; the others are arguments, too, lest XLA fold them as constants."""
    return jax.jit(jax.grad(function))


def _mse(a, b):
    return jnp.mean(jnp.square(a - b))


def _warp_by_map_coordinates(image, u):
    grid = np.stack(np.meshgrid(*map(np.arange, u.shape[1:3]), indexing="ij"), axis=-1)

    def one(image, at):
        return map_coordinates(image, [at[..., 0], at[..., 1]], order=1, mode="nearest")

    return jax.vmap(one)(image[..., 0], grid + u)[..., None]


def _ncc_by_convolution(a, b, window=9, eps=1e-5):
    def box_sum(x):
        ones = jnp.ones((window, window, 1, 1))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, ones, (1, 1), "SAME", dimension_numbers=numbers)

    sum_a, sum_b = box_sum(a), box_sum(b)
    cross = box_sum(a * b) - sum_a * sum_b / window**2
    variance_a = jnp.maximum(box_sum(a * a) - sum_a**2 / window**2, 0)
    variance_b = jnp.maximum(box_sum(b * b) - sum_b**2 / window**2, 0)
    return -jnp.mean(cross**2 / (variance_a * variance_b + eps))


def _smooth_by_convolution(u, sigma):
    radius, channels = int(3 * sigma + 0.5), u.shape[-1]
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = jnp.asarray(weights / weights.sum(), jnp.float32)
    u = jnp.pad(u, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        kernel = jnp.broadcast_to(
            weights.reshape(shape), (*weights.reshape(shape).shape[:3], channels)
        )
        u = jax.lax.conv_general_dilated(
            u,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
    return u


def _seconds(function, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", required=True, help="JSON file to write")
    args, found = parser.parse_args(), []
    for case in cases().values():
        times = []
        for _ in range(args.repeats + 1):
            times.append([_seconds(f, case.arguments) for f in (case.plain, case.ours)])
        plain, ours = map(statistics.median, zip(*times[1:], strict=True))
        found.append({"what": case.what, "plain_seconds": plain, "seconds": ours})
        print(f"{case.what}: {1e3 * plain:.1f} ms, ours {1e3 * ours:.1f}", flush=True)
    facts = {"environment": environment(), "repeats": args.repeats, "cases": found}
    Path(args.out).write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
