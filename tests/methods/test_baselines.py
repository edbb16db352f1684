"""The other learned methods: sizes, losses, what they register, and that training them works."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_morph_jax.config import method_config, paper_config, with_method
from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.cyclemorph import CycleMorph
from ldm_morph_jax.methods.diffusemorph import DiffuseMorph
from ldm_morph_jax.methods.velocity import VelocityHead
from ldm_morph_jax.methods.voxelmorph import VoxelMorph
from ldm_morph_jax.ops.diffusion import linear_beta_schedule
from ldm_morph_jax.ops.geometry import resize_displacement, warp
from ldm_morph_jax.ops.losses import ncc, smoothness
from ldm_morph_jax.training.optimiser import adam

pytestmark = pytest.mark.integration

PARAMETERS = {
    "voxelmorph": 109_170,
    "cyclemorph": 2 * 120_602,
    "transmorph": 31_013_570,
    "transmatch": 51_582_146,
    "diffusemorph": 15_936_129 + 74_736_258,
}
SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
TINY = {  # what makes the small networks tiny
    "voxelmorph": {"encoder_channels": (8,) * 4, "decoder_channels": (8,) * 4},
    "cyclemorph": {"encoder_channels": (8,) * 5, "decoder_channels": (8,) * 5},
    "transmorph": SWIN,
    "transmatch": SWIN | {"cross_depth": 1},
    "diffusemorph": {
        "denoiser": {"base_channels": 8, "channel_multipliers": (1, 2)},
        "deformation": {"encoder_channels": (8,) * 3, "decoder_channels": (8,) * 3},
    },
}


def tiny_config(name):
    config = with_method(paper_config(), name, "small")
    config.registration.model.update(TINY[name])
    config.registration.train.update(steps=50, warmup_steps=0)
    return config


@functools.cache
def batch():
    pairs = [phantom_pair(seed, image_size=32) for seed in (1, 2)]
    return {
        side: np.stack([getattr(pair, side) for pair in pairs])[..., None]
        for side in ("moving", "fixed")
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_at_the_papers_size(name):
    method = build_method(with_method(paper_config(), name))
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), (128, 128)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_few_training_steps_lower_the_loss(name):
    config = tiny_config(name)
    method, images = build_method(config), batch()
    optimiser = adam(config.registration.train, **config.registration.optimiser)
    params = jax.jit(lambda: method.init(jax.random.key(0), (32, 32)))()
    state, key = optimiser.init(params), jax.random.key(1)

    @jax.jit
    def step(params, state):  # the same key: the same draws in every step
        (_, terms), gradient = jax.value_and_grad(method.loss, has_aux=True)(
            params, {}, images, key, 0
        )
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, terms

    history = []
    for _ in range(12):
        params, state, terms = step(params, state)
        history.append(jax.device_get(terms))
    assert all(np.isfinite(list(terms.values())).all() for terms in history)
    losses = [float(terms["loss"]) for terms in history]
    assert losses[-1] < losses[0] and min(losses) == min(losses[6:])

    u = jax.jit(method.displacement)(params, {}, images["moving"], images["fixed"])
    assert u.shape == (2, 32, 32, 2) and np.all(np.isfinite(u)) and np.abs(u).max() > 1e-3
    terms = method.objective({}, images["moving"], images["fixed"], u)
    similarity = terms["ncc" if name == "cyclemorph" else "pixel"]
    weight = method_config(name).smoothness_weight
    assert float(terms["loss"]) == pytest.approx(float(similarity + weight * terms["smoothness"]))


# -- VoxelMorph


class Constant(nn.Module):
    """The same displacement everywhere, its only parameter."""

    @nn.compact
    def __call__(self, moving, fixed, *, train=False):
        u = self.param("u", nn.initializers.constant(jnp.array([1.0, -2.0])), (2,))
        return jnp.broadcast_to(u, (*moving.shape[:3], 2))


class Waves(nn.Module):
    """A displacement that changes from pixel to pixel."""

    @nn.compact
    def __call__(self, moving, fixed, *, train=False):
        rows, columns = jnp.meshgrid(*map(jnp.arange, moving.shape[1:3]), indexing="ij")
        u = jnp.stack([3 * jnp.sin(columns / 3.0), jnp.cos(rows / 4.0)], axis=-1)
        return jnp.broadcast_to(u, (*moving.shape[:3], 2))


def test_voxelmorph_integrates_a_velocity_when_asked_to():
    images = batch()
    pair = images["moving"], images["fixed"]
    params, head = {"u": jnp.array([1.0, -2.0])}, VelocityHead(7)
    u = VoxelMorph(Constant(), 0.01, head).displacement(params, {}, *pair)
    np.testing.assert_allclose(u, np.broadcast_to([1.0, -2.0], u.shape), atol=1e-5)

    plain, integrated = (
        VoxelMorph(Waves(), 0.01, VelocityHead(steps), "velocity") for steps in (0, 7)
    )
    u, v = plain.displacement({}, {}, *pair), integrated.displacement({}, {}, *pair)
    assert np.abs(u - v).max() > 0.2
    terms = integrated.loss({}, {}, images, jax.random.key(0), 0)[1]
    at_half_size = smoothness(resize_displacement(u, (16, 16)))
    np.testing.assert_allclose(terms["smoothness"], at_half_size, rtol=1e-5)
    expected = np.mean((warp(jnp.asarray(pair[0]), v) - pair[1]) ** 2)
    np.testing.assert_allclose(terms["pixel"], expected, rtol=1e-5)


# -- CycleMorph


def moved(image, shift):
    """image(x + shift) along the columns, the border repeated."""
    columns = np.clip(np.arange(image.shape[2]) + shift, 0, image.shape[2] - 1)
    return image[:, :, columns]


def test_cyclemorph_terms_by_hand():
    """Generators that shift by 3 and by -2 columns, whatever they see."""
    method = CycleMorph(Constant(), cycle_weight=0.2, identity_weight=0.4)
    params = {
        "forward": {"u": jnp.array([0.0, 3.0])},
        "backward": {"u": jnp.array([0.0, -2.0])},
    }
    moving, fixed = batch()["moving"], batch()["fixed"]
    total, terms = method.loss(params, {}, batch(), jax.random.key(0), 0)

    there_and_back = moved(moved(moving, 3), -2)  # first forward, then backward
    back_and_there = moved(moved(fixed, -2), 3)
    cycle = np.abs(there_and_back - moving).mean() + np.abs(back_and_there - fixed).mean()
    np.testing.assert_allclose(terms["cycle"], cycle, rtol=1e-5)
    identity = ncc(fixed, moved(fixed, 3)) + ncc(moving, moved(moving, -2))
    np.testing.assert_allclose(terms["identity"], identity, rtol=1e-5)
    similarity = ncc(fixed, moved(moving, 3)) + ncc(moving, moved(fixed, -2))
    np.testing.assert_allclose(terms["ncc"], similarity, rtol=1e-5)
    assert terms["smoothness"] == 0
    np.testing.assert_allclose(total, similarity + 0.2 * cycle + 0.4 * identity, rtol=1e-5)
    u = method.displacement(params, {}, moving, fixed)
    np.testing.assert_array_equal(u, np.broadcast_to([0.0, 3.0], u.shape))


# -- DiffuseMorph


class Echo(nn.Module):
    """Stands for the denoiser: tells what it was given."""

    @nn.compact
    def __call__(self, moving, fixed, noisy, t):
        return moving + 100 * (noisy - fixed) + 1000 * t[:, None, None, None]


class Latest(nn.Module):
    """Stands for the denoiser: what it was given as x_t."""

    @nn.compact
    def __call__(self, moving, fixed, noisy, t):
        return noisy


class SideBySide(nn.Module):
    """Stands for the deformation network: its two inputs as components, times a factor."""

    factor: Any = 1.0

    @nn.compact
    def __call__(self, moving, noise):
        return self.factor * jnp.concatenate([moving, noise], axis=-1)


def test_diffusemorph_registers_at_time_zero_without_noise():
    schedule = linear_beta_schedule(2000, 1e-6, 1e-2)
    method = DiffuseMorph(Echo(), SideBySide(), schedule)
    params = {"denoiser": {}, "deformation": {}}
    moving, fixed = batch()["moving"], batch()["fixed"]
    for eta in (0.0, 0.25, 1.0):
        u = method.field(params, {}, moving, fixed, eta=eta)
        expected = np.concatenate([2 * moving - 1, eta * (2 * moving - 1)], axis=-1)
        np.testing.assert_allclose(u, expected, atol=1e-6)
    np.testing.assert_array_equal(u, method.displacement(params, {}, moving, fixed))  # eta = 1


def test_diffusemorph_loss_by_hand():
    """With nearly no noise x_t is the fixed image, in [-1, 1]; images are compared in [0, 1]."""
    schedule = linear_beta_schedule(1, 1e-12, 1e-12)
    method = DiffuseMorph(Latest(), SideBySide(0.0), schedule, registration_weight=3.0)
    key, (moving, fixed) = jax.random.key(0), (batch()["moving"], batch()["fixed"])
    params = {"denoiser": {}, "deformation": {}}
    total, terms = method.loss(params, {}, batch(), key, 0)
    pixel = np.mean((moving - fixed) ** 2)
    np.testing.assert_allclose(terms["pixel"], pixel, rtol=1e-5)
    # eps is standard normal and independent of the image: 1 + mean square, to a few percent
    np.testing.assert_allclose(terms["diffusion"], 1 + np.mean((2 * fixed - 1) ** 2), rtol=0.1)
    np.testing.assert_allclose(total, terms["diffusion"] + 3 * pixel, rtol=1e-5)


def test_diffusemorph_schedule():
    abar = linear_beta_schedule(2000, 1e-6, 1e-2).alphas_cumprod
    np.testing.assert_allclose(
        abar[[0, 200, 999, 1999]], [0.999999, 0.904, 0.0818, 4.4e-5], rtol=5e-3
    )
