"""The denoising U-Net at tiny widths: features, taps, initialisation, names, compute type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_weights import relative_error

from ldm_morph_jax.models.layers import group_norm
from ldm_morph_jax.models.unet import TimeEmbedding, UNet
from ldm_morph_jax.published.ldm import unet_name
from ldm_morph_jax.published.names import from_published, to_published

# with fewer than 64 channels every group of a GroupNorm is one channel, and the norm that follows
# removes the time embedding that a block adds to its channels
TINY = {"base_channels": 64, "channel_multipliers": (1, 2), "attention_levels": (1,)}


def randomised(params):
    """All parameters random: the zero-initialised layers would hide what comes before them."""
    rng = np.random.default_rng(0)

    def leaf(x):
        scale = 0.2 if x.ndim == 1 else 1 / np.sqrt(np.prod(x.shape[:-1]))
        return np.asarray(x) + (scale * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree.map(leaf, params)


@functools.cache
def tiny():
    """A tiny U-Net, its initial parameters, latents and times."""
    model = UNet(**TINY)
    z = jax.random.normal(jax.random.key(1), (2, 4, 6, 1))
    t = jnp.array([1, 700])
    return model, jax.jit(model.init)(jax.random.key(0), z, t)["params"], z, t


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, params, z, t, method="__call__"):
    return model.apply({"params": params}, z, t, method=method)


def test_published_size():
    z, t = jnp.zeros((1, 32, 32, 1)), jnp.zeros(1, jnp.int32)
    abstract = jax.eval_shape(UNet().init, jax.random.key(0), z, t)
    assert sum(x.size for x in jax.tree.leaves(abstract)) == 22_409_537


def test_published_taps():
    z, t = jnp.zeros((3, 32, 32, 1)), jnp.zeros(3, jnp.int32)
    taps = jax.eval_shape(
        lambda: UNet().init_with_output(jax.random.key(0), z, t, method="taps")[0]
    )
    widths = [64 + 64, 64 + 128, 128 + 192, 192 + 256]
    sizes = [32, 16, 8, 4]
    assert [x.shape for x in taps] == [(3, n, n, c) for n, c in zip(sizes, widths, strict=True)]


@pytest.mark.integration
def test_features_are_named_in_order_and_taps_are_first_and_last():
    model, params, z, t = tiny()
    params = randomised(params)
    features = apply(model, params, z, t, method="encode")
    assert {name: x.shape for name, x in features.items()} == {
        "level0/stem": (2, 4, 6, 64),
        "level0/block0": (2, 4, 6, 64),
        "level0/block1": (2, 4, 6, 64),
        "level1/downsample": (2, 2, 3, 64),
        "level1/block0": (2, 2, 3, 128),
        "level1/block1": (2, 2, 3, 128),
    }
    order = ["stem", "block0", "block1", "downsample", "block0", "block1"]
    assert [name.split("/")[1] for name in features] == order
    taps = apply(model, params, z, t, method="taps")
    for level, first in enumerate(("stem", "downsample")):
        expected = [features[f"level{level}/{first}"], features[f"level{level}/block1"]]
        np.testing.assert_allclose(taps[level], np.concatenate(expected, axis=-1), atol=1e-5)


def test_taps_need_no_decoder():
    model, params, z, t = tiny()
    taps = apply(model, params, z, t, method="taps")
    without = {name: params[name] for name in ("encoder", "time_embedding")}
    found = apply(model, without, z, t, method="taps")
    jax.tree.map(np.testing.assert_array_equal, found, taps)


@pytest.mark.integration
def test_eps_depends_on_every_parameter():
    model, params, z, t = tiny()
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(apply(model, p, z, t) ** 2)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(randomised(params))):
        assert np.max(np.abs(leaf)) > 1e-4 and np.all(np.isfinite(leaf)), path


def test_initial_eps_is_zero():
    model, params, z, t = tiny()
    np.testing.assert_array_equal(apply(model, params, z, t), np.zeros(z.shape))


def test_eps_has_the_channels_of_the_latent():
    model, _, _, t = tiny()
    z = jnp.zeros((2, 4, 4, 3))
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), z, t)[0])
    assert output.shape == z.shape and output.dtype == jnp.float32


def test_samples_do_not_mix_and_time_matters():
    model, params, z, t = tiny()
    params = randomised(params)
    eps = apply(model, params, z, t)
    scale = float(jnp.std(eps))
    np.testing.assert_allclose(eps[::-1], apply(model, params, z[::-1], t[::-1]), atol=1e-4 * scale)
    assert not np.allclose(eps, apply(model, params, z, t[::-1]), atol=0.01 * scale)
    other = apply(model, params, z.at[0].add(1), t)
    np.testing.assert_allclose(other[1], eps[1], atol=1e-4 * scale)


def test_time_embedding_starts_from_cosines_then_sines():
    module = TimeEmbedding(base_channels=4)
    t = jnp.array([0, 1, 500])
    params = module.init(jax.random.key(0), t)["params"]
    identity = {"kernel": jnp.eye(4, 16), "bias": jnp.zeros(16)}
    last = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    assert params["dense0"]["kernel"].shape == (4, 16)
    found = module.apply({"params": {"dense0": identity, "dense1": last}}, t)[:, :4]
    angles = np.array([0, 1, 500])[:, None] * [1, 0.01]
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(found, expected / (1 + np.exp(-expected)), atol=1e-4)


@pytest.mark.parametrize(
    "options, shape, times, message",
    [
        ({}, (2, 5, 8, 1), (2,), "multiples of 2"),
        ({}, (8, 8, 1), (8,), "multiples of 2"),
        ({}, (2, 8, 8, 1), (1,), "t has shape"),
        ({"head_channels": 3}, (2, 8, 8, 1), (2,), "heads of 3"),
    ],
)
def test_inputs_that_do_not_fit(options, shape, times, message):
    model = UNet(**TINY | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(times, jnp.int32))


def test_bfloat16_computes_close_and_returns_float32():
    model, params, z, t = tiny()
    params = randomised(params)
    exact = apply(model, params, z, t)
    eps = apply(UNet(**TINY, dtype=jnp.bfloat16), params, z, t)
    assert eps.dtype == jnp.float32
    assert 0 < relative_error(eps, exact) < 0.05


def test_published_names_of_other_depths():
    depths = {"residual_blocks": 1, "attention_levels": (2,)}
    model = UNet(base_channels=4, channel_multipliers=(1, 2, 3), head_channels=2, **depths)
    abstract = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    )["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    name_of = functools.partial(unet_name, levels=3, **depths)
    published = to_published(params, name_of)
    assert len(published) == len(jax.tree.leaves(params))  # no name twice
    assert published["input_blocks.2.0.op.weight"].shape == (4, 4, 3, 3)
    assert published["input_blocks.5.1.qkv.weight"].shape == (36, 12, 1)
    assert published["output_blocks.1.2.conv.weight"].shape == (12, 12, 3, 3)  # after attention
    assert published["output_blocks.3.1.conv.weight"].shape == (8, 8, 3, 3)  # no attention there
    assert published["output_blocks.5.0.in_layers.0.weight"].shape == (8,)
    back = from_published(published, abstract, name_of)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        group_norm(jnp.zeros((1, 2, 2, 6)), 4, epsilon=1e-5)
