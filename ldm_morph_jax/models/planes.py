"""Convolutions of volumes as sums of convolutions of planes, for XLA's CPU backend.

Its own convolution of volumes and the gradients of that take several times as long.
"""

import jax
import jax.numpy as jnp

from ldm_morph_jax.models import winograd

FEW_FEATURES = 8  # a convolution of planes to fewer features takes as long


def convolution(x, kernel, strides, padding, **options):
    """`jax.lax.conv_general_dilated` without dilation, channel-last; images as `winograd` does.

    A volume's is the sum, over the kernel's planes, of convolutions of all planes of the volume.
    """
    if x.ndim == 4:
        return winograd.convolution(x, kernel, strides, padding, **options)
    batch, depth, *space, channels = x.shape
    (before, after), *padding = padding
    stride, *strides = strides
    count = (depth + before + after - len(kernel)) // stride + 1
    ends = ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2))

    def convolved(planes, weights):
        planes = planes.reshape(-1, *space, channels)
        numbers = ("NHWC", "HWIO", "NHWC")
        return winograd.convolution(planes, weights, strides, padding, dimension_numbers=numbers)

    def selected(planes, first):
        last = first + (count - 1) * stride + 1
        return jax.lax.slice_in_dim(planes, first, last, stride, axis=1)

    if kernel.shape[-1] <= FEW_FEATURES:  # of all planes of the kernel at once
        features = convolved(x, jnp.concatenate(list(kernel), axis=-1))
        features = jnp.pad(features.reshape(batch, depth, *features.shape[1:]), ends)
        parts = jnp.split(features, len(kernel), axis=-1)
        return sum(selected(part, first) for first, part in enumerate(parts))
    x = jnp.pad(x, ends)
    total = sum(convolved(selected(x, first), weights) for first, weights in enumerate(kernel))
    return total.reshape(batch, count, *total.shape[1:])
