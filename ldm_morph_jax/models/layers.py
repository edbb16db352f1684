"""Layers shared by the networks: convolutions and linear maps with the published initialisation.

Everything is channel-last, `[B, H, W, C]`. The published networks keep PyTorch's defaults where
nothing else is said: weights and biases uniform in +-1/sqrt(fan_in), normalisation eps as given.
`dtype` is the compute type; parameters stay float32, and so do statistics and softmax.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = Any


def recomputed(block: type[nn.Module], remat: bool, **options) -> type[nn.Module]:
    """The module `block`; with `remat`, of its activations only the input is kept.

    The backward pass computes the others again: the same numbers from less memory, for about one
    more forward pass. `options` are those of `nn.remat`. Give the module a name: the automatic one
    would differ.
    """
    return nn.remat(block, **options) if remat else block


# uniform in +-1/sqrt(fan_in): PyTorch's default for the weights of convolutions and linear maps
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int):
    """Initialise a bias uniformly in +-1/sqrt(fan_in), which its shape does not tell."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    features: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None,
    bias: bool = True,
    kernel_init=uniform_fan_in,
    bias_init=None,
    dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> jax.Array:
    """Square convolution `[B, H, W, C] -> [B, H', W', features]`, called inside `nn.compact`.

    `padding` is the number of zeros on every side (default: half the kernel, so that stride 1
    keeps the size) or explicit ((top, bottom), (left, right)).
    """
    if padding is None:
        padding = kernel_size // 2
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=(stride, stride),
        padding=padding,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=bias_init or uniform_bias(kernel_size * kernel_size * x.shape[-1]),
        dtype=dtype,
        name=name,
    )(x)


# weights of a transposed convolution (kernel 3, stride 2) by [output parity, input, weight], along
# one axis: output 2i reads input i with weight 1, output 2i + 1 inputs i and i + 1 with 2 and 0
_PARITIES = np.array([[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]], np.float32)


class ConvTranspose(nn.Module):
    """3x3 transposed convolution that doubles the size: `[B, H, W, C] -> [B, 2H, 2W, features]`.

    Outputs and weights are placed as in PyTorch's kernel 3, stride 2, padding 1, output padding 1.
    Computed as one 2x2 convolution to the four parities of the output: the gradient of the weights
    of XLA's transposed convolution takes 5 to 20 times as long on a CPU.
    """

    features: int
    kernel_init: Callable = uniform_fan_in
    bias_init: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, self.features))
        bias_init = self.bias_init or uniform_bias(9 * self.features)  # PyTorch's fan-in here
        bias = self.param("bias", bias_init, (self.features,))

        kernel = jnp.einsum("prk,qsl,klio->rsipqo", _PARITIES, _PARITIES, kernel)
        x = jax.lax.conv_general_dilated(
            x,
            kernel.reshape(2, 2, channels, 4 * self.features),
            window_strides=(1, 1),
            padding=((0, 1), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = x.reshape(batch, height, width, 2, 2, self.features).swapaxes(2, 3)
        return x.reshape(batch, 2 * height, 2 * width, self.features) + bias[None, None, None]


def near_zero_head(x: jax.Array, *, dtype: Dtype = jnp.float32) -> jax.Array:
    """Last 3x3 convolution to two channels, named "head", called inside `nn.compact`.

    Weights of standard deviation 1e-5 and zero biases: training starts at almost no motion.
    """
    return conv(
        x,
        2,
        kernel_init=nn.initializers.normal(1e-5),
        bias_init=nn.initializers.zeros,
        dtype=dtype,
        name="head",
    )


def dense(
    x: jax.Array,
    features: int,
    *,
    bias: bool = True,
    kernel_init=uniform_fan_in,
    dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> jax.Array:
    """Linear map over the last axis `[..., C] -> [..., features]`, called inside `nn.compact`."""
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=uniform_bias(x.shape[-1]),
        dtype=dtype,
        name=name,
    )(x)


class GroupNorm(nn.Module):
    """`nn.GroupNorm` of `[B, H, W, C]`: the same numbers, the same parameters "scale" and "bias".

    Positions are averaged first and the channels of a group after that, which XLA's CPU does up to
    ten times faster than both at once (docs/performance.md). Inside, all is float32.
    """

    groups: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(y):
            y = jnp.mean(y, axis=(1, 2)).reshape(batch, self.groups, -1)
            y = jnp.broadcast_to(jnp.mean(y, axis=-1, keepdims=True), y.shape)
            return y.reshape(batch, 1, 1, channels)

        x = x.astype(jnp.float32)
        mean = group_mean(x)
        variance = jnp.maximum(group_mean(x**2) - mean**2, 0)
        scale, bias = (leaf[None, None, None] for leaf in (scale, bias))
        x = (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return x.astype(self.dtype)


def group_norm(
    x: jax.Array,
    groups: int,
    *,
    epsilon: float,
    dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> jax.Array:
    """GroupNorm with `groups` groups, 32 as published (fewer channels: one group per channel).

    Narrow networks want fewer groups: where a group is one channel, the norm removes whatever is
    added to that channel everywhere, which is how a U-Net block is told the time. ValueError where
    the channels do not divide into groups.
    """
    channels = x.shape[-1]
    groups = min(groups, channels)
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups of GroupNorm")
    return GroupNorm(groups, epsilon, dtype=dtype, name=name)(x)


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(query key^T / sqrt(C)) value over all N positions, `[B, N, heads, C]` three times.

    What `jax.nn.dot_product_attention` computes, softmax in float32; with the heads among the batch
    XLA's CPU takes a third of the time where channels are few (docs/performance.md).
    """
    batch, positions, heads, channels = query.shape
    query, key, value = (
        x.swapaxes(1, 2).reshape(batch * heads, -1, channels) for x in (query, key, value)
    )
    scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
    weights = nn.softmax(scores * channels**-0.5).astype(value.dtype)
    out = jnp.einsum("bqk,bkc->bqc", weights, value)
    return out.reshape(batch, heads, positions, channels).swapaxes(1, 2)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every pixel twice along rows and columns: `[B, H, W, C] -> [B, 2H, 2W, C]`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def upsample_bilinear(x: jax.Array) -> jax.Array:
    """Linear interpolation to twice the size, `[B, H, W, C] -> [B, 2H, 2W, C]`.

    Pixel centres at half integers (PyTorch's align_corners false), border values repeated outside.
    """
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
