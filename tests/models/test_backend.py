"""Both forms of what is chosen by backend: the same values and gradients, and who gets which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models import layers
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.backend import straightforward
from ldm_morph_jax.models.registration import DecoderBlock, upsample_axis
from ldm_morph_jax.models.unet import UNet

pytestmark = pytest.mark.integration

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def group_norm(norm, dtype=jnp.float32):
    return lambda *inputs: norm(*inputs, groups=2, epsilon=1e-5, dtype=dtype)


def convolution(form):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, kernel: form(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers)


CASES = {
    "convolution": (
        layers.convolution,
        convolution,
        [normal(1, 64, 32, 128), normal(3, 3, 128, 128)],
    ),
    "attention": (layers.dot_product_attention, lambda f: f, [normal(2, 9, 3, 4)] * 3),
    "group norm": (layers.normalise_groups, group_norm, [normal(2, 4, 4, 6), *normal(2, 6)]),
    "transposed convolution": (
        layers.transposed_convolution,
        lambda f: f,
        [normal(2, 5, 4, 3), normal(3, 3, 3, 2)],
    ),
    "bicubic": (upsample_axis, lambda f: lambda x: f(f(x, 1), 2), [normal(2, 5, 4, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_both_forms_have_the_same_values_and_gradients(name):
    chosen, use, inputs = CASES[name]
    inputs = [x + 0.1 * normal(*x.shape) for x in inputs]

    def with_gradients(form):
        out, pullback = jax.vjp(use(form), *inputs)
        return out, pullback(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    pairs = zip(*map(jax.tree.leaves, map(with_gradients, (chosen.cpu, chosen.other))), strict=True)
    for found, expected in pairs:
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


def test_both_forms_keep_bfloat16_outside_and_float32_inside():
    """A large mean is the test: its square in bfloat16 would swallow the variance."""
    x = (100 + normal(2, 4, 4, 6)).astype(jnp.bfloat16)
    scale, bias = jnp.ones(6), jnp.zeros(6)
    results = [
        group_norm(form, jnp.bfloat16)(x, scale, bias)
        for form in (layers.normalise_groups.cpu, layers.normalise_groups.other)
    ]
    assert {result.dtype for result in results} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(*(r.astype(np.float32) for r in results), atol=0.02)
    query = normal(1, 6, 2, 4).astype(jnp.bfloat16)
    attended = [
        form(query, query, query)
        for form in (layers.dot_product_attention.cpu, layers.dot_product_attention.other)
    ]
    assert {result.dtype for result in attended} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(*(r.astype(np.float32) for r in attended), atol=0.02)


def results_of_networks():
    """Outputs of networks that have every form in them, traced anew."""
    images, z = normal(1, 16, 16, 1), normal(1, 8, 8, 1)
    autoencoder = Autoencoder(4, (1, 2), 1, (1,), codebook_size=8, norm_groups=2)
    unet = UNet(8, (1, 1), 1, (1,), head_channels=4, norm_groups=4)
    block, skip = DecoderBlock(4), normal(1, 16, 16, 2)
    transposed = layers.ConvTranspose(3)

    def of(module, *inputs):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        params = jax.tree.map(lambda a: 0.3 * normal(*a.shape), shapes)
        return jax.jit(module.apply)(params, *inputs)

    return (
        of(autoencoder, images).latent,
        of(unet, z, jnp.array([3])),
        of(block, z, skip),
        of(transposed, z),
    )


def test_operations_are_counted_the_same_on_every_machine(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for chosen, *_ in CASES.values():
        named = dataclasses.replace(chosen, cpu=lambda: "cpu", other=lambda: "other")
        with straightforward():
            assert named() == "other"
        assert named() == "cpu"


def test_networks_give_the_same_on_every_backend(monkeypatch):
    """The CPU takes its own forms, any other backend the straightforward ones."""
    global RNG
    taken = []
    for chosen in (case[0] for case in CASES.values()):
        for form in ("cpu", "other"):
            function = getattr(chosen, form)

            def counted(*arguments, function=function, form=form, **options):
                taken.append((form, function))
                return function(*arguments, **options)

            monkeypatch.setitem(chosen.__dict__, form, counted)
    results = {}
    for backend in ("cpu", "gpu"):
        RNG, taken[:] = np.random.default_rng(1), []
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        results[backend] = results_of_networks()
        assert {form for form, _ in taken} == {"cpu" if backend == "cpu" else "other"}
        assert len({function for _, function in taken}) == len(CASES)
    for found, expected in zip(*results.values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
