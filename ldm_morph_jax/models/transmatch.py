"""The network of TransMatch (Z. Chen et al., IEEE TMI 2024), in 2D.

One Swin encoder sees both images, each on its own; window cross attention matches their maps on
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

    The cross attention of a level takes (moving, fixed) and, swapped, (fixed, moving), queries from
    the second; only the first on the deepest level. It is what LDM-Morph's LGCA was made from, and
    the same module here. H and W must be multiples of 32 for four stages (ValueError). In training,
    stochastic depth needs rngs["dropout"].

    Published modules that no output depends on (a second encoder, spare convolutions) are left out.
    The published code scrambles its 3D windows when it puts them back together; not reproduced.
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

        # its blocks have the stochastic depth of the Swin encoder's first blocks
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
