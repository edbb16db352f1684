"""The networks of the other learned methods: sizes, initial output, parts against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ldm_morph_jax.models.cyclemorph import DeformationUNet
from ldm_morph_jax.models.diffusemorph import DenoisingUNet
from ldm_morph_jax.models.layers import ConvTranspose, upsample_bilinear
from ldm_morph_jax.models.transmatch import TransMatchNetwork
from ldm_morph_jax.models.transmorph import TransMorphNetwork
from ldm_morph_jax.models.voxelmorph import VoxelMorphUNet

pytestmark = pytest.mark.integration

TINY = {"embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4, "mlp_ratio": 2}
NETWORKS = {  # with two levels each: sizes are multiples of 8 at most
    "voxelmorph": VoxelMorphUNet((4, 6), (6, 6), (6, 4)),
    "cyclemorph": DeformationUNet((4, 6, 6), (6, 4, 4)),
    "transmorph": TransMorphNetwork(**TINY, head_channels=4),
    "transmatch": TransMatchNetwork(**TINY, cross_heads=2, cross_depth=2),
}
MULTIPLES = {"voxelmorph": 4, "cyclemorph": 4, "transmorph": 8, "transmatch": 8}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def initialised(name):
    network = NETWORKS[name]
    images = random(2, 2, 32, 16, 1)
    variables = jax.jit(network.init)(jax.random.key(1), *images)
    return network, variables, images


@pytest.mark.parametrize("name", NETWORKS)
def test_displacement_is_near_zero_at_the_start(name):
    network, variables, images = initialised(name)
    u = jax.jit(network.apply)(variables, *images)
    assert u.shape == (2, 32, 16, 2) and u.dtype == jnp.float32
    assert 0 < np.abs(u).max() < 0.01  # pixels


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter_and_image(name):
    network, variables, images = initialised(name)
    head = variables["params"]["head"]
    strong = {"params": {**variables["params"], "head": {**head, "kernel": head["kernel"] * 1e4}}}

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(variables, images):
        return jnp.mean(network.apply(variables, *images) ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(strong, images)):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_that_do_not_fit_are_refused(name):
    network, variables, _ = initialised(name)
    with pytest.raises(ValueError, match=f"multiples of {MULTIPLES[name]} "):
        network.apply(variables, *random(2, 1, 32, 18, 1))


def test_transmatch_has_one_encoder_for_single_images():
    network, variables, (moving, fixed) = initialised("transmatch")
    params = variables["params"]
    assert set(params) == {"swin", "cross0", "cross1", "half", "decoder0", "decoder1", "head"}
    assert params["swin"]["patch_embedding"]["kernel"].shape == (4, 4, 1, 8)

    @jax.jit
    def maps(moving, fixed):
        (found,) = network.apply(
            variables,
            moving,
            fixed,
            capture_intermediates=lambda module, _: module.name == "swin",
            mutable="intermediates",
        )[1]["intermediates"]["swin"]["__call__"]
        return found

    for pair, swapped in zip(maps(moving, fixed), maps(fixed, moving), strict=True):
        assert len(pair) == 4  # both images of two pairs
        np.testing.assert_allclose(pair, np.roll(swapped, 2, axis=0), atol=1e-5)


def test_drop_path_draws_in_training():
    network, variables, images = initialised("transmorph")
    run = jax.jit(lambda key: network.apply(variables, *images, train=True, rngs={"dropout": key}))
    first, again, other = (np.asarray(run(jax.random.key(k))) for k in (0, 0, 3))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_denoising_unet():
    network = DenoisingUNet(8, (1, 2), norm_groups=4)
    moving, fixed, noisy = random(3, 2, 16, 8, 1)
    variables = jax.jit(network.init)(
        jax.random.key(0), moving, fixed, noisy, jnp.zeros(2, jnp.int32)
    )
    run = jax.jit(network.apply)

    def eps(moving=moving, fixed=fixed, noisy=noisy, t=(0, 7)):
        return np.asarray(run(variables, moving, fixed, noisy, jnp.array(t)))

    assert eps().shape == (2, 16, 8, 1) and np.all(np.isfinite(eps()))
    for change in ({"moving": -moving}, {"fixed": -fixed}, {"noisy": -noisy}, {"t": (1, 7)}):
        assert np.any(eps(**change)[0] != eps()[0]), change
    np.testing.assert_array_equal(eps(t=(1, 7))[1], eps()[1])
    with pytest.raises(ValueError, match="multiples of 2 "):
        network.apply(variables, *random(3, 1, 16, 9, 1), jnp.zeros(1, jnp.int32))


def test_unequal_plans_are_refused():
    with pytest.raises(ValueError, match=r"decoder_channels \(4, 4\): expected 3 numbers"):
        DeformationUNet((4, 4, 4), (4, 4)).init(jax.random.key(0), *random(2, 1, 8, 8, 1))


def test_conv_transpose_is_pytorchs():
    x, ours = random(2, 5, 4, 6), ConvTranspose(3)
    params = ours.init(jax.random.key(0), x)["params"]
    layer = torch.nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(params["kernel"]).transpose(2, 3, 0, 1)))
        layer.bias.copy_(torch.from_numpy(np.array(params["bias"])))
        expected = layer(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(
        ours.apply({"params": params}, x), expected.transpose(0, 2, 3, 1), atol=1e-6
    )


def test_bilinear_upsampling_is_pytorchs():
    x = random(2, 5, 3, 4)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    expected = torch.nn.functional.interpolate(
        image, scale_factor=2, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(
        upsample_bilinear(x), expected.numpy().transpose(0, 2, 3, 1), atol=1e-6
    )
