import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.registration import RegistrationNetwork, upsample_bicubic
from ldm_morph_jax.published.registration import registration_name, registration_unread

TINY = {
    "embed_dim": 8,
    "depths": (1, 2),  # two levels: sizes are multiples of 8
    "num_heads": (2, 2),
    "window_size": 3,
    "mlp_ratio": 2,
    "lgca_heads": 2,
    "lgca_depth": 1,
}
CHANNELS = (8, 12)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(batch=2, height=32, width=16):
    pair = random(batch, height, width, 2)
    groups = tuple(
        random(batch, height >> (2 + level), width >> (2 + level), c, seed=level)
        for level, c in enumerate(CHANNELS)
    )
    return pair, groups


def make(fusion="lgca", **options):
    pair, groups = inputs()
    groups = None if fusion == "none" else groups
    network = RegistrationNetwork(**{**TINY, "fusion": fusion, **options})
    variables = jax.jit(network.init, static_argnames="train")(
        jax.random.key(0), pair, groups, train=False
    )
    return network, variables, pair, groups


@functools.partial(jax.jit, static_argnames=("network", "train", "return_intermediates"))
def run(network, variables, pair, groups, *, train=False, rngs=None, return_intermediates=False):
    return network.apply(
        variables,
        pair,
        groups,
        train=train,
        rngs=rngs,
        return_intermediates=return_intermediates,
    )


@pytest.fixture(scope="module")
def tiny():
    return make()


def with_strong_head(variables):
    head = variables["params"]["head"]
    head = {**head, "kernel": head["kernel"] * 1e4}
    return {"params": {**variables["params"], "head": head}}


def cubic(distance, a=-0.75):
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("size", [(5, 3), (1, 2)])
def test_bicubic_upsampling_against_the_formula(size):
    x = random(2, *size, 4)

    def matrix(size):  # dense interpolation matrix [2 size, size], borders repeated
        m = np.zeros((2 * size, size))
        for i in range(2 * size):
            centre = (i + 0.5) / 2 - 0.5
            for k in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                m[i, np.clip(k, 0, size - 1)] += cubic(centre - k)
        return m

    matrices = matrix(size[0]), matrix(size[1])
    expected = np.einsum("ih,jw,bhwc->bijc", *matrices, x)
    actual, transposed = jax.vjp(upsample_bicubic, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    cotangent = random(*expected.shape, seed=1)
    (gradient,) = transposed(cotangent)
    expected = np.einsum("ih,jw,bijc->bhwc", *matrices, cotangent)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert upsample_bicubic(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_parameter_count_of_the_published_size():
    network = RegistrationNetwork()
    pair = jax.ShapeDtypeStruct((1, 128, 128, 2), jnp.float32)
    groups = [
        jax.ShapeDtypeStruct((1, 32 >> level, 32 >> level, c), jnp.float32)
        for level, c in enumerate((256, 384, 640, 896))
    ]
    variables = jax.eval_shape(
        lambda pair, groups: network.init(jax.random.key(0), pair, groups, train=False),
        pair,
        groups,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 29_144_934


def test_displacement_is_near_zero_at_the_start(tiny):
    network, variables, pair, groups = tiny
    displacement = run(network, variables, pair, groups, train=False)
    assert displacement.shape == (2, 32, 16, 2) and displacement.dtype == jnp.float32
    assert 0 < np.abs(displacement).max() < 0.02  # pixels


def test_displacement_is_the_softsign_in_pixels(tiny):
    network, variables, pair, groups = tiny
    displacement, intermediates = run(
        network, variables, pair, groups, train=False, return_intermediates=True
    )
    normalised = intermediates["normalised_displacement"]
    np.testing.assert_allclose(displacement[..., 0], normalised[..., 0] * 31 / 2)
    np.testing.assert_allclose(displacement[..., 1], normalised[..., 1] * 15 / 2)


@pytest.mark.integration
@pytest.mark.parametrize("fusion", ["lgca", "concat", "none"])
def test_fusions(fusion):
    network, variables, pair, groups = make(fusion)
    displacement, intermediates = run(
        network, with_strong_head(variables), pair, groups, train=False, return_intermediates=True
    )
    assert displacement.shape == (2, 32, 16, 2) and np.all(np.isfinite(displacement))
    lengths = {name: len(intermediates[name]) for name in ("lgca_global", "lgca_latent")}
    used = fusion == "lgca"
    assert lengths == {"lgca_global": 2 * used, "lgca_latent": 1 * used}
    assert len(intermediates["swin"]) == 2
    assert len(intermediates["upper_stream"]) == (0 if fusion == "none" else 2)
    names = {re.sub(r"\d", "", name) for name in variables["params"]}
    common = {"swin", "decoder", "low_level", "head"}
    extra = {"lgca": {"upper", "lgca"}, "concat": {"upper"}, "none": set()}
    assert names == common | extra[fusion]

    if fusion != "none":  # every level's features reach the output
        for level in range(2):
            changed = [g * (2 if k == level else 1) for k, g in enumerate(groups)]
            other = run(network, with_strong_head(variables), pair, changed, train=False)
            assert not np.allclose(other, displacement)


def test_training_mode_draws_and_inference_mode_does_not(tiny):
    network, variables, pair, groups = tiny
    variables = with_strong_head(variables)

    def apply(train, key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        return np.asarray(run(network, variables, pair, groups, train=train, rngs=rngs))

    draws = [apply(True, k) for k in range(4)]
    assert len({draw.tobytes() for draw in draws}) > 1
    assert not any(np.array_equal(draw, apply(False)) for draw in draws)  # which takes no key
    with pytest.raises(Exception, match="dropout"):
        apply(True)


@pytest.mark.integration
def test_gradients_are_finite_and_reach_every_parameter(tiny):
    network, variables, pair, groups = tiny
    variables = with_strong_head(variables)

    def loss(variables):
        return jnp.mean(run(network, variables, pair, groups, train=False) ** 2)

    gradients = jax.jit(jax.grad(loss))(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


def test_samples_do_not_see_each_other(tiny):
    network, variables, pair, groups = tiny
    variables = with_strong_head(variables)
    both = run(network, variables, pair, groups, train=False)
    alone = run(network, variables, pair[1:], [g[1:] for g in groups], train=False)
    np.testing.assert_allclose(alone[0], both[1], atol=1e-3)


@pytest.mark.parametrize("height, width", [(36, 32), (32, 100)])
def test_sizes_that_do_not_fit_are_refused(tiny, height, width):
    network, variables, _, groups = tiny
    with pytest.raises(ValueError, match=f"{height}, {width}, 2.*multiples of 8"):
        network.apply(variables, random(2, height, width, 2), groups, train=False)


def test_wrong_inputs_are_refused(tiny):
    network, variables, pair, groups = tiny
    with pytest.raises(ValueError, match="2 channels"):
        run(network, variables, pair[..., :1], groups, train=False)
    for wrong in (None, groups[:1], groups[::-1]):
        with pytest.raises(ValueError, match="latent groups"):
            run(network, variables, pair, wrong, train=False)
    with pytest.raises(ValueError, match="latent groups"):
        RegistrationNetwork(**TINY, fusion="none").init(
            jax.random.key(0), pair, groups, train=False
        )
    with pytest.raises(ValueError, match="fusion 'sum'"):
        RegistrationNetwork(**TINY, fusion="sum").init(jax.random.key(0), pair, groups, train=False)


def test_bfloat16_returns_float32_displacements(tiny):
    _, variables, pair, groups = tiny
    network = RegistrationNetwork(**TINY, dtype=jnp.bfloat16)
    displacement = run(network, variables, pair, groups, train=False)
    assert displacement.dtype == jnp.float32 and np.all(np.isfinite(displacement))


def test_published_names_are_unique_and_read(tiny):
    _, variables, _, _ = tiny
    paths = [
        tuple(key.key for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
    ]
    names = [registration_name(path) for path in paths]
    assert len(set(names)) == len(names)
    assert not any(registration_unread(name) for name in names)
    assert registration_name(("lgca0", "block1", "attention", "qkv", "kernel")) == (
        "lwca1.transformer.layers.0.blocks.1.attn.qkv.weight"
    )
    assert registration_name(("decoder3", "conv1", "kernel")) == "up3.conv3.0.weight"
    assert registration_unread("up3.conv1.0.weight") and not registration_unread(
        "up3.conv3.0.weight"
    )
    with pytest.raises(KeyError, match="decoder3/gain"):
        registration_name(("decoder3", "gain"))
