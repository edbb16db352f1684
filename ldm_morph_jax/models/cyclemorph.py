"""The U-Net of CycleMorph (Kim et al., Medical Image Analysis 2021), in 2D.

CycleMorph trains two of these networks, its generators. DiffuseMorph's deformation network is a
wider version with two convolutions per block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import ConvTranspose, conv
from ldm_morph_jax.models.swin import check_image_size


class DeformationUNet(nn.Module):
    """Displacement `[B, H, W, 2]` in pixels from two images `[B, H, W, 1]`.

    A block is `convolutions` 3x3 convolutions, each with LeakyReLU 0.2; encoder blocks after the
    first start with stride 2. The decoder doubles the size with transposed convolutions and appends
    the encoder's map; one more block precedes the last doubling (`decoder_channels[-2]`).
    H and W must be multiples of 2^(levels - 1) (ValueError).

    With `weights_std` None, weights have PyTorch's default initialisation and the head starts near
    zero. This deviates from CycleMorph's code, which draws all weights from N(0, 1e-5) and only the
    biases as PyTorch does, so that its first displacements are nearly constant and training is
    slow. With a number, all weights are drawn from N(0, weights_std^2) and all biases are zero,
    including the head's, as in DiffuseMorph (0.02).
    """

    encoder_channels: tuple[int, ...] = (16, 32, 32, 32, 32)
    decoder_channels: tuple[int, ...] = (32, 32, 32, 8, 8)
    convolutions: int = 1
    weights_std: float | None = None

    @nn.compact
    def __call__(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        levels = len(self.encoder_channels)
        if len(self.decoder_channels) != levels:
            raise ValueError(
                f"decoder_channels {self.decoder_channels}: expected {levels} numbers, as many as "
                f"in encoder_channels {self.encoder_channels}"
            )
        x = jnp.concatenate([moving, fixed], axis=-1)
        check_image_size(x, 2 ** (levels - 1))
        zeros, body = nn.initializers.zeros, {}
        head = {"kernel_init": nn.initializers.normal(1e-5), "bias_init": zeros}
        if self.weights_std is not None:
            head = {"kernel_init": nn.initializers.normal(self.weights_std), "bias_init": zeros}
            body = head

        def block(x, features, name, stride=1):
            for number in range(self.convolutions):
                x = conv(
                    x,
                    features,
                    stride=1 if number else stride,
                    padding=1,
                    name=f"{name}_conv{number}",
                    **body,
                )
                x = nn.leaky_relu(x, 0.2)
            return x

        maps = []
        for level, features in enumerate(self.encoder_channels):
            x = block(x, features, f"encoder{level}", stride=2 if level else 1)
            maps.append(x)
        *skips, x = maps
        *upwards, before_last, last = self.decoder_channels
        for number, features in enumerate([*upwards, last]):
            if number == len(upwards):
                x = block(x, before_last, "before_last")
            x = ConvTranspose(x.shape[-1], name=f"decoder{number}_up", **body)(x)
            x = jnp.concatenate([skips.pop(), x], axis=-1)
            x = block(x, features, f"decoder{number}")
        return conv(x, 2, name="head", **head)
