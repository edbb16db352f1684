"""The denoising U-Net of the latent diffusion model (paper Sec. 3.1 and 3.2).

Its encoder is also the feature extractor of the registration method. `taps` returns each level's
first and last feature map (the paper's "first and third layers") and does not run the rest.
"""

from collections import OrderedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import (
    Dtype,
    conv,
    dense,
    dot_product_attention,
    group_norm,
    recomputed,
    time_angles,
    uniform_bias,
    uniform_fan_in,
    upsample_nearest,
)

EPSILON = 1e-5  # of every GroupNorm here

# of the last convolution of every block, and of the network: at the start they add nothing
ZEROS = {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.zeros}


class TimeEmbedding(nn.Module):
    """Time index `[B]` -> embedding `[B, 4 * base_channels]`: [cos | sin], then two linear maps."""

    base_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t):
        angle = time_angles(t, self.base_channels // 2)
        h = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        h = dense(h, 4 * self.base_channels, dtype=self.dtype, name="dense0")
        return dense(nn.silu(h), 4 * self.base_channels, dtype=self.dtype, name="dense1")


class ResidualBlock(nn.Module):
    """Two convs, the time added in between, plus the input: `[B, *space, C] -> [.., features]`."""

    features: int
    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, embedding):
        h = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm1")
        h = conv(nn.silu(h), self.features, dtype=self.dtype, name="conv1")
        time = dense(nn.silu(embedding), self.features, dtype=self.dtype, name="time")
        h = h + jnp.expand_dims(time, range(1, x.ndim - 1))
        h = group_norm(h, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm2")
        h = conv(nn.silu(h), self.features, **ZEROS, dtype=self.dtype, name="conv2")
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, dtype=self.dtype, name="shortcut")
        return x + h


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, plus the input: keeps `[B, *space, C]`."""

    head_channels: int
    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, *_, channels = x.shape
        if channels % self.head_channels:
            raise ValueError(
                f"U-Net attention: {channels} channels do not divide into heads of "
                f"{self.head_channels}"
            )
        heads = channels // self.head_channels
        h = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm")
        h = h.reshape(batch, -1, channels)
        # convolutions of width one over the positions, so that layouts match the published ones
        h = nn.Conv(
            3 * channels,
            (1,),
            kernel_init=uniform_fan_in,
            bias_init=uniform_bias(channels),
            dtype=self.dtype,
            name="qkv",
        )(h)
        h = h.reshape(batch, -1, heads, 3, self.head_channels)
        query, key, value = h[..., 0, :], h[..., 1, :], h[..., 2, :]
        h = dot_product_attention(query, key, value)
        h = h.reshape(batch, -1, channels)
        h = nn.Conv(channels, (1,), **ZEROS, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class _Half(nn.Module):
    """What encoder and decoder have in common; fields as in `UNet`."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    attention_levels: tuple[int, ...]
    head_channels: int
    norm_groups: int
    dtype: Dtype
    remat: bool

    def residual_block(self, x, embedding, features, name):
        block = recomputed(ResidualBlock, self.remat)
        return block(features, self.norm_groups, self.dtype, name=name)(x, embedding)

    def attention(self, x, name):
        attention = recomputed(SelfAttention, self.remat)
        return attention(self.head_channels, self.norm_groups, self.dtype, name=name)(x)

    def block(self, x, embedding, level, number):
        """A residual block, with attention where the level has it."""
        features = self.base_channels * self.channel_multipliers[level]
        x = self.residual_block(x, embedding, features, f"level{level}_block{number}")
        if level in self.attention_levels:
            x = self.attention(x, f"level{level}_attention{number}")
        return x


class Encoder(_Half):
    """Contracting half: `z [B, h, w, C]`, embedding `[B, E]` -> all its features by name, in order.

    Level l starts with a stem (level 0) or a downsampling convolution, then has its blocks:
    `level0/stem, level0/block0, level0/block1, level1/downsample, level1/block0, ...`.
    """

    @nn.compact
    def __call__(self, z, embedding) -> OrderedDict[str, jax.Array]:
        features = OrderedDict()  # jax.jit would return a plain dict sorted by name
        x = z
        for level in range(len(self.channel_multipliers)):
            if level == 0:
                x = conv(x, self.base_channels, dtype=self.dtype, name="level0_stem")
                features["level0/stem"] = x
            else:
                name = f"level{level}_downsample"
                x = conv(x, x.shape[-1], stride=2, padding=1, dtype=self.dtype, name=name)
                features[f"level{level}/downsample"] = x
            for number in range(self.residual_blocks):
                x = self.block(x, embedding, level, number)
                features[f"level{level}/block{number}"] = x
        return features


class Decoder(_Half):
    """Middle and expanding half: the encoder's features, the embedding -> eps `[B, h, w, C]`."""

    @nn.compact
    def __call__(self, features: OrderedDict[str, jax.Array], embedding, channels: int):
        skips = list(features.values())
        x = skips[-1]
        x = self.residual_block(x, embedding, x.shape[-1], "middle_block0")
        x = self.attention(x, "middle_attention")
        x = self.residual_block(x, embedding, x.shape[-1], "middle_block1")
        for level in reversed(range(len(self.channel_multipliers))):
            for number in range(self.residual_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self.block(x, embedding, level, number)
            if level > 0:
                x = upsample_nearest(x)
                x = conv(x, x.shape[-1], dtype=self.dtype, name=f"level{level}_upsample")
        x = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm_out")
        x = conv(nn.silu(x), channels, **ZEROS, dtype=self.dtype, name="conv_out")
        return x.astype(jnp.float32)


class UNet(nn.Module):
    """eps_theta(z, t) of a latent `[B, h, w, C]`; the defaults are the paper's (where C = 1).

    Latents of volumes are `[B, d, h, w, C]`.

    Level l has base_channels * channel_multipliers[l] channels at 1/2**l of the latent's size.
    `attention_levels` lists the levels with self-attention after every block, in heads of
    `head_channels`. Time is the 0-based index of the schedule. `dtype` is the compute type of the
    features; eps is always float32. `remat`: see `layers.recomputed`. Raises ValueError if the
    latent cannot be halved evenly.
    """

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4)
    residual_blocks: int = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_channels: int = 32
    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self):
        shape = (
            self.base_channels,
            self.channel_multipliers,
            self.residual_blocks,
            self.attention_levels,
            self.head_channels,
            self.norm_groups,
            self.dtype,
            self.remat,
        )
        self.time_embedding = TimeEmbedding(self.base_channels, self.dtype)
        self.encoder = Encoder(*shape)
        self.decoder = Decoder(*shape)

    def encode(self, z: jax.Array, t: jax.Array) -> OrderedDict[str, jax.Array]:
        """All encoder features of `z [B, h, w, C]` at time `t [B]`, by name and in order."""
        return self._encode(z, t)[0]

    def taps(self, z: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
        """Per level l, its first and last feature map, `[B, h_l, w_l, C_first + C_last]`."""
        features = self.encode(z, t)
        taps = []
        for level in range(len(self.channel_multipliers)):
            of_level = [x for name, x in features.items() if name.startswith(f"level{level}/")]
            taps.append(jnp.concatenate([of_level[0], of_level[-1]], axis=-1))
        return tuple(taps)

    def __call__(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """The noise eps `[B, h, w, C]` in `z [B, h, w, C]` at time `t [B]` (int)."""
        features, embedding = self._encode(z, t)
        return self.decoder(features, embedding, z.shape[-1])

    def _encode(self, z, t):
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if z.ndim not in (4, 5) or any(n % factor for n in z.shape[1:-1]):
            axes, sizes = ("d, h, w", "d, h and w") if z.ndim == 5 else ("h, w", "h and w")
            raise ValueError(
                f"U-Net: latents have shape {z.shape}, expected [B, {axes}, C] with {sizes} "
                f"multiples of {factor}"
            )
        if t.shape != z.shape[:1]:
            raise ValueError(f"U-Net: t has shape {t.shape}, expected {z.shape[:1]}")
        embedding = self.time_embedding(t)
        return self.encoder(z, embedding), embedding
