"""The PatchGAN discriminator at tiny widths: shapes, batch normalisation, initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.published.ldm import discriminator_name
from ldm_morph_jax.published.names import from_published, to_published


@pytest.fixture(scope="module")
def tiny():
    model = PatchDiscriminator(base_channels=4)
    x = jax.random.uniform(jax.random.key(1), (3, 32, 32, 1))
    return model, jax.jit(model.init, static_argnames="train")(jax.random.key(0), x, train=True), x


@functools.partial(jax.jit, static_argnames="model")
def apply(model, variables, x):
    """In training mode: (logits, updated statistics)."""
    return model.apply(variables, x, train=True, mutable=["batch_stats"])


def test_shapes():
    shapes = {}
    for layers in (1, 2, 3, 4):
        model = PatchDiscriminator(base_channels=4, layers=layers)
        output = jax.eval_shape(
            lambda x, m=model: m.init_with_output(jax.random.key(0), x, train=False)[0],
            jnp.zeros((1, 64, 64, 1)),
        )
        shapes[layers] = output.shape
    assert shapes == {1: (1, 30, 30, 1), 2: (1, 14, 14, 1), 3: (1, 6, 6, 1), 4: (1, 2, 2, 1)}


def test_widths_double_up_to_eight_fold():
    model = PatchDiscriminator(base_channels=4, layers=4)
    params = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 64, 64, 1))
    )["params"]
    assert [params[f"conv{i}"]["kernel"].shape[-1] for i in range(6)] == [4, 8, 16, 32, 32, 1]
    assert [i for i in range(6) if "bias" in params[f"conv{i}"]] == [0, 5]


def test_training_updates_the_statistics(tiny):
    model, variables, x = tiny
    _, updated = apply(model, variables, x)
    before, after = variables["batch_stats"]["norm1"], updated["batch_stats"]["norm1"]
    # what norm1 normalises, from the first two convolutions by hand
    h = x
    for i in range(2):
        layer = variables["params"][f"conv{i}"]
        h = jax.lax.conv_general_dilated(
            h,
            layer["kernel"],
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if i == 0:
            h = h + layer["bias"]
            h = jnp.where(h > 0, h, 0.2 * h)
    mean, variance = h.mean((0, 1, 2)), h.var((0, 1, 2))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, atol=1e-7)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * variance, rtol=1e-5)


def test_evaluation_uses_the_running_statistics(tiny):
    model, variables, x = tiny
    run = jax.jit(lambda x: model.apply(variables, x, train=False))
    one = run(x[:1])
    np.testing.assert_allclose(run(x)[:1], one, atol=1e-6)
    batch, _ = apply(model, variables, x)
    assert not np.allclose(batch[:1], one, atol=1e-3)


def test_initialisation():
    model = PatchDiscriminator()
    params = jax.jit(model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
    )["params"]
    assert np.std(params["conv2"]["kernel"]) == pytest.approx(0.02, rel=0.02)
    scale = params["norm3"]["scale"]
    assert np.mean(scale) == pytest.approx(1, abs=0.005)
    assert np.std(scale) == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(params["norm3"]["bias"], 0)


def test_bfloat16_returns_float32(tiny):
    _, variables, x = tiny
    half = PatchDiscriminator(base_channels=4, dtype=jnp.bfloat16)
    y, updated = apply(half, variables, x)
    assert y.dtype == jnp.float32
    assert all(s.dtype == jnp.float32 for s in jax.tree.leaves(updated))


def test_published_names_with_running_statistics(tiny):
    _, variables, _ = tiny
    published = to_published(variables, discriminator_name)
    assert published["main.0.bias"].shape == (4,)
    assert published["main.8.weight"].shape == (32, 16, 4, 4)
    assert published["main.9.running_var"].shape == published["main.9.weight"].shape == (32,)
    assert published["main.11.weight"].shape == (1, 32, 4, 4)
    back = from_published(published, variables, discriminator_name)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
