"""Latent and global feature-based cross attention (LGCA, paper section 3.3, equations 9 to 11)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.models.layers import Dtype
from ldm_morph_jax.models.swin import layer_norm, swin_block


class LGCA(nn.Module):
    """One branch: window attention on `x` with queries from `y`; `[B, *space, C]` each.

    The blocks alternate between regular and shifted windows and update only x. For both branches,
    call the module twice with the arguments swapped: (global map, latent map) gives the branch
    (global | latent), (latent map, global map) gives the other one, with the same weights.
    """

    num_heads: int = 4
    window_size: int = 7
    depth: int = 2
    mlp_ratio: int = 4
    drop_path_rate: float = 1 / 30
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
        if x.shape != y.shape:
            raise ValueError(f"LGCA: found shapes {x.shape} and {y.shape}, expected equal ones")
        for block, rate in enumerate(np.linspace(0, self.drop_path_rate, self.depth)):
            x = swin_block(self.remat)(
                self.num_heads,
                self.window_size,
                shift=self.window_size // 2 if block % 2 else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path_rate=float(rate),
                dtype=self.dtype,
                name=f"block{block}",
            )(x, y, train)
        return layer_norm(x, dtype=self.dtype, name="norm")
