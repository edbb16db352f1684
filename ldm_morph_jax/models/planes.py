"""Convolutions of volumes as sums of convolutions of planes, for XLA's CPU backend.

Its own convolution of volumes and the gradients of that take several times as long.
"""

import jax
import jax.numpy as jnp

from ldm_morph_jax.models import winograd


def convolution(x, kernel, strides, padding, **options):
    """`jax.lax.conv_general_dilated` without dilation, channel-last; images as `winograd` does.

    A volume's is the sum, over the kernel's planes, of convolutions of all planes of the volume.
    """
    if x.ndim == 4:
        return winograd.convolution(x, kernel, strides, padding, **options)
    batch, depth, *space, channels = x.shape
    (before, after), *padding = padding
    stride, *strides = strides
    x = jnp.pad(x, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))
    count = (depth + before + after - len(kernel)) // stride + 1
    total = None
    for first, weights in enumerate(kernel):
        planes = jax.lax.slice_in_dim(x, first, first + (count - 1) * stride + 1, stride, axis=1)
        convolved = winograd.convolution(
            planes.reshape(batch * count, *space, channels),
            weights,
            strides,
            padding,
            precision=options.get("precision"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        total = convolved if total is None else total + convolved
    return total.reshape(batch, count, *total.shape[1:])
