"""The denoising network of DiffuseMorph (Kim et al., ECCV 2022): a conditional U-Net, as in SR3.

It predicts the noise in a noisy fixed image, given the moving and the fixed image. The deformation
network that reads its output is `cyclemorph.DeformationUNet`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import (
    conv,
    dot_product_attention,
    group_norm,
    time_angles,
    upsample_nearest,
)
from ldm_morph_jax.models.swin import check_image_size

# of every convolution and linear map
ORTHOGONAL = {"kernel_init": nn.initializers.orthogonal(), "bias_init": nn.initializers.zeros}


def norm_swish(x: jax.Array, groups: int, *, name: str) -> jax.Array:
    """GroupNorm and Swish; called inside `nn.compact`."""
    return nn.silu(group_norm(x, groups, epsilon=1e-5, name=name))


class TimeResidualBlock(nn.Module):
    """Two convolutions, the time added in between, plus the input: `[B, H, W, features]`."""

    features: int
    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = norm_swish(x, self.norm_groups, name="norm1")
        h = conv(h, self.features, name="conv1", **ORTHOGONAL)
        time = nn.Dense(self.features, name="time", **ORTHOGONAL)(nn.silu(embedding))
        h = norm_swish(h + time[:, None, None, :], self.norm_groups, name="norm2")
        h = conv(h, self.features, name="conv2", **ORTHOGONAL)
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, name="shortcut", **ORTHOGONAL)
        return x + h


class GlobalAttention(nn.Module):
    """Self-attention over all positions with one head, plus the input: keeps `[B, H, W, C]`."""

    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = group_norm(x, self.norm_groups, epsilon=1e-5, name="norm")
        qkv = conv(h, 3 * channels, 1, bias=False, name="qkv", **ORTHOGONAL)
        qkv = qkv.reshape(batch, height * width, 1, 3 * channels)
        h = dot_product_attention(*jnp.split(qkv, 3, axis=-1))
        return x + conv(h.reshape(x.shape), channels, 1, name="out", **ORTHOGONAL)


class DenoisingUNet(nn.Module):
    """The noise in x_t, `[B, H, W, 1]`, from moving, fixed and x_t `[B, H, W, 1]` in [-1, 1].

    Level l has base_channels * channel_multipliers[l] channels at 1/2^l of the size. There is
    attention only at the bottleneck, because the published configuration requests it at a
    resolution that no level has. t is `[B]`, 0-based. H and W must be multiples of 2^(levels - 1)
    (ValueError).
    """

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 1  # and one more per level on the way up
    norm_groups: int = 32

    @nn.compact
    def __call__(
        self, moving: jax.Array, fixed: jax.Array, noisy: jax.Array, t: jax.Array
    ) -> jax.Array:
        x = jnp.concatenate([moving, fixed, noisy], axis=-1)
        check_image_size(x, 2 ** (len(self.channel_multipliers) - 1))
        embedding = self._time_embedding(t)

        def residual(x, features, name):
            return TimeResidualBlock(features, self.norm_groups, name=name)(x, embedding)

        x = conv(x, self.base_channels, name="stem", **ORTHOGONAL)
        skips = [x]
        for level, multiplier in enumerate(self.channel_multipliers):
            if level:
                x = conv(x, x.shape[-1], stride=2, name=f"down{level}", **ORTHOGONAL)
                skips.append(x)
            for block in range(self.residual_blocks):
                x = residual(x, self.base_channels * multiplier, f"encoder{level}_block{block}")
                skips.append(x)

        x = residual(x, x.shape[-1], "middle_block0")
        x = GlobalAttention(self.norm_groups, name="middle_attention")(x)
        x = residual(x, x.shape[-1], "middle_block1")

        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for block in range(self.residual_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = residual(x, self.base_channels * multiplier, f"decoder{level}_block{block}")
            if level:
                x = conv(upsample_nearest(x), x.shape[-1], name=f"up{level}", **ORTHOGONAL)
        x = norm_swish(x, self.norm_groups, name="norm_out")
        return conv(x, 1, name="conv_out", **ORTHOGONAL)

    def _time_embedding(self, t):
        angle = time_angles(t, self.base_channels // 2)
        h = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        h = nn.Dense(4 * self.base_channels, name="time0", **ORTHOGONAL)(h)
        return nn.Dense(self.base_channels, name="time1", **ORTHOGONAL)(nn.silu(h))
