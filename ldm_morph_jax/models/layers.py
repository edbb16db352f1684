"""Layers shared by the networks: convolutions and linear maps with the published initialisation.

Everything is channel-last, `[B, H, W, C]`. The published networks keep PyTorch's defaults where
nothing else is said: weights and biases uniform in +-1/sqrt(fan_in), normalisation eps as given.
`dtype` is the compute type; parameters stay float32, and so do statistics and softmax.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    added to that channel everywhere, which is how a U-Net block is told the time.
    """
    return nn.GroupNorm(
        num_groups=min(groups, x.shape[-1]), epsilon=epsilon, dtype=dtype, name=name
    )(x)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every pixel twice along rows and columns: `[B, H, W, C] -> [B, 2H, 2W, C]`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
