"""`ldm_morph_jax.train`, but the displacement starts at half a pixel instead of zero.

Run by test_devices.py: the derivative of bilinear interpolation jumps where a displacement is a
whole number of pixels, as nearly all are at the start. From half a pixel none gets there in a few
steps, and rounding stays rounding.
"""

from flax import linen as nn

from ldm_morph_jax import train
from ldm_morph_jax.models import registration
from ldm_morph_jax.models.layers import conv

BIAS = 1 / 30  # of images of 32 x 32: 15.5 px softsign(1 / 30) = 0.5 px


def head(x, *, dtype):
    normal, bias = nn.initializers.normal(1e-5), nn.initializers.constant(BIAS)
    return conv(x, 2, kernel_init=normal, bias_init=bias, dtype=dtype, name="head")


registration.near_zero_head = head

if __name__ == "__main__":
    train.main()
