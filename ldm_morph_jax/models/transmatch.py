"""The network of TransMatch (Z. Chen et al., IEEE TMI 2024), in 2D.

One Swin encoder processes both images separately. Window cross attention matches their maps at
every level, and a convolutional decoder turns the matches into a displacement.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import near_zero_head, upsample_bilinear
from ldm_morph_jax.models.lgca import LGCA
from ldm_morph_jax.models.registration import PATCH_SIZE, DecoderBlock, low_level_features
from ldm_morph_jax.models.swin import SwinEncoder


class TransMatchNetwork(nn.Module):
    """Displacement `[B, H, W, 2]` in pixels from two images `[B, H, W, 1]`, near zero at the start.

    The cross attention of a level is applied to (moving, fixed) and, swapped, to (fixed, moving),
    with queries from the second; at the deepest level only to the first order. LDM-Morph's LGCA was
    derived from it, and both use the same module here. H and W must be multiples of 32 for four
    stages (ValueError). In training, stochastic depth needs rngs["dropout"].

    Published modules that do not affect the output (a second encoder, spare convolutions) are left
    out. The published 3D code puts its attention windows back in the wrong order; this is not
    reproduced.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 4, 2)
    num_heads: tuple[int, ...] = (4, 4, 8, 8)
    window_size: int = 8
    mlp_ratio: int = 4
    drop_path_rate: float = 0.3
    cross_heads: int = 4
    cross_depth: int = 2

    @nn.compact
    def __call__(self, moving: jax.Array, fixed: jax.Array, *, train: bool = False) -> jax.Array:
        levels = len(self.depths)
        encoder = SwinEncoder(
            patch_size=PATCH_SIZE,
            embed_dim=self.embed_dim,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            name="swin",
        )
        maps = encoder(jnp.concatenate([moving, fixed]), train=train)  # both in one batch

        # stochastic depth as in the first blocks of the Swin encoder
        rate = self.drop_path_rate * (self.cross_depth - 1) / max(sum(self.depths) - 1, 1)
        matches = []
        for level in range(levels):
            of_moving, of_fixed = jnp.split(maps[level], 2)
            cross = LGCA(
                self.cross_heads,
                self.window_size,
                depth=self.cross_depth,
                mlp_ratio=self.mlp_ratio,
                drop_path_rate=rate,
                name=f"cross{level}",
            )
            match = cross(of_moving, of_fixed, train=train)
            if level < levels - 1:
                swapped = cross(of_fixed, of_moving, train=train)
                match = jnp.concatenate([match, swapped], axis=-1)
            matches.append(match)

        pair = jnp.concatenate([moving, fixed], axis=-1)
        half = low_level_features(pair, self.embed_dim // 2, dtype=jnp.float32, name="half")

        *skips, x = matches
        for number, skip in enumerate([*reversed(skips), half]):
            features = self.embed_dim * 2 ** (levels - 2) // 2**number
            x = DecoderBlock(features, upsample=upsample_bilinear, name=f"decoder{number}")(x, skip)
        return near_zero_head(upsample_bilinear(x))
