"""Winograd's convolutions: which ones they are, and that they equal the direct ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.winograd import convolution, same_convolution

RNG = np.random.default_rng(0)
NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
ONE = ((1, 1), (1, 1))


def arrays(*shapes, dtype=jnp.float32):
    return [jnp.asarray(RNG.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 6, 4, 3), (1, 4, 10, 5)])
def test_equals_a_direct_convolution(shape):
    x, kernel = arrays(shape, (3, 3, shape[-1], 2))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), ONE, **NUMBERS)
    np.testing.assert_allclose(same_convolution(x, kernel), expected, rtol=1e-5, atol=1e-5)


def test_impulses_are_placed_where_they_belong():
    """One pixel, one weight each: exactly one output, `x[i + k - 1] kernel[k]` summed at i."""
    for row, column, k, m in [(0, 0, 2, 2), (3, 5, 0, 1), (2, 4, 1, 1), (3, 0, 0, 2), (1, 1, 2, 0)]:
        x, kernel = np.zeros((1, 4, 6, 1), np.float32), np.zeros((3, 3, 1, 1), np.float32)
        x[0, row, column], kernel[k, m] = 1, 1
        expected = np.zeros((4, 6), np.float32)
        if 0 <= row - k + 1 < 4 and 0 <= column - m + 1 < 6:
            expected[row - k + 1, column - m + 1] = 1
        np.testing.assert_array_equal(same_convolution(x, kernel)[0, :, :, 0], expected)


LARGE = {"shape": (2, 32, 32, 128), "kernel": (3, 3, 128, 128)}
DIRECT = {
    "kernel of 1 x 1": {"kernel": (1, 1, 128, 128), "padding": ((0, 0), (0, 0))},
    "stride": {"strides": (2, 2)},
    "one-sided padding": {"padding": ((0, 1), (0, 1))},
    "odd size": {"shape": (3, 33, 32, 128)},
    "few positions": {"shape": (1, 32, 32, 128)},
    "few inputs": {"shape": (2, 32, 32, 64), "kernel": (3, 3, 64, 128)},
    "few features": {"kernel": (3, 3, 128, 64)},
    "bfloat16": {"dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("case", [None, *DIRECT])
def test_is_taken_only_where_it_is_faster(case):
    options = LARGE | DIRECT.get(case, {})
    dtype, strides = options.get("dtype", jnp.float32), options.get("strides", (1, 1))
    inputs = [jax.ShapeDtypeStruct(options[name], dtype) for name in ("shape", "kernel")]
    program = jax.make_jaxpr(
        lambda x, kernel: convolution(x, kernel, strides, options.get("padding", ONE), **NUMBERS)
    )(*inputs)
    assert ("conv_general_dilated" in str(program)) == (case is not None)
