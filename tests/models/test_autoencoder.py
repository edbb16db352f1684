"""The VQ autoencoder at tiny widths: shapes, quantiser, gradients, sizes, compute type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.autoencoder import (
    LAST_LAYER,
    Autoencoder,
    codebook_usage,
    nearest_codewords,
)
from ldm_morph_jax.published.ldm import autoencoder_name
from ldm_morph_jax.published.names import from_published, to_published

TINY = {"base_channels": 4, "channel_multipliers": (1, 2, 2), "residual_blocks": 1}


@functools.cache
def tiny(**options):
    """A tiny autoencoder and its initial parameters, with a codebook that the latents can use."""
    model = Autoencoder(**TINY | {"codebook_size": 32} | options)
    init = jax.jit(model.init)
    params = init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]
    shape = params["codebook"].shape
    return model, params | {"codebook": jax.random.normal(jax.random.key(1), shape)}


IMAGES = np.random.default_rng(0).uniform(size=(2, 16, 24, 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, params, *args, method="__call__"):
    return model.apply({"params": params}, *args, method=method)


def test_published_size():
    abstract = jax.eval_shape(Autoencoder().init, jax.random.key(0), jnp.zeros((1, 128, 128, 1)))
    assert sum(x.size for x in jax.tree.leaves(abstract)) == 60_549_766


@pytest.mark.integration
@pytest.mark.parametrize("latent_channels", [1, 2])
def test_shapes(latent_channels):
    model, params = tiny(latent_channels=latent_channels)
    output = apply(model, params, IMAGES)
    assert output.reconstruction.shape == (2, 16, 24, 1)
    assert output.latent.shape == output.quantised.latent.shape == (2, 4, 6, latent_channels)
    assert output.quantised.indices.shape == (2, 4, 6)
    assert output.quantised.indices.dtype == jnp.int32
    codewords = params["codebook"][output.quantised.indices]
    np.testing.assert_allclose(output.quantised.latent, codewords, atol=1e-6)


def test_number_of_levels_sets_the_downsampling():
    model = Autoencoder(**TINY | {"channel_multipliers": (1, 2), "attention_levels": (0, 1)})
    assert model.downsampling == 2
    output = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 6, 8, 1))
    )
    assert output.latent.shape == (1, 3, 4, 1) and output.reconstruction.shape == (1, 6, 8, 1)


@pytest.mark.parametrize("shape", [(1, 18, 16, 1), (1, 16, 18, 1), (1, 16, 16, 2), (16, 16, 1)])
def test_images_that_do_not_fit(shape):
    model, params = tiny()
    with pytest.raises(ValueError, match="autoencoder: images are"):
        apply(model, params, jnp.zeros(shape), method="encode")


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_nearest_codewords_are_the_nearest(channels):
    z = jax.random.normal(jax.random.key(0), (3, 5, 4, channels))
    codebook = jax.random.normal(jax.random.key(1), (50, channels))
    codebook = codebook.at[7].set(codebook[3])  # of equal codewords the first is taken
    differences = np.asarray(z, np.float64)[..., None, :] - np.asarray(codebook, np.float64)
    expected = np.argmin(np.sum(differences**2, axis=-1), axis=-1)
    np.testing.assert_array_equal(nearest_codewords(z, codebook), expected)


def test_nearest_codewords_store_no_distances():
    shapes = jnp.zeros((4, 32, 32, 1)), jnp.zeros((16384, 1))
    memory = jax.jit(nearest_codewords).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**20  # all distances would take 256 MiB


def quantise(z, codebook):
    model = Autoencoder(codebook_size=codebook.shape[0], latent_channels=codebook.shape[1])
    return apply(model, {"codebook": codebook}, z, method="quantise")


def test_straight_through_gradient_is_the_identity():
    codebook = jax.random.normal(jax.random.key(1), (32, 2))
    z = jax.random.normal(jax.random.key(3), (2, 4, 4, 2))
    weights = jax.random.normal(jax.random.key(4), z.shape)

    def through(z, codebook):
        return jnp.sum(weights * quantise(z, codebook).latent)

    to_latent, to_codebook = jax.grad(through, (0, 1))(z, codebook)
    np.testing.assert_array_equal(to_latent, weights)
    np.testing.assert_array_equal(to_codebook, 0)


def test_losses_move_what_they_should():
    codebook = jnp.array([[0.0], [1.0], [5.0]])
    z = jnp.array([0.25, 0.5 + 0.1, 1.5, -1.0]).reshape(1, 2, 2, 1)
    nearest = jnp.array([0.0, 1.0, 1.0, 0.0]).reshape(z.shape)
    losses = quantise(z, codebook)
    np.testing.assert_array_equal(losses.indices[0], [[0, 1], [1, 0]])
    expected = jnp.mean((nearest - z) ** 2)
    np.testing.assert_allclose(losses.codebook_loss, expected, rtol=1e-6)
    np.testing.assert_allclose(losses.commitment_loss, expected, rtol=1e-6)

    def gradients(name):
        return jax.grad(lambda z, c: getattr(quantise(z, c), name), (0, 1))(z, codebook)

    to_latent, to_codebook = gradients("commitment_loss")
    np.testing.assert_allclose(to_latent, 2 / 4 * (z - nearest), rtol=1e-6)
    np.testing.assert_array_equal(to_codebook, 0)
    to_latent, to_codebook = gradients("codebook_loss")
    np.testing.assert_array_equal(to_latent, 0)
    # each codeword moves to the latents that chose it; the unused one stays
    np.testing.assert_allclose(to_codebook[:, 0], [2 / 4 * 0.75, 2 / 4 * (0.4 - 0.5), 0], rtol=1e-5)


def test_codebook_usage():
    def usage(indices, size):
        return [float(x) for x in codebook_usage(jnp.array(indices), size)]

    assert usage([[2, 2], [2, 2]], 4) == pytest.approx([1, 1 / 4])
    assert usage([0, 1, 2, 3], 4) == pytest.approx([4, 1])
    assert usage([0, 0, 0, 1], 8) == pytest.approx([np.exp(0.5623351446), 2 / 8])


def test_last_layer_gets_the_adversarial_gradient():
    model, params = tiny()
    gradient = jax.grad(lambda p, z: jnp.sum(apply(model, p, z, method="decode")))
    kernel = functools.reduce(
        lambda tree, key: tree[key], LAST_LAYER, gradient(params, jnp.ones((1, 2, 2, 1)))
    )
    assert kernel.shape == (3, 3, 4, 1)
    assert jnp.all(jnp.isfinite(kernel)) and jnp.any(kernel != 0)


def test_initial_codebook_is_uniform():
    model = Autoencoder(**TINY, codebook_size=1000)
    z = jnp.zeros((1, 4, 4, 1))
    codebook = model.init(jax.random.key(0), z, method="quantise")["params"]["codebook"]
    assert jnp.max(jnp.abs(codebook)) <= 1 / 1000
    assert jnp.std(codebook) == pytest.approx(1 / 1000 / np.sqrt(3), rel=0.1)


def test_bfloat16_computes_close_and_returns_float32():
    model, params = tiny()
    exact = apply(model, params, IMAGES)
    half = apply(Autoencoder(**TINY, codebook_size=32, dtype=jnp.bfloat16), params, IMAGES)
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(half))
    error = np.abs(np.asarray(half.latent - exact.latent))
    assert 0 < error.max() < 0.05 * np.abs(exact.latent).max()


def test_published_names_of_other_depths():
    model = Autoencoder(
        base_channels=4,
        channel_multipliers=(1, 2, 3, 4),
        residual_blocks=3,
        attention_levels=(0, 3),
        latent_channels=2,
        codebook_size=8,
    )
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    published = to_published(params, autoencoder_name)
    assert len(published) == len(jax.tree.leaves(params))  # no name twice
    assert published["decoder.up.0.block.0.nin_shortcut.weight"].shape == (4, 8, 1, 1)
    assert published["decoder.up.3.block.3.conv1.weight"].shape == (16, 16, 3, 3)
    assert published["encoder.down.0.attn.2.proj_out.bias"].shape == (4,)
    assert published["quant_conv.weight"].shape == (2, 2, 1, 1)
    assert published["quantize.embedding.weight"].shape == (8, 2)
    back = from_published(published, abstract, autoencoder_name)
    assert jax.tree.structure(back) == jax.tree.structure(params)
