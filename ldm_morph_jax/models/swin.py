"""Swin encoder: windowed self-attention at four resolutions (lower stream of the paper's Fig. 1).

Maps are `[B, *space, C]`; windows are squares of images and cubes of volumes.

Liu et al., "Swin Transformer" (2021), as used in LDM-Morph (paper equations 7 and 8). The window
attention can also take its queries from a second map; it is then the cross attention of LGCA.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.models.layers import Dtype, conv, dense, recomputed, uniform_fan_in

MASKED = -100.0  # added to the attention scores of positions that must not see each other


def window_partition(x: jax.Array, window: int) -> jax.Array:
    """Cut `[B, *space, C]` into windows `[B, windows, window**rank, C]`, both in axis order.

    Sizes must be multiples of `window`.
    """
    batch, *space, channels = x.shape
    x = x.reshape(batch, *(part for n in space for part in (n // window, window)), channels)
    counts, inside = range(1, x.ndim - 1, 2), range(2, x.ndim - 1, 2)
    x = x.transpose(0, *counts, *inside, x.ndim - 1)
    return x.reshape(batch, -1, window ** len(space), channels)


def window_reverse(windows: jax.Array, window: int, space: Sequence[int]) -> jax.Array:
    """Reassemble windows `[B, windows, window**rank, C]` to `[B, *space, C]`."""
    batch, _, _, channels = windows.shape
    rank = len(space)
    x = windows.reshape(batch, *(n // window for n in space), *[window] * rank, channels)
    pairs = [axis for k in range(1, rank + 1) for axis in (k, rank + k)]
    return x.transpose(0, *pairs, x.ndim - 1).reshape(batch, *space, channels)


def relative_position_index(window: int, rank: int = 2) -> np.ndarray:
    """Row of the bias table for every (query, key): `[window**rank, window**rank]` int.

    In a plane the row is (dy + window - 1) * (2 * window - 1) + (dx + window - 1), with (dy, dx)
    the query's position minus the key's; in a volume dz comes first.
    """
    position = np.indices((window,) * rank).reshape(rank, -1)
    offset = position[:, :, None] - position[:, None, :] + window - 1
    place = (2 * window - 1) ** np.arange(rank)[::-1]
    return np.einsum("k,kqp->qp", place, offset)


def shifted_window_mask(space: Sequence[int], window: int, shift: int) -> np.ndarray:
    """Additive mask for the scores of shifted windows: `[windows, window**rank, window**rank]`.

    Rolling a map by -shift along every axis brings opposite borders together in the last windows of
    each axis. The mask is -100 for pairs of positions from opposite borders, 0 otherwise; float32.
    """

    def region(size):  # 0: before the last window; within it, 1: not rolled, 2: rolled in
        position = np.arange(size)
        return (position >= size - window).astype(int) + (position >= size - shift)

    regions = np.zeros((), int)
    for size in space:
        regions = 3 * regions[..., None] + region(size)
    regions = window_partition(regions[None, ..., None], window)[0, :, :, 0]
    same = regions[:, :, None] == regions[:, None, :]
    return np.where(same, 0, MASKED).astype(np.float32)


class QueryKeyValue(nn.Module):
    """One linear map without bias to queries, keys and values `[..., 3C]`, in this order.

    Queries come from `query_from`, keys and values from `x`, with the same weights.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, query_from: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", uniform_fan_in, (channels, 3 * channels))
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        if query_from is None:
            return x @ kernel
        query = query_from.astype(self.dtype) @ kernel[:, :channels]
        return jnp.concatenate([query, x @ kernel[:, channels:]], axis=-1)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, shifted or not (paper equations 8 to 11).

    Keys and values come from `x [B, *space, C]`, queries from `query_from [B, *space, C]` or from
    `x` itself (self-attention). Maps are zero-padded at the end of every axis to multiples of the
    window; padded positions take part in the attention unless the mask of the shift excludes them.
    Returns `[B, *space, C]`. C must be a multiple of `num_heads`.
    """

    num_heads: int
    window_size: int = 7
    shift: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, query_from: jax.Array | None = None) -> jax.Array:
        _, *space, channels = x.shape
        window, shift, heads = self.window_size, self.shift, self.num_heads
        rank = len(space)
        axes, shifts = tuple(range(1, rank + 1)), (shift,) * rank
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} attention heads")

        # The linear maps act on single positions and map zeros to zeros. Padding after the first
        # and cropping before the last therefore gives the same result with less work.
        qkv = QueryKeyValue(dtype=self.dtype, name="qkv")(x, query_from)
        qkv = jnp.pad(qkv, ((0, 0), *((0, -n % window) for n in space), (0, 0)))
        padded = qkv.shape[1:-1]
        if shift:
            qkv = jnp.roll(qkv, [-n for n in shifts], axis=axes)

        tokens = window_partition(qkv, window)
        tokens = tokens.reshape(*tokens.shape[:3], 3, heads, channels // heads)
        query, key, value = tokens[..., 0, :, :], tokens[..., 1, :, :], tokens[..., 2, :, :]

        # PyTorch truncates at +-2, a hundred standard deviations, so this is in effect a plain
        # normal distribution
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.normal(0.02),
            ((2 * window - 1) ** rank, heads),
        )
        bias = table[relative_position_index(window, rank)].transpose(2, 0, 1)
        bias = bias[None, None]  # [1, 1, heads, query, key]
        if shift:
            mask = shifted_window_mask(padded, window, shift)
            bias = bias + mask[None, :, None]  # [1, windows, heads, query, key]

        scores = jnp.einsum(
            "bnqhc,bnkhc->bnhqk",
            query * (channels // heads) ** -0.5,
            key,
            preferred_element_type=jnp.float32,
        )
        attention = nn.softmax(scores + bias).astype(self.dtype)
        out = jnp.einsum("bnhqk,bnkhc->bnqhc", attention, value)

        out = out.reshape(*out.shape[:3], channels)
        out = window_reverse(out, window, padded)
        if shift:
            out = jnp.roll(out, shifts, axis=axes)
        out = out[:, *(slice(n) for n in space)]
        return dense(out, channels, dtype=self.dtype, name="proj")


def layer_norm(x: jax.Array, *, dtype: Dtype, name: str | None = None) -> jax.Array:
    """LayerNorm over the channels, eps 1e-5, statistics in float32; called inside `nn.compact`."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)(x)


class SwinBlock(nn.Module):
    """Window attention and MLP, pre-norm, with residuals (paper equation 7; 9 to 11 with `y`).

    `x [B, *space, C] -> [B, *space, C]`. If `y [B, *space, C]` is given, it passes through the same
    LayerNorm and provides the queries; keys, values and the residual still come from x. In
    training, each sample skips each of the two branches with probability `drop_path_rate` (key:
    rngs["dropout"]).
    """

    num_heads: int
    window_size: int = 7
    shift: int = 0
    mlp_ratio: int = 4
    drop_path_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array | None = None, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        norm1 = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm1")
        attention = WindowAttention(
            self.num_heads, self.window_size, self.shift, dtype=self.dtype, name="attention"
        )
        # stochastic depth: one draw per sample; kept branches are divided by the keep probability
        drop_path = nn.Dropout(
            self.drop_path_rate, broadcast_dims=range(1, x.ndim), deterministic=not train
        )
        x = x + drop_path(attention(norm1(x), None if y is None else norm1(y)))
        h = layer_norm(x, dtype=self.dtype, name="norm2")
        h = dense(h, self.mlp_ratio * channels, dtype=self.dtype, name="mlp1")
        h = dense(nn.gelu(h, approximate=False), channels, dtype=self.dtype, name="mlp2")
        return x + drop_path(h)


def swin_block(remat: bool) -> type[SwinBlock]:
    """`SwinBlock`; with `remat`, its activations are recomputed in the backward pass."""
    return recomputed(SwinBlock, remat, static_argnums=(3,))  # `train`, counted from self = 0


class PatchMerging(nn.Module):
    """Halve the resolution: concatenate 2x2 positions, LayerNorm, linear to 2C without bias.

    `[B, H, W, C] -> [B, H/2, W/2, 2C]`; H and W even. Positions in the order (0,0), (1,0), (0,1),
    (1,1) as (row, column). In volumes 2x2x2 positions, the first axis running fastest.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, *space, channels = x.shape
        halved = [n // 2 for n in space]
        x = x.reshape(batch, *(part for n in halved for part in (n, 2)), channels)
        kept, merged = range(1, x.ndim - 1, 2), range(2, x.ndim - 1, 2)
        x = x.transpose(0, *kept, *reversed(merged), x.ndim - 1).reshape(batch, *halved, -1)
        x = layer_norm(x, dtype=self.dtype, name="norm")
        return dense(x, 2 * channels, bias=False, dtype=self.dtype, name="reduction")


class SwinEncoder(nn.Module):
    """Feature maps of the stages: `[B, H, W, C]` -> map l is `[B, H/(p 2^l), W/(p 2^l), e 2^l]`.

    p is `patch_size`, e `embed_dim`; sizes must be multiples of p 2^(stages - 1) (ValueError).
    Every stage alternates between regular and shifted windows. Its output passes through a
    LayerNorm; the next stage continues from the map before that norm. The rate of stochastic depth
    rises linearly from 0 at the first block to `drop_path_rate` at the last.
    """

    patch_size: int = 4
    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 2, 4, 2)
    num_heads: tuple[int, ...] = (4, 4, 8, 8)
    window_size: int = 7
    mlp_ratio: int = 4
    drop_path_rate: float = 0.3
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths {self.depths} and num_heads {self.num_heads} differ in length"
            )
        check_image_size(x, self.patch_size * 2 ** (len(self.depths) - 1))

        x = conv(
            x,
            self.embed_dim,
            self.patch_size,
            stride=self.patch_size,
            padding=0,
            dtype=self.dtype,
            name="patch_embedding",
        )
        x = layer_norm(x, dtype=self.dtype, name="patch_norm")

        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.depths)))
        maps = []
        for stage, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if stage:
                x = PatchMerging(dtype=self.dtype, name=f"merging{stage - 1}")(x)
            for block in range(depth):
                x = swin_block(self.remat)(
                    heads,
                    self.window_size,
                    shift=self.window_size // 2 if block % 2 else 0,
                    mlp_ratio=self.mlp_ratio,
                    drop_path_rate=float(next(rates)),
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, None, train)
            maps.append(layer_norm(x, dtype=self.dtype, name=f"norm{stage}"))
        return tuple(maps)


def check_image_size(x: jax.Array, multiple: int) -> None:
    """ValueError unless x is `[B, *space, C]` with sizes that are multiples of `multiple`."""
    if x.ndim not in (4, 5) or any(n % multiple for n in x.shape[1:-1]):
        axes, sizes = ("D, H, W", "D, H and W") if x.ndim == 5 else ("H, W", "H and W")
        raise ValueError(
            f"images of shape {x.shape}: expected [B, {axes}, C] with {sizes} multiples of "
            f"{multiple} ({multiple}, {2 * multiple}, {3 * multiple}, ...); resize or pad them"
        )
