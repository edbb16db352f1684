"""The PatchGAN discriminator with which the autoencoder is trained (paper Sec. 3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.models.layers import Dtype, conv

kernel_init = nn.initializers.normal(0.02)


def scale_init(key, shape, dtype=jnp.float32):
    """Normalisation scales, drawn from a normal distribution with mean 1 and deviation 0.02."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """Real or fake, one logit per overlapping patch: `[B, *space, 1] -> [B, *space', 1]` float32.

    A strided conv to `base_channels`, `layers` convs that double the channels (at most eight-fold;
    all but the last strided, all normalised over the batch), and one conv to the logits.

    `train=True` normalises with the statistics of the batch and updates the collection
    `batch_stats` (apply with `mutable=["batch_stats"]`); under jit on a sharded batch these are the
    statistics of the global batch. The running variance averages the *biased* batch variance, as
    Flax does. PyTorch's is larger by n/(n-1), n = B*H'*W' of the layer, which matters only if
    training continues from, or is compared with, PyTorch's running statistics.
    """

    base_channels: int = 64
    layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv4(x, features, number, *, stride, bias):
            return conv(
                x,
                features,
                4,
                stride=stride,
                padding=1,
                bias=bias,
                kernel_init=kernel_init,
                dtype=self.dtype,
                name=f"conv{number}",
            )

        x = nn.leaky_relu(conv4(x, self.base_channels, 0, stride=2, bias=True), 0.2)
        for layer in range(1, self.layers + 1):
            features = self.base_channels * min(2**layer, 8)
            stride = 2 if layer < self.layers else 1
            x = conv4(x, features, layer, stride=stride, bias=False)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,  # weight of the old statistics: PyTorch's momentum 0.1
                epsilon=1e-5,
                scale_init=scale_init,
                dtype=self.dtype,
                name=f"norm{layer}",
            )(x)
            x = nn.leaky_relu(x, 0.2)
        return conv4(x, 1, self.layers + 1, stride=1, bias=True).astype(jnp.float32)
