"""The anatomy network: a compact U-Net from an image to the logits of structures.

A U-Net (Ronneberger et al., MICCAI 2015) with group normalisation and SiLU, for images and volumes
alike. It starts and ends at half the resolution, with the four pixels of a block (eight voxels) as
channels: full resolution would cost as much as all the rest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import Dtype, group_norm
from ldm_morph_jax.models.swin import window_partition, window_reverse


class AnatomyUNet(nn.Module):
    """Logits `[B, *space, classes]`, float32, of an image `[B, *space, 1]` in [0, 1].

    Level l has two convolutions of `channels[l]` channels at 1/2**(l + 1) of the size, in both
    halves. Class 0 is the background. Raises ValueError if a side is no multiple of
    2**len(channels).

    With `mutable=["intermediates"]`, `apply` also gives "deepest" `[B, channels[-1]]`: the means
    over all positions of what the encoder ends with.
    """

    classes: int
    channels: tuple[int, ...] = (32, 64, 96, 128)
    norm_groups: int = 8
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        factor, space = 2 ** len(self.channels), image.shape[1:-1]
        if any(side % factor for side in space):
            raise ValueError(
                f"anatomy network: found an image of {space}, expected multiples of {factor}"
            )
        rank = len(space)

        def block(x, features, name):
            x = nn.Conv(features, (3,) * rank, use_bias=False, dtype=self.dtype, name=name)(x)
            norm = f"{name}_norm"
            x = group_norm(x, self.norm_groups, epsilon=1e-5, dtype=self.dtype, name=norm)
            return nn.silu(x)

        def level(x, number, half):
            for k in range(2):
                x = block(x, self.channels[number], f"{half}{number}_{k}")
            return x

        x = blocks_of_two(2 * image.astype(self.dtype) - 1)
        x, skips = x.reshape(*x.shape[:-2], -1), []
        for number in range(len(self.channels)):
            if number:
                skips.append(x)
                x = blocks_of_two(x).mean(axis=-2)
            x = level(x, number, "encoder")
        self.sow("intermediates", "deepest", x.mean(axis=tuple(range(1, rank + 1))))
        for number in reversed(range(len(skips))):
            # fewer channels first, where there are fewer positions
            x = nn.Conv(self.channels[number], (1,) * rank, dtype=self.dtype, name=f"up{number}")(x)
            x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], 2**rank, x.shape[-1]))
            x = level(jnp.concatenate([joined_blocks(x), skips.pop()], -1), number, "decoder")
        x = nn.Conv(2**rank * self.classes, (1,) * rank, dtype=self.dtype, name="head")(x)
        x = x.reshape(*x.shape[:-1], 2**rank, self.classes)
        return joined_blocks(x).astype(jnp.float32)


def blocks_of_two(x: jax.Array) -> jax.Array:
    """`[B, *space, C]` -> `[B, *(space / 2), 2**rank, C]`: the positions of every block of two."""
    batch, *space, channels = x.shape
    half = (side // 2 for side in space)
    return window_partition(x, 2).reshape(batch, *half, -1, channels)


def joined_blocks(x: jax.Array) -> jax.Array:
    """The inverse of `blocks_of_two`."""
    batch, *half, positions, channels = x.shape
    blocks = x.reshape(batch, -1, positions, channels)
    return window_reverse(blocks, 2, [2 * side for side in half])
