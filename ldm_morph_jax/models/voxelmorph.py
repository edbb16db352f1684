"""The network of VoxelMorph (Balakrishnan et al., IEEE TMI 2019): a small U-Net."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import conv, near_zero_head, upsample_nearest
from ldm_morph_jax.models.swin import check_image_size


class VoxelMorphUNet(nn.Module):
    """Displacement (or velocity) `[B, *space, rank]` in pixels from two images `[B, *space, 1]`.

    Every block is a convolution of width 3 and LeakyReLU 0.2. Encoder blocks are followed by
    max-pooling, decoder blocks by nearest-neighbour upsampling and concatenation with the encoder's
    map of that size. The blocks of `head_channels` work at full resolution. The head starts near
    zero. Sizes must be multiples of 2^levels (ValueError).
    """

    encoder_channels: tuple[int, ...] = (16, 32, 32, 32)
    decoder_channels: tuple[int, ...] = (32, 32, 32, 32)  # as many as in the encoder
    head_channels: tuple[int, ...] = (32, 16, 16)

    @nn.compact
    def __call__(self, moving: jax.Array, fixed: jax.Array, *, train: bool = False) -> jax.Array:
        x = jnp.concatenate([moving, fixed], axis=-1)
        check_image_size(x, 2 ** len(self.encoder_channels))

        def block(x, features, name):
            return nn.leaky_relu(conv(x, features, name=name), 0.2)

        skips, halved = [], (2,) * (x.ndim - 2)
        for level, features in enumerate(self.encoder_channels):
            x = block(x, features, f"encoder{level}")
            skips.append(x)
            x = nn.max_pool(x, halved, halved)
        for level, features in enumerate(self.decoder_channels):
            x = block(x, features, f"decoder{level}")
            x = jnp.concatenate([upsample_nearest(x), skips.pop()], axis=-1)
        for number, features in enumerate(self.head_channels):
            x = block(x, features, f"full{number}")
        return near_zero_head(x)
