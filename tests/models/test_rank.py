"""The networks on volumes: shapes, gradients, and the parts that depend on the rank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ldm_morph_jax.models import planes
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.models.layers import upsample_nearest
from ldm_morph_jax.models.registration import RegistrationNetwork, upsample_bicubic
from ldm_morph_jax.models.swin import (
    PatchMerging,
    WindowAttention,
    relative_position_index,
    shifted_window_mask,
    window_partition,
    window_reverse,
)
from ldm_morph_jax.models.transmorph import TransMorphNetwork
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.models.voxelmorph import VoxelMorphUNet

pytestmark = pytest.mark.integration

SPACE = (8, 16, 16)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SWIN = {"embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2), "window_size": 2, "mlp_ratio": 2}
IMAGES = random(2, 2, *SPACE, 1)
GROUPS = tuple(random(2, *(n // (4 * 2**level) for n in SPACE), 6) for level in range(2))
TIMES = jnp.array([0, 7])
CASES = {  # name -> (module, its arguments, shape of its output)
    "voxelmorph": (VoxelMorphUNet((4, 6), (6, 6), (4,)), (*IMAGES,), (2, *SPACE, 3)),
    "transmorph": (TransMorphNetwork(**SWIN, head_channels=4), (*IMAGES,), (2, *SPACE, 3)),
    "ldm_morph": (
        RegistrationNetwork(**SWIN, lgca_heads=2, lgca_depth=1),
        (np.concatenate(IMAGES, -1), GROUPS),
        (2, *SPACE, 3),
    ),
    "autoencoder": (Autoencoder(4, (1, 2), 1, (1,), 1, 8, 2), (IMAGES[0],), (2, *SPACE, 1)),
    "unet": (UNet(8, (1, 1), 1, (1,), 8, 4), (random(2, 4, 4, 2, 1), TIMES), (2, 4, 4, 2, 1)),
    "discriminator": (PatchDiscriminator(4, 1), (IMAGES[0],), (2, 2, 6, 6, 1)),
}
OPTIONS = {"ldm_morph": {"train": False}, "discriminator": {"train": False}}


@functools.cache
def drawn(name):
    """Random variables of a network, none of them zero, and its function."""
    module, arguments, _ = CASES[name]
    options = OPTIONS.get(name, {})
    init = functools.partial(module.init, jax.random.key(1), **options)
    shapes = jax.eval_shape(init, *arguments)
    variables = jax.tree.map(lambda a: 1 + 0.1 * random(*a.shape, seed=a.size), shapes)
    params = jax.tree.map(lambda a: 0.2 * random(*a.shape, seed=a.size), shapes["params"])
    return {**variables, "params": params}, functools.partial(module.apply, **options)


def output(result):
    return getattr(result, "reconstruction", result)


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_gradients(name):
    variables, apply = drawn(name)
    _, arguments, shape = CASES[name]
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        found = output(apply({"params": params, **rest}, *arguments))
        return jnp.mean(found**2), found

    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert found.shape == shape and found.dtype == jnp.float32
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        if "codebook" not in jax.tree_util.keystr(path):  # trained by a loss of its own
            assert np.any(leaf != 0), path


@pytest.mark.parametrize("name", ["voxelmorph", "transmorph"])
def test_sizes_that_do_not_fit_are_refused(name):
    variables, apply = drawn(name)
    with pytest.raises(ValueError, match="D, H and W multiples of "):
        apply(variables, *random(2, 1, 6, 16, 16, 1))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, (1, 1)), (3, 2, (0, 1)), (4, 4, (0, 0)), (1, 1, (0, 0))],
)
@pytest.mark.parametrize("features", [5, planes.FEW_FEATURES + 1])
def test_convolution_by_planes_is_the_convolution(kernel, stride, padding, features):
    x, weights = random(2, 8, 12, 8, 3), random(kernel, kernel, kernel, 3, features)
    settings = (stride,) * 3, (padding,) * 3

    def by_planes(x, weights):
        return planes.convolution(x, weights, *settings)

    def direct(x, weights):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, weights, *settings, dimension_numbers=numbers)

    np.testing.assert_allclose(by_planes(x, weights), direct(x, weights), atol=1e-4)
    ours, expected = (
        jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))(x, weights)
        for f in (by_planes, direct)
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_windows_of_volumes():
    x = random(2, 4, 6, 2, 3)
    windows = window_partition(x, 2)
    assert windows.shape == (2, 6, 8, 3)
    np.testing.assert_array_equal(windows[1, 4].reshape(2, 2, 2, 3), x[1, 2:, 2:4, :2])
    np.testing.assert_array_equal(window_reverse(windows, 2, (4, 6, 2)), x)


def test_relative_positions_and_masks_by_hand():
    index = relative_position_index(2, 3)
    assert index.shape == (8, 8) and len(np.unique(index)) == 27
    z, y, x = np.unravel_index(np.arange(8), (2, 2, 2))
    for q, k in np.ndindex(8, 8):
        row = (z[q] - z[k] + 1) * 9 + (y[q] - y[k] + 1) * 3 + x[q] - x[k] + 1
        assert index[q, k] == row
    # after a roll by one, what lies together in the last window of an axis came from both ends
    space, mask = (4, 2, 2), shifted_window_mask((4, 2, 2), 2, 1)
    place = np.stack(np.indices(space), -1)
    rolled = window_partition(np.roll(place, (-1, -1, -1), (0, 1, 2))[None], 2)[0]
    far = np.abs(rolled[:, :, None] - rolled[:, None]).max(-1) > 1
    first = (rolled[:, :, None] == 0) != (rolled[:, None] == 0)  # in axes of one window
    apart = far | first[..., 1:].any(-1)
    np.testing.assert_array_equal(mask < 0, apart)


def test_attention_of_a_volume_of_equal_planes_is_equal_in_all_planes():
    """A window that sees the same plane twice does as with one: axes are not mixed up."""
    module = WindowAttention(num_heads=2, window_size=2)
    plane = random(1, 4, 4, 4)
    volume = np.repeat(plane[:, None], 2, axis=1)
    variables = module.init(jax.random.key(0), volume)
    table = "relative_position_bias_table"
    params = variables["params"] | {table: jnp.zeros_like(variables["params"][table])}
    flat = params | {table: jnp.zeros((9, 2))}
    expected = module.apply({"params": flat}, plane)
    found = module.apply({"params": params}, volume)
    for k in range(2):
        np.testing.assert_allclose(found[:, k], expected, atol=1e-5)


def test_upsampling_of_volumes_is_that_of_each_axis():
    x = random(1, 2, 3, 4, 2)
    assert upsample_nearest(x).shape == upsample_bicubic(x).shape == (1, 4, 6, 8, 2)
    np.testing.assert_array_equal(upsample_nearest(x)[:, ::2, 1::2, ::2], x)
    flat = np.repeat(x[:, :1], 2, axis=1)  # nothing changes through the planes
    for k in range(4):
        np.testing.assert_allclose(
            upsample_bicubic(flat)[:, k], upsample_bicubic(x[:, 0]), atol=1e-5
        )
    merged = PatchMerging().init_with_output(jax.random.key(0), random(1, 4, 2, 2, 3))
    assert merged[0].shape == (1, 2, 1, 1, 6)
    assert merged[1]["params"]["reduction"]["kernel"].shape == (24, 6)
