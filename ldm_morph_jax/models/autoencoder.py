"""The VQ autoencoder of the latent diffusion model (paper Sec. 3.1).

Images `[B, H, W, 1]` are compressed by 2**(levels - 1) along rows and columns, volumes
`[B, D, H, W, 1]` along all three axes. The latent that the rest of the method reads is the
encoder's output *before* quantisation.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import (
    Dtype,
    conv,
    dot_product_attention,
    group_norm,
    recomputed,
    upsample_nearest,
)

EPSILON = 1e-6  # of every GroupNorm here

# path of the kernel of the decoder's last layer in the parameters, where the adaptive weight of the
# adversarial loss compares gradients
LAST_LAYER = ("decoder", "conv_out", "kernel")


class Quantised(NamedTuple):
    """Result of the quantiser; both losses are mean squares over `[B, h, w, C]`.

    latent: nearest codewords `[B, h, w, C]`, with a straight-through gradient to the input
    indices: of the codewords, `[B, h, w]` int32
    codebook_loss: moves the codewords towards the encoder's output
    commitment_loss: moves the encoder's output towards the codewords
    """

    latent: jax.Array
    indices: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array


class AutoencoderOutput(NamedTuple):
    """reconstruction `[B, H, W, 1]`, latent before quantisation `[B, h, w, C]`, and `Quantised`."""

    reconstruction: jax.Array
    latent: jax.Array
    quantised: Quantised


class ResidualBlock(nn.Module):
    """Norm, swish, conv twice, plus the input: `[B, H, W, C] -> [B, H, W, features]`."""

    features: int
    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm1")
        h = conv(nn.swish(h), self.features, dtype=self.dtype, name="conv1")
        h = group_norm(h, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm2")
        h = conv(nn.swish(h), self.features, dtype=self.dtype, name="conv2")
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, dtype=self.dtype, name="shortcut")
        return x + h


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions, plus the input: keeps `[B, H, W, C]`."""

    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, *_, channels = x.shape
        h = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm")

        def project(name):
            projected = conv(h, channels, 1, dtype=self.dtype, name=name)
            return projected.reshape(batch, -1, 1, channels)  # one head

        h = dot_product_attention(project("query"), project("key"), project("value"))
        h = h.reshape(x.shape)
        return x + conv(h, channels, 1, dtype=self.dtype, name="out")


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution; keeps `[B, h, w, C]`."""

    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = recomputed(ResidualBlock, self.remat)
        attention = recomputed(SelfAttention, self.remat)
        options = {"norm_groups": self.norm_groups, "dtype": self.dtype}
        x = block(x.shape[-1], **options, name="block0")(x)
        x = attention(**options, name="attention")(x)
        return block(x.shape[-1], **options, name="block1")(x)


class _Half(nn.Module):
    """What encoder and decoder have in common; fields as in `Autoencoder`."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    attention_levels: tuple[int, ...]
    latent_channels: int
    norm_groups: int
    dtype: Dtype
    remat: bool

    def width(self, level):
        return self.base_channels * self.channel_multipliers[level]

    def blocks(self, x, level, count):
        """The blocks of a level, each with attention where the level has it."""
        options = {"norm_groups": self.norm_groups, "dtype": self.dtype}
        for block in range(count):
            residual_block = recomputed(ResidualBlock, self.remat)
            name = f"level{level}_block{block}"
            x = residual_block(self.width(level), **options, name=name)(x)
            if level in self.attention_levels:
                attention = recomputed(SelfAttention, self.remat)
                x = attention(**options, name=f"level{level}_attention{block}")(x)
        return x

    def bottleneck(self, x):
        return Middle(self.norm_groups, self.dtype, self.remat, name="middle")(x)

    def normalised(self, x):
        x = group_norm(x, self.norm_groups, epsilon=EPSILON, dtype=self.dtype, name="norm_out")
        return nn.swish(x)


class Encoder(_Half):
    """Images `[B, H, W, 1]` -> latent `[B, h, w, latent_channels]`, float32."""

    @nn.compact
    def __call__(self, x):
        x = conv(x, self.base_channels, dtype=self.dtype, name="conv_in")
        for level in range(len(self.channel_multipliers)):
            x = self.blocks(x, level, self.residual_blocks)
            if level < len(self.channel_multipliers) - 1:
                x = conv(
                    x,
                    self.width(level),
                    stride=2,
                    padding=(0, 1),  # zeros after the last pixel of every axis
                    dtype=self.dtype,
                    name=f"level{level}_downsample",
                )
        x = self.normalised(self.bottleneck(x))
        x = conv(x, self.latent_channels, dtype=self.dtype, name="conv_out")
        x = conv(x, self.latent_channels, 1, dtype=self.dtype, name="quant_conv")
        return x.astype(jnp.float32)


class Decoder(_Half):
    """Latent `[B, h, w, latent_channels]` -> images `[B, H, W, 1]`, float32 (no final tanh)."""

    @nn.compact
    def __call__(self, z):
        x = conv(z, self.latent_channels, 1, dtype=self.dtype, name="post_quant_conv")
        x = self.bottleneck(conv(x, self.width(-1), dtype=self.dtype, name="conv_in"))
        for level in reversed(range(len(self.channel_multipliers))):
            x = self.blocks(x, level, self.residual_blocks + 1)  # one more than the encoder
            if level > 0:
                x = upsample_nearest(x)
                x = conv(x, self.width(level), dtype=self.dtype, name=f"level{level}_upsample")
        return conv(self.normalised(x), 1, dtype=self.dtype, name="conv_out").astype(jnp.float32)


def nearest_codewords(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the codeword nearest to every latent: `[..., C]`, `[K, C] -> [...]` int32.

    The distance is computed directly as a sum of (z - c)^2: in float32 the expanded form
    z^2 + c^2 - 2zc picks a wrong codeword at several per cent of the positions. Because the sum is
    written channel by channel, XLA fuses it into the search for the minimum, and the `[..., K]`
    distances are never stored.
    """
    words = codebook.reshape((1,) * (z.ndim - 1) + codebook.shape)
    distance = sum((z[..., None, c] - words[..., c]) ** 2 for c in range(z.shape[-1]))
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def codebook_usage(indices: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """How evenly `indices` (int, any shape) use a codebook of `size` words.

    Returns (perplexity, used_fraction): exp of the entropy of the words' frequencies, between 1
    (one word only) and `size` (all equally often), and the fraction of words used at least once.
    """
    counts = jnp.bincount(indices.reshape(-1), length=size)
    frequency = counts / indices.size
    entropy = -jnp.sum(jax.scipy.special.xlogy(frequency, frequency))
    return jnp.exp(entropy), jnp.mean(counts > 0)


class Autoencoder(nn.Module):
    """VQ autoencoder of images `[B, H, W, 1]`; the defaults are the paper's.

    Level l has base_channels * channel_multipliers[l] channels at 1/2**l of the image's size and
    `residual_blocks` blocks in the encoder (one more in the decoder); `attention_levels` lists the
    levels with self-attention after every block. `dtype` is the compute type; images, latents and
    losses are always float32. `remat`: see `layers.recomputed`.
    Raises ValueError if the image cannot be halved evenly.
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    residual_blocks: int = 2
    attention_levels: tuple[int, ...] = (2,)
    latent_channels: int = 1
    codebook_size: int = 16384
    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self):
        shape = (
            self.base_channels,
            self.channel_multipliers,
            self.residual_blocks,
            self.attention_levels,
            self.latent_channels,
            self.norm_groups,
            self.dtype,
            self.remat,
        )
        self.encoder = Encoder(*shape)
        self.decoder = Decoder(*shape)
        bound = 1 / self.codebook_size
        self.codebook = self.param(
            "codebook",
            lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound),
            (self.codebook_size, self.latent_channels),
        )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position along every axis."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images `[B, H, W, 1]` in [0, 1] -> latent before quantisation `[B, h, w, C]`, E(I)."""
        factor = self.downsampling
        if images.ndim not in (4, 5) or images.shape[-1] != 1:
            raise ValueError(f"autoencoder: images are {images.shape}, expected [B, H, W, 1]")
        if any(n % factor for n in images.shape[1:-1]):
            raise ValueError(
                f"autoencoder: images are {'x'.join(map(str, images.shape[1:-1]))}, "
                f"expected multiples of {factor}"
            )
        return self.encoder(images)

    def quantise(self, z: jax.Array) -> Quantised:
        """Nearest codeword of every position of a latent `[B, h, w, C]`, and its losses."""
        indices = nearest_codewords(jax.lax.stop_gradient(z), jax.lax.stop_gradient(self.codebook))
        codewords = self.codebook[indices]
        return Quantised(
            latent=z + jax.lax.stop_gradient(codewords - z),
            indices=indices,
            codebook_loss=jnp.mean((codewords - jax.lax.stop_gradient(z)) ** 2),
            commitment_loss=jnp.mean((jax.lax.stop_gradient(codewords) - z) ** 2),
        )

    def decode(self, z: jax.Array) -> jax.Array:
        """Quantised latent `[B, h, w, C]` -> images `[B, H, W, 1]`."""
        return self.decoder(z)

    def __call__(self, images: jax.Array) -> AutoencoderOutput:
        """Encode, quantise, decode images `[B, H, W, 1]`."""
        latent = self.encode(images)
        quantised = self.quantise(latent)
        return AutoencoderOutput(self.decode(quantised.latent), latent, quantised)
