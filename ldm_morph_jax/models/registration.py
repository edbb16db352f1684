"""The registration network of LDM-Morph: an image pair and its LDM features -> displacement.

The upper stream applies one convolution per level to the features of the frozen diffusion model.
The lower stream is a Swin encoder on the image pair. LGCA joins the two at every level, and a
convolutional decoder turns the result into a displacement field (paper Fig. 1).
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.models.backend import ByBackend
from ldm_morph_jax.models.layers import Dtype, conv, near_zero_head, recomputed
from ldm_morph_jax.models.lgca import LGCA
from ldm_morph_jax.models.swin import SwinEncoder, check_image_size

PATCH_SIZE = 4  # the decoder's two upsamplings after the last skip connection undo it
FUSIONS = ("lgca", "concat", "none")


def upsample_bicubic(x: jax.Array) -> jax.Array:
    """Bicubic interpolation to twice the size, `[B, H, W, C] -> [B, 2H, 2W, C]`.

    Pixel centres at half integers (align_corners false), a = -0.75, border values repeated outside.
    Separable, along every axis of space; computed in float32 and returned in x's type.
    """
    y = x.astype(jnp.float32)
    for axis in range(1, x.ndim - 1):
        y = upsample_axis(y, axis)
    return y.astype(x.dtype)


# Outputs 2i and 2i + 1 lie a quarter before and a quarter after input i: weights of the inputs
# i-2 .. i+1 and i-1 .. i+2 (Keys, "Cubic convolution interpolation for digital image processing",
# 1981, with a = -0.75).
ODD_WEIGHTS = [-27 / 256, 225 / 256, 67 / 256, -9 / 256]
EVEN_WEIGHTS = ODD_WEIGHTS[::-1]


def _upsample_axis(x, axis):
    size = x.shape[axis]
    padded = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
    even = _weighted_sum(EVEN_WEIGHTS, padded, range(4), size, axis)
    odd = _weighted_sum(ODD_WEIGHTS, padded, range(1, 5), size, axis)
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _upsample_axis_with_adjoint(x, axis):
    """The same with a hand-written adjoint; the one JAX derives is slow on XLA's CPU backend."""
    return _upsample_axis(x, axis)


def _upsample_axis_transposed(axis, _, gradient):
    size = gradient.shape[axis] // 2
    shape = (*gradient.shape[:axis], size, 2, *gradient.shape[axis + 1 :])
    phases = jnp.pad(
        gradient.reshape(shape),
        [(4, 4) if a == axis else (0, 0) for a in range(len(shape))],
    )
    even, odd = (jax.lax.index_in_dim(phases, k, axis + 1, keepdims=False) for k in range(2))
    # gradient of the padded input: even output j - k and odd output j - k - 1 read element j with
    # weight k
    padded = _weighted_sum(EVEN_WEIGHTS, even, (4, 3, 2, 1), size + 4, axis)
    padded += _weighted_sum(ODD_WEIGHTS, odd, (3, 2, 1, 0), size + 4, axis)
    # the two copies beyond each border contribute to the border element
    inner = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    for start, place in ((0, (0, size - 1)), (size + 2, (size - 1, 0))):
        copies = jax.lax.slice_in_dim(padded, start, start + 2, axis=axis)
        copies = jnp.sum(copies, axis, keepdims=True)
        inner += jnp.pad(copies, [place if a == axis else (0, 0) for a in range(copies.ndim)])
    return (inner,)


_upsample_axis_with_adjoint.defvjp(
    lambda x, axis: (_upsample_axis(x, axis), None), _upsample_axis_transposed
)
upsample_axis = ByBackend(cpu=_upsample_axis_with_adjoint, other=_upsample_axis)


def _weighted_sum(weights, x, starts, size, axis):
    """Sum of slices of x along `axis`, each `size` long and multiplied by its weight."""
    slices = (jax.lax.slice_in_dim(x, start, start + size, axis=axis) for start in starts)
    return sum(weight * part for weight, part in zip(weights, slices, strict=True))


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Normalises every channel of every image to mean 0 and variance 1; computed in float32."""
    y, space = x.astype(jnp.float32), range(1, x.ndim - 1)
    y = y - jnp.mean(y, axis=space, keepdims=True)
    variance = jnp.mean(y * y, axis=space, keepdims=True)
    return (y * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def conv_block(x: jax.Array, features: int, *, dtype: Dtype, name: str) -> jax.Array:
    """3x3 convolution without bias, InstanceNorm, LeakyReLU 0.01; called inside `nn.compact`."""
    x = conv(x, features, bias=False, dtype=dtype, name=name)
    return nn.leaky_relu(instance_norm(x), 0.01)


def low_level_features(pair: jax.Array, features: int, *, dtype: Dtype, name: str) -> jax.Array:
    """The decoder's skip connection at half resolution, `[B, H, W, 2] -> [B, H/2, W/2, features]`.

    3x3 average of every second pixel (zeros outside count), then one convolution block; called
    inside `nn.compact`.
    """
    rank = pair.ndim - 2
    half = nn.avg_pool(pair, (3,) * rank, (2,) * rank, ((1, 1),) * rank)
    return conv_block(half, features, dtype=dtype, name=name)


class UpperStreamLevel(nn.Module):
    """Maps LDM features of one level to `features` channels: 3x3 convolution, PReLU, one slope."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(x, self.features, dtype=self.dtype, name="conv")
        slope = self.param("slope", nn.initializers.constant(0.25), (1,))
        return jnp.where(x >= 0, x, slope[0].astype(x.dtype) * x)


class DecoderBlock(nn.Module):
    """Upsample x2, append the skip connection, two convolution blocks.

    x `[B, h, w, C]`, skip `[B, 2h, 2w, C']` -> `[B, 2h, 2w, features]`.
    """

    features: int
    upsample: Callable[[jax.Array], jax.Array] = upsample_bicubic
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        x = jnp.concatenate([self.upsample(x), skip], axis=-1)
        x = conv_block(x, self.features, dtype=self.dtype, name="conv1")
        return conv_block(x, self.features, dtype=self.dtype, name="conv2")


class RegistrationNetwork(nn.Module):
    """Displacement in pixels that registers moving to fixed (paper section 3, Fig. 1).

    `fusion`: the decoder's input at each level. "lgca": both LGCA branches (at the deepest level
    only the branch (global | latent)); "concat": Swin map and upper-stream map concatenated (the
    paper's ablation without LGCA); "none": only the Swin map (without LDM features).
    The softsign's output has (size - 1) / 2 pixels per unit, so that 2 units span the pixel
    centres. Volumes `[B, D, H, W, 2]` give `[B, D, H, W, 3]`. `dtype` is the compute type; the
    displacement is always float32. `remat`: see `layers.recomputed`.
    """

    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 2, 4, 2)
    num_heads: tuple[int, ...] = (4, 4, 8, 8)
    window_size: int = 7
    mlp_ratio: int = 4
    drop_path_rate: float = 0.3
    lgca_heads: int = 4
    lgca_depth: int = 2
    fusion: str = "lgca"
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        pair: jax.Array,
        latent_groups: Sequence[jax.Array] | None,
        *,
        train: bool,
        return_intermediates: bool = False,
    ):
        """`pair [B, H, W, 2]` (moving, fixed) -> displacement `[B, H, W, 2]` float32, pixels.

        `latent_groups[l]` is `[B, H/(4 2^l), W/(4 2^l), c_l]`: the level's first and last feature
        map of the moving image, then those of the fixed image; None for fusion "none". H and W must
        be multiples of 32 for four levels. In training, stochastic depth needs rngs["dropout"].
        With `return_intermediates` it returns (displacement, dict) with the keys "swin",
        "upper_stream", "lgca_global", "lgca_latent" (lists by level, empty if the fusion does not
        use them) and "normalised_displacement" (softsign output in [-1, 1]). Raises ValueError for
        wrong input.
        """
        levels = len(self.depths)
        self._check(pair, latent_groups)

        swin = SwinEncoder(
            patch_size=PATCH_SIZE,
            embed_dim=self.embed_dim,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            dtype=self.dtype,
            remat=self.remat,
            name="swin",
        )(pair, train=train)
        upper = [
            UpperStreamLevel(swin[level].shape[-1], dtype=self.dtype, name=f"upper{level}")(group)
            for level, group in enumerate(latent_groups or ())
        ]

        lgca_global, lgca_latent = [], []
        if self.fusion == "lgca":
            # stochastic depth as in the first blocks of the Swin encoder
            rate = self.drop_path_rate * (self.lgca_depth - 1) / max(sum(self.depths) - 1, 1)
            for level in range(levels):
                lgca = LGCA(
                    self.lgca_heads,
                    self.window_size,
                    depth=self.lgca_depth,
                    mlp_ratio=self.mlp_ratio,
                    drop_path_rate=rate,
                    dtype=self.dtype,
                    remat=self.remat,
                    name=f"lgca{level}",
                )
                lgca_global.append(lgca(swin[level], upper[level], train=train))
                if level < levels - 1:
                    lgca_latent.append(lgca(upper[level], swin[level], train=train))
            deepest = lgca_global[-1]
            skips = [jnp.concatenate(p, -1) for p in zip(lgca_global, lgca_latent, strict=False)]
        elif self.fusion == "concat":
            *skips, deepest = [jnp.concatenate(p, -1) for p in zip(swin, upper, strict=True)]
        else:
            *skips, deepest = swin

        low_level = low_level_features(
            pair, self.embed_dim // 2, dtype=self.dtype, name="low_level"
        )

        x = deepest
        for block, skip in enumerate([*reversed(skips), low_level]):
            features = self.embed_dim * 2 ** (levels - 2) // 2**block
            x = recomputed(DecoderBlock, self.remat)(
                features, dtype=self.dtype, name=f"decoder{block}"
            )(x, skip)
        x = near_zero_head(upsample_bicubic(x), dtype=self.dtype)
        normalised = nn.soft_sign(x.astype(jnp.float32))

        span = np.array(pair.shape[1:-1], np.float32) - 1
        displacement = normalised * span.reshape((1,) * (pair.ndim - 1) + (-1,)) / 2
        if not return_intermediates:
            return displacement
        return displacement, {
            "swin": list(swin),
            "upper_stream": upper,
            "lgca_global": lgca_global,
            "lgca_latent": lgca_latent,
            "normalised_displacement": normalised,
        }

    def _check(self, pair, latent_groups):
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion {self.fusion!r}: expected one of {FUSIONS}")
        check_image_size(pair, PATCH_SIZE * 2 ** (len(self.depths) - 1))
        if pair.shape[-1] != 2:
            raise ValueError(f"pair of shape {pair.shape}: expected 2 channels (moving, fixed)")

        batch, *space, _ = pair.shape
        expected = [
            (batch, *(n // (PATCH_SIZE * 2**level) for n in space))
            for level in range(len(self.depths))
        ]
        found = [group.shape[:-1] for group in latent_groups or ()]
        if self.fusion == "none":
            expected = []
        if found != expected:
            raise ValueError(
                f"latent groups of shapes [B, *space] {found}: fusion {self.fusion!r} expects"
                f" {expected} for images of {' x '.join(map(str, space))}"
            )
