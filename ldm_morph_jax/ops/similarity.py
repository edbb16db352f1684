"""Local correlation of two images and its hand-written gradient.

These dominate the run time of registration without a network. Windows are Gaussian, see
`separable`. Images are `[B, *space]` here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldm_morph_jax.ops import separable


class Window(NamedTuple):
    """Weighted means around every pixel; made by `gaussian_window`.

    matrices: that smooth along each axis of space.
    weight: `[B, *space]`, the weight of each pixel.
    total: `[B, *space]`, the smoothed weight around every pixel; infinite where it is zero.
    """

    matrices: tuple[jax.Array, ...]
    weight: jax.Array
    total: jax.Array

    def mean(self, x: jax.Array) -> jax.Array:
        """`[..., B, *space]`: the mean around every pixel."""
        return separable.apply(self.matrices, x * self.weight) / self.total

    def adjoint(self, x: jax.Array) -> jax.Array:
        """The transpose of `mean`: turns derivatives by the means into ones by the pixels."""
        transposed = [matrix.T for matrix in self.matrices]
        return separable.apply(transposed, x / self.total) * self.weight


def gaussian_window(weight: jax.Array, sigmas: Sequence[float]) -> Window:
    """Gaussian means of one sigma for each axis of space, in pixels.

    Every pixel counts `weight` `[B, *space]` >= 0.
    """
    matrices = tuple(
        separable.gaussian_matrix(n, sigma)
        for n, sigma in zip(weight.shape[1:], sigmas, strict=True)
    )
    total = separable.apply(matrices, weight)
    return Window(matrices, weight, jnp.where(total > 1e-6, total, jnp.inf))


def local_correlation(
    a: jax.Array, b: jax.Array, window: Window, floor: jax.Array | float
) -> jax.Array:
    """Correlation of `[B, *space]` images around every pixel, in [-1, 1].

    cov(a, b) / sqrt((var(a) + floor) (var(b) + floor)). The floor, a variance, suppresses noise in
    flat regions: for intensities in [0, 1], a deviation of sqrt(floor) counts by half.
    """
    return _moments(jnp.stack([a, b]), window, floor)[2]


class CorrelationGradient(NamedTuple):
    """value: local correlation `[B, *space]`, the same for both images.

    gradient: `[2B, *space]`, of its sum, in which every pixel counts its weight, with respect to
      the pixels of the first and second image.
    precision: `[2B, *space]`, the mean of 1 / (variance + floor) around every pixel of each image;
      multiplied by squared contrast, it is how well the correlation locates that contrast.
    """

    value: jax.Array
    gradient: jax.Array
    precision: jax.Array


def correlation_gradient(
    images: jax.Array, window: Window, floor: jax.Array | float
) -> CorrelationGradient:
    """`local_correlation` of pairs and its gradient.

    Args:
        images: `[2B, *space]`, all first and then all second images. Both halves go through the
            same operations, so exchanging them exchanges the results.
        window, floor: see `local_correlation`.
    """
    pairs = images.reshape(2, -1, *images.shape[1:])
    mean, variance, correlation = _moments(pairs, window, floor)
    # d correlation = scale d cov - correlation / (2 var_a) d var_a - the same of b
    scale = lax.rsqrt(variance[0] * variance[1])[None]
    ratio, other = correlation[None] / variance, mean[::-1]
    derivatives = jnp.concatenate([scale, scale * other, ratio, ratio * mean, 1 / variance])
    spread = window.adjoint(window.weight * derivatives)
    by_scale, by_other, by_ratio, by_mean, precision = (
        spread[0:1],
        spread[1:3],
        spread[3:5],
        spread[5:7],
        spread[7:9],
    )
    gradient = by_scale * pairs[::-1] - by_other - by_ratio * pairs + by_mean
    return CorrelationGradient(
        correlation, gradient.reshape(images.shape), precision.reshape(images.shape)
    )


def _moments(pairs, window, floor):
    """mean `[2, B, *space]`, variance `[2, B, *space]` with the floor, correlation `[B, *space]`"""
    means = window.mean(jnp.concatenate([pairs, pairs * pairs, pairs[:1] * pairs[1:]]))
    mean = means[:2]
    # rounding can make the variance of a flat patch negative
    variance = jnp.maximum(means[2:4] - mean * mean, 0) + floor
    covariance = means[4] - mean[0] * mean[1]
    return mean, variance, covariance * lax.rsqrt(variance[0] * variance[1])
