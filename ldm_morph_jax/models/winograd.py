"""Convolutions of many channels with fewer multiplications, for XLA's CPU backend.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, Sec. 4.1): 16 instead of 36 multiplications per 2 x 2 outputs, as 16 matrix
products over the channels. Rounding errors are of the order of a direct convolution's.
"""

import jax
import jax.numpy as jnp

# smaller convolutions are as fast without it
CHANNELS, POSITIONS = 128, 2 * 32 * 32


def convolution(x, kernel, strides, padding, **options):
    """`jax.lax.conv_general_dilated`, channel-last, by Winograd's method where that is faster.

    That is with many channels at many positions, stride 1 and a 3 x 3 kernel that keeps an even
    size; in float32 only, as bfloat16 would round the sums of inputs.
    """
    batch, height, width, channels = x.shape
    faster = (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and all(tuple(side) == (1, 1) for side in padding)
        and min(channels, kernel.shape[3]) >= CHANNELS
        and batch * height * width >= POSITIONS
        and height % 2 == width % 2 == 0
        and x.dtype == kernel.dtype == jnp.float32
    )
    if faster:
        return same_convolution(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _direct(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


@jax.custom_vjp
def same_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[B, H, W, C]`, `[3, 3, C, features] -> [B, H, W, features]`, zeros outside; H, W even.

    The gradient is that of the direct convolution, which is as fast and stores only the input.
    """
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inputs = [_windows(row, 2) for row in _windows(x, 1)]
    weights = [_weights(row) for row in _weights(kernel)]
    # without the barrier XLA would compute them again in each of the products
    inputs, weights = jax.lax.optimization_barrier((inputs, weights))
    products = [
        [jnp.matmul(a, b) for a, b in zip(*row, strict=True)]
        for row in zip(inputs, weights, strict=True)
    ]
    columns = zip(*(_outputs(*row) for row in products), strict=True)  # left, right
    corners = [jnp.stack(_outputs(*column), axis=2) for column in columns]
    return jnp.stack(corners, axis=4).reshape(batch, height, width, -1)


same_convolution.defvjp(
    lambda x, kernel: (same_convolution(x, kernel), (x, kernel)),
    lambda inputs, gradient: jax.vjp(_direct, *inputs)[1](gradient),
)


def _windows(x, axis):
    """B^T d: sums of the four inputs that two outputs need, for all windows along an axis."""
    size = x.shape[axis] - 2
    a, b, c, d = (jax.lax.slice_in_dim(x, k, k + size - 1, 2, axis) for k in range(4))
    return a - c, b + c, c - b, b - d


def _weights(kernel):
    """G g, along the first axis."""
    a, b, c = kernel
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _outputs(a, b, c, d):
    """A^T m: the two outputs of a window."""
    return a + b + c, b - c - d
