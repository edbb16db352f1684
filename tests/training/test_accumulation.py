"""Gradient accumulation, rematerialisation and bfloat16: what they change and what they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.ldm import build_autoencoder, build_unet
from ldm_morph_jax.models.lgca import LGCA
from ldm_morph_jax.models.registration import DecoderBlock, RegistrationNetwork
from ldm_morph_jax.training.accumulation import in_parts, mean_gradient
from ldm_morph_jax.training.stages import STAGES, stage_program

pytestmark = pytest.mark.integration

RNG = np.random.default_rng(0)


def config_with(micro_batches=1, **compute):
    config = tiny_config("nowhere").unlock()
    config.compute.update(compute)
    config.autoencoder.adversarial_start = 0
    config.registration.model.drop_path_rate = 0.0  # each part draws its own
    for stage in STAGES:
        config[stage].train.batch_size = 4
        config[stage].train.micro_batches = micro_batches
    return config


def random_like(tree):
    return jax.tree.map(lambda a: 0.1 * RNG.normal(size=a.shape).astype(a.dtype), tree)


@pytest.mark.parametrize(
    "stage",
    [
        "autoencoder",
        pytest.param("diffusion", marks=pytest.mark.slow),  # as the two tests below
        pytest.param("registration", marks=pytest.mark.slow),
    ],
)
def test_accumulated_step_is_the_step_of_the_whole_batch(stage):
    whole, parts = (stage_program(config_with(micro_batches=n), stage, cached=True) for n in (1, 2))
    state = jax.jit(whole.init)(jax.random.key(0))
    frozen, batch = random_like((whole.frozen, whole.batch))
    results = [
        jax.jit(program.step)(state, frozen, batch, jax.random.key(1), 5)
        for program in (whole, parts)
    ]
    (expected, terms), (found, found_terms) = results
    for name, value in terms.items():
        assert float(found_terms[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    # Adam's first moment is proportional to the gradient
    optimisers = [[expected["optimiser"], found["optimiser"]]]
    if stage == "autoencoder":
        optimisers.append([s["discriminator"]["optimiser"] for s in (expected, found)])
    for a, b in optimisers:
        pairs = zip(jax.tree.leaves(a[0].mu), jax.tree.leaves(b[0].mu), strict=True)
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(a[0].mu))
        for x, y in pairs:
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5 * scale)


def test_mean_gradient_of_parts():
    w, x = jnp.arange(3.0), jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)

    def loss(w, x, number):
        value = jnp.mean(jnp.sin(x @ w))
        return value, {"value": value, "number": jnp.float32(number)}

    (expected, _), expected_gradient = mean_gradient(loss, w, x, 1)
    (value, terms), gradient = mean_gradient(loss, w, x, 3)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)
    assert terms["number"] == 1  # the mean of 0, 1, 2


def test_parts_are_put_together_in_order():
    rows = np.arange(12.0).reshape(6, 2)
    doubled, mean = in_parts(lambda x: (2 * x, x.mean()), rows, 3, joined=(True, False))
    np.testing.assert_array_equal(doubled, 2 * rows)
    assert mean == rows.mean()


def gradients(module, variables, *inputs, **arguments):
    """Value and gradients of the sum of squares in the parameters and the first input."""

    def loss(params, x):
        out = module.apply({"params": params}, x, *inputs[1:], **arguments)
        leaves = jax.tree.leaves(out)
        return sum(jnp.mean(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(variables["params"], inputs[0])


def assert_same_with_remat(module, *inputs, rngs=None, **arguments):
    without, with_remat = (
        jax.eval_shape(
            lambda remat=remat: module.clone(remat=remat).init(
                jax.random.key(0), *inputs, **arguments
            )
        )
        for remat in (False, True)
    )
    assert jax.tree.structure(without) == jax.tree.structure(with_remat)
    variables = random_like(without)
    if rngs:
        arguments |= {"train": True, "rngs": rngs}
    results = [
        gradients(module.clone(remat=remat), variables, *inputs, **arguments)
        for remat in (False, True)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


def test_recomputed_blocks_give_the_same_numbers():
    """LGCA consists of Swin blocks; in training, with the same draws of stochastic depth."""
    maps = jnp.asarray(RNG.normal(size=(2, 2, 8, 8, 8)), jnp.float32)
    assert_same_with_remat(
        LGCA(2, 4, drop_path_rate=0.5),
        *maps,
        train=False,
        rngs={"dropout": jax.random.key(3)},
    )


@pytest.mark.slow
def test_recomputed_networks_give_the_same_numbers():
    images = jnp.asarray(RNG.random((2, 8, 8, 1)), jnp.float32)
    config = config_with()
    assert_same_with_remat(build_autoencoder(config), images)
    assert_same_with_remat(build_unet(config), images, jnp.array([1, 5]))


def kept_for_backward(config, name):
    """Number of values that XLA keeps between the forward and backward pass, roughly."""
    program = stage_program(config, name, cached=True)
    text = jax.jit(program.step).lower(
        program.state, program.frozen, program.batch, jax.random.key(0), 0
    )
    return text.as_text().count("optimization_barrier")


@pytest.mark.parametrize(
    "stage",
    ["autoencoder", *(pytest.param(s, marks=pytest.mark.slow) for s in STAGES[1:])],
)
def test_every_stage_recomputes_when_asked(stage):
    assert kept_for_backward(config_with(), stage) == 0
    assert kept_for_backward(config_with(remat=True), stage) > 2


def test_bfloat16_leaves_what_must_be_float32():
    """Displacement, losses, parameters and moments; the layers themselves do change."""
    config = config_with(dtype="bfloat16")
    for name in STAGES:
        program = stage_program(config, name, cached=True)
        state, terms = jax.eval_shape(
            program.step,
            program.state,
            program.frozen,
            program.batch,
            jax.random.key(0),
            0,
        )
        assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves((state, terms)))
    taps = program.batch["moving_features"].taps
    assert {tap.dtype for tap in taps} == {jnp.dtype(jnp.bfloat16)}
    assert program.batch["moving_features"].latent.dtype == np.float32
    u = jax.eval_shape(
        build_method(config).displacement,
        program.state["params"],
        program.frozen,
        program.batch["moving"],
        program.batch["fixed"],
    )
    assert u.dtype == np.float32


def test_bfloat16_decoder_block_is_close():
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 8)), jnp.float32)
    skip = jnp.asarray(RNG.normal(size=(1, 8, 8, 4)), jnp.float32)
    params = DecoderBlock(8).init(jax.random.key(0), x, skip)
    exact = DecoderBlock(8).apply(params, x, skip)
    rounded = DecoderBlock(8, dtype=jnp.bfloat16).apply(params, x, skip)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.1)
    assert np.abs(rounded.astype(jnp.float32) - exact).max() > 1e-4


def test_unknown_compute_type_is_refused():
    config = config_with(dtype="float16")
    with pytest.raises(ValueError, match=r"compute\.dtype is 'float16', expected 'float32' or"):
        build_method(config)
    assert RegistrationNetwork().remat is False
