"""Local correlation against a plain loop, its gradient against JAX's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.ops.separable import gaussian_matrix
from ldm_morph_jax.ops.similarity import correlation_gradient, gaussian_window, local_correlation

SHAPE = (2, 14, 11)
VOLUMES = (2, 5, 9, 8)
SIGMAS = {SHAPE: (1.7, 1.7), VOLUMES: (0.6, 1.7, 1.4)}


def images(seed, shape=SHAPE):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [SHAPE, VOLUMES])
def test_correlation_is_that_of_weighted_pixels(shape):
    a, b = images(1, shape), images(2, shape)
    weight = (images(3, shape) > 0.3).astype(np.float32)
    found = local_correlation(a, b, gaussian_window(weight, SIGMAS[shape]), 1e-2)
    matrices = [
        np.asarray(gaussian_matrix(n, sigma), np.float64)
        for n, sigma in zip(shape[1:], SIGMAS[shape], strict=True)
    ]
    for n, share in ((0, 0.0), (0, 0.5), (1, 0.9)):
        at = [int(share * size) for size in shape[1:]]
        w = functools.reduce(np.multiply.outer, [m[i] for m, i in zip(matrices, at, strict=True)])
        w = w * weight[n]
        w /= w.sum()
        da, db = (x[n] - (w * x[n]).sum() for x in (a.astype(float), b.astype(float)))
        variances = [(w * d * d).sum() + 1e-2 for d in (da, db)]
        expected = (w * da * db).sum() / np.sqrt(np.prod(variances))
        np.testing.assert_allclose(found[(n, *at)], expected, atol=1e-5)


def test_neither_gain_nor_offset_counts():
    a = images(4)
    window = gaussian_window(jnp.ones(SHAPE), (2.0, 2.0))
    np.testing.assert_allclose(local_correlation(a, 0.5 * a + 0.2, window, 1e-9), 1, atol=1e-3)
    np.testing.assert_allclose(local_correlation(a, -a, window, 1e-9), -1, atol=1e-3)
    flat = jnp.full(SHAPE, 0.3)
    np.testing.assert_allclose(local_correlation(a, flat, window, 1e-3), 0, atol=1e-2)


@pytest.mark.parametrize("shape", [SHAPE, VOLUMES])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_autodiff(shape, masked):
    a, b = images(5, shape), images(6, shape)
    weight = np.ones(shape, np.float32)
    if masked:
        weight[..., :6] = np.linspace(0.1, 1, 6)
        weight[..., 6:] = 0
    window = gaussian_window(jnp.asarray(weight), SIGMAS[shape])
    found = correlation_gradient(jnp.concatenate([a, b]), window, 1e-2)
    np.testing.assert_allclose(found.value, local_correlation(a, b, window, 1e-2), atol=1e-6)
    expected = jax.grad(
        lambda pair: (weight * local_correlation(*pair, window, 1e-2)).sum(), allow_int=False
    )((jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(found.gradient, np.concatenate(expected), atol=2e-4)
    if masked:
        assert not found.gradient[..., 6:].any()


def test_exchanged_images_exchange_the_gradient():
    a, b = images(7), images(8)
    window = gaussian_window(jnp.ones(SHAPE), (1.7, 1.7))
    there = correlation_gradient(jnp.concatenate([a, b]), window, 1e-2)
    back = correlation_gradient(jnp.concatenate([b, a]), window, 1e-2)
    for forward, backward in zip(there[1:], back[1:], strict=True):
        np.testing.assert_allclose(forward, jnp.roll(backward, 2, axis=0), rtol=1e-5, atol=1e-6)
