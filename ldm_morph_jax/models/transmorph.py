"""The network of TransMorph (J. Chen et al., Medical Image Analysis 2022).

A Swin encoder on the image pair, a convolutional decoder, and two convolutions of the pair as skip
connections at full and half resolution.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import near_zero_head, upsample_bilinear
from ldm_morph_jax.models.registration import (
    PATCH_SIZE,
    DecoderBlock,
    conv_block,
    low_level_features,
)
from ldm_morph_jax.models.swin import SwinEncoder


class TransMorphNetwork(nn.Module):
    """Displacement `[B, *space, rank]` in pixels from two images `[B, *space, 1]`.

    It is near zero at the start. Sizes must be multiples of 32 for four stages (ValueError). A map
    smaller than the window (the last stage at 128 x 128) is padded with zeros that take part in the
    attention, as published. In training, stochastic depth needs rngs["dropout"].
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 4, 2)
    num_heads: tuple[int, ...] = (4, 4, 8, 8)
    window_size: int = 8
    mlp_ratio: int = 4
    drop_path_rate: float = 0.3
    head_channels: int = 16  # at full resolution

    @nn.compact
    def __call__(self, moving: jax.Array, fixed: jax.Array, *, train: bool = False) -> jax.Array:
        pair = jnp.concatenate([moving, fixed], axis=-1)
        *skips, x = SwinEncoder(
            patch_size=PATCH_SIZE,
            embed_dim=self.embed_dim,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            name="swin",
        )(pair, train=train)
        half = low_level_features(pair, self.embed_dim // 2, dtype=jnp.float32, name="half")
        full = conv_block(pair, self.head_channels, dtype=jnp.float32, name="full")

        for number, skip in enumerate([*reversed(skips), half, full]):
            x = DecoderBlock(skip.shape[-1], upsample=upsample_bilinear, name=f"decoder{number}")(
                x, skip
            )
        return near_zero_head(x)
