"""Local correlation against a plain loop, its gradient against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.ops.similarity import (
    correlation_gradient,
    gaussian_matrix,
    gaussian_window,
    local_correlation,
    smooth,
)

SHAPE = (2, 14, 11)


def images(seed):
    return np.random.default_rng(seed).uniform(size=SHAPE).astype(np.float32)


def test_smoothing_is_scipys_away_from_the_border():
    image = np.random.default_rng(0).normal(size=(1, 60, 50)).astype(np.float32)
    expected = ndimage.gaussian_filter(image, (0, 2, 2), truncate=8)
    np.testing.assert_allclose(
        smooth(image, 2.0)[:, 16:-16, 16:-16], expected[:, 16:-16, 16:-16], atol=1e-5
    )
    np.testing.assert_allclose(gaussian_matrix(9, 1.5).sum(axis=1), 1, rtol=1e-6)


def test_correlation_is_that_of_weighted_pixels():
    a, b = images(1), images(2)
    weight = (np.random.default_rng(3).uniform(size=SHAPE) > 0.3).astype(np.float32)
    found = local_correlation(a, b, gaussian_window(weight, 1.5), 1e-2)
    rows, columns = (np.asarray(gaussian_matrix(n, 1.5), np.float64) for n in SHAPE[1:])
    for n, i, j in ((0, 0, 0), (0, 7, 5), (1, 13, 3)):
        w = np.outer(rows[i], columns[j]) * weight[n]
        w /= w.sum()
        da, db = (x[n] - (w * x[n]).sum() for x in (a.astype(float), b.astype(float)))
        variances = [(w * d * d).sum() + 1e-2 for d in (da, db)]
        expected = (w * da * db).sum() / np.sqrt(np.prod(variances))
        np.testing.assert_allclose(found[n, i, j], expected, atol=1e-5)


def test_neither_gain_nor_offset_counts():
    a = images(4)
    window = gaussian_window(jnp.ones(SHAPE), 2.0)
    np.testing.assert_allclose(local_correlation(a, 0.5 * a + 0.2, window, 1e-9), 1, atol=1e-3)
    np.testing.assert_allclose(local_correlation(a, -a, window, 1e-9), -1, atol=1e-3)
    flat = jnp.full(SHAPE, 0.3)
    np.testing.assert_allclose(local_correlation(a, flat, window, 1e-3), 0, atol=1e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_autodiff(masked):
    a, b = images(5), images(6)
    weight = np.ones(SHAPE, np.float32)
    if masked:
        weight[:, :, 7:] = 0
    window = gaussian_window(jnp.asarray(weight), 1.7)
    found = correlation_gradient(jnp.concatenate([a, b]), window, 1e-2)
    np.testing.assert_allclose(found.value, local_correlation(a, b, window, 1e-2), atol=1e-6)
    expected = jax.grad(
        lambda pair: local_correlation(pair[0], pair[1], window, 1e-2).sum(), allow_int=False
    )((jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(found.gradient, np.concatenate(expected), atol=2e-4)
    if masked:
        assert not found.gradient[:, :, 7:].any()


def test_exchanged_images_exchange_the_gradient():
    a, b = images(7), images(8)
    window = gaussian_window(jnp.ones(SHAPE), 1.7)
    there = correlation_gradient(jnp.concatenate([a, b]), window, 1e-2)
    back = correlation_gradient(jnp.concatenate([b, a]), window, 1e-2)
    for forward, backward in zip(there[1:], back[1:], strict=True):
        np.testing.assert_allclose(forward, jnp.roll(backward, 2, axis=0), rtol=1e-5, atol=1e-6)
