"""The registration network and its losses against the published implementation's own outputs.

The fixture holds images, latents and the noise of `q_sample`; the full feature groups come from our
U-Net on the golden latents. All weights are regenerated from the published names.
"""

import functools
from typing import NamedTuple

import compile_options
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_report import record
from published_weights import arrays, description, relative_error, state_dict

from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.registration import RegistrationNetwork
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import linear_schedule, q_sample
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.ops.losses import latent_similarity, pixel_similarity, smoothness
from ldm_morph_jax.published.ldm import autoencoder_name, unet_name
from ldm_morph_jax.published.names import from_published, to_published
from ldm_morph_jax.published.registration import registration_name, registration_unread

pytestmark = pytest.mark.integration

PER_BLOCK = 2e-5
END_TO_END = 2e-4

# pixel loss, latent loss, total: weights of the terms pixel, latent, smoothness
LOSSES = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.4, 0.01]], np.float32)
GROUP_CHANNELS = (256, 384, 640, 896)


def golden_map(name):
    """A golden map as `[1, h, w, C]`."""
    x = arrays()[name]
    return (x[..., None] if x.ndim == 2 else x.transpose(1, 2, 0))[None]


def tree(module, name_of, prefix, *inputs, unread=lambda name: False, **options):
    """Regenerated weights as the parameter tree of `module`."""
    abstract = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **options), *inputs)
    return from_published(state_dict(prefix), abstract["params"], name_of, unread=unread)


@pytest.fixture(scope="module", autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


class Inputs(NamedTuple):
    pair: jax.Array  # [1, 128, 128, 2]
    groups: tuple[jax.Array, ...]
    params: dict  # of the registration network


@pytest.fixture(scope="module")
def inputs(highest_precision):
    unet = UNet()
    latents = jnp.concatenate([golden_map("latent_moving"), golden_map("latent_fixed")])
    noise = jnp.concatenate([golden_map("noise_moving"), golden_map("noise_fixed")])
    t = jnp.full(2, description()["ddim_t"])
    params = tree(unet, unet_name, "model.diffusion_model.", latents, t)

    @functools.partial(jax.jit, compiler_options=compile_options.DEFAULT)
    def groups(params, latents, noise):
        noisy = q_sample(linear_schedule(), latents, t, noise)
        taps = unet.apply({"params": params}, noisy, t, method="taps")
        return tuple(jnp.concatenate([tap[:1], tap[1:]], axis=-1) for tap in taps)

    groups = groups(params, latents, noise)
    pair = jnp.concatenate([golden_map("moving"), golden_map("fixed")], axis=-1)
    network_params = tree(
        RegistrationNetwork(),
        registration_name,
        "registration.",
        pair,
        groups,
        unread=registration_unread,
        train=False,
    )
    return Inputs(pair, groups, network_params)


class Outputs(NamedTuple):
    displacement: jax.Array  # [1, 128, 128, 2] pixels, corners
    intermediates: dict
    warped: jax.Array
    latent_warped: jax.Array
    losses: jax.Array  # pixel, latent, smoothness (half-size scale)
    gradient_warped: jax.Array  # of the latent loss with respect to the warped image
    # trees like the parameters, keyed by (where the losses are linearised, the loss)
    gradients: dict[tuple[str, str], dict]


@pytest.fixture(scope="module")
def outputs(inputs):
    network, autoencoder = RegistrationNetwork(), Autoencoder()
    moving, fixed = inputs.pair[..., :1], inputs.pair[..., 1:]
    encoder_params = tree(
        autoencoder,
        autoencoder_name,
        "first_stage_model.",
        moving,
        unread=lambda name: name.startswith("loss."),
    )

    @functools.partial(jax.jit, compiler_options=compile_options.DEFAULT)
    def run(params, encoder_params, inputs):
        def register(params):
            displacement, intermediates = network.apply(
                {"params": params},
                inputs.pair,
                inputs.groups,
                train=False,
                return_intermediates=True,
            )
            return displacement, intermediates

        displacement, network_vjp, intermediates = jax.vjp(register, params, has_aux=True)

        def encode(images):
            return autoencoder.apply({"params": encoder_params}, images, method="encode")

        latent_fixed = encode(fixed)

        def losses(displacement):
            """Losses, their gradients with respect to the displacement, and what led to them."""
            warped, warp_vjp = jax.vjp(lambda u: warp(moving, u), displacement)
            latent_warped, encode_vjp = jax.vjp(encode, warped)
            latent, gradient = jax.value_and_grad(lambda z: latent_similarity(latent_fixed, z))(
                latent_warped
            )
            (latent_gradient,) = encode_vjp(gradient)
            pixel, pixel_gradient = jax.value_and_grad(lambda x: pixel_similarity(fixed, x))(warped)
            # the published code measures smoothness in units of half the size
            smooth, smooth_gradient = jax.value_and_grad(lambda u: smoothness(u * 128 / 127))(
                displacement
            )
            terms = jnp.stack(
                [warp_vjp(pixel_gradient)[0], warp_vjp(latent_gradient)[0], smooth_gradient]
            )
            # the gradients of the pixel loss, the latent loss and the total
            by_loss = jnp.tensordot(LOSSES, terms, axes=1)
            return (
                jnp.stack([pixel, latent, smooth]),
                by_loss,
                warped,
                latent_warped,
                latent_gradient,
            )

        # one compilation serves our displacement and the published one
        both = jnp.stack([displacement, golden_map("flow") * 63.5])
        values, cotangents, warped, latent_warped, latent_gradient = jax.lax.map(losses, both)
        names = [("published", loss) for loss in ("pixel", "latent", "total")] + [("ours", "total")]
        cotangents = jnp.concatenate([cotangents[1], cotangents[0, 2:]])
        gradients = jax.lax.map(lambda cotangent: network_vjp(cotangent)[0], cotangents)
        return Outputs(
            displacement,
            intermediates,
            warped[0],
            latent_warped[0],
            values[0],
            latent_gradient[0],
            {name: jax.tree.map(lambda g, k=k: g[k], gradients) for k, name in enumerate(names)},
        )

    return run(inputs.params, encoder_params, inputs)


def check_block(block, name, actual, tolerance=PER_BLOCK):
    """First two channels, and mean, deviation, minimum and maximum over all of them."""
    actual = np.asarray(actual, np.float64)[0].transpose(2, 0, 1)
    expected, statistics = arrays()[f"{name}_first_channels"], arrays()[f"{name}_stats"]
    record(block, relative_error(actual[:2], expected), tolerance)
    found = np.array([actual.mean(), actual.std(), actual.min(), actual.max()])
    # relative to the deviation: the mean is close to zero
    worst = np.max(np.abs(found - statistics) / statistics[1])
    record(f"{block}, statistics", worst, tolerance)


def test_golden_state_dict_round_trip(inputs):
    published = state_dict("registration.")
    back = to_published(inputs.params, registration_name)
    assert back.keys() == {name for name in published if not registration_unread(name)}
    assert len(published) - len(back) == 30
    assert all(np.array_equal(back[name], published[name]) for name in back)
    # the index tables are no parameters, but checkpoints hold them
    buffers = [
        name.removeprefix("registration.")
        for name, shape in description()["parameters"].items()
        if isinstance(shape, dict) and name.startswith("registration.")
    ]
    assert len(buffers) == 18 and all(registration_unread(name) for name in buffers)


def test_golden_latent_groups(inputs):
    for level, group in enumerate(inputs.groups):
        assert group.shape[-1] == GROUP_CHANNELS[level]
        check_block("registration: latent group", f"latent_group_{level}", group)


@pytest.mark.parametrize("block", ["swin", "upper_stream", "lgca_global", "lgca_latent"])
def test_golden_blocks(outputs, block):
    maps = outputs.intermediates[block]
    assert len(maps) == (3 if block == "lgca_latent" else 4)
    for level, actual in enumerate(maps):
        check_block(f"registration: {block}", f"{block}_{level}", actual)


def test_golden_displacement(outputs):
    normalised = np.asarray(outputs.intermediates["normalised_displacement"])
    record("registration: flow", relative_error(normalised, golden_map("flow")), END_TO_END)
    np.testing.assert_allclose(outputs.displacement, normalised * 63.5, rtol=1e-6)


def test_golden_warped_image_alone():
    """The warp by itself: the golden displacement samples outside at a fifth of the pixels."""
    warped = jax.jit(warp)(
        jnp.asarray(golden_map("moving")), jnp.asarray(golden_map("flow") * 63.5)
    )
    record("registration: warp alone", relative_error(warped, golden_map("warped")), PER_BLOCK)


def test_golden_warped_image(outputs):
    error = relative_error(outputs.warped, golden_map("warped"))
    record("registration: warped", error, END_TO_END)
    error = relative_error(outputs.latent_warped, golden_map("latent_warped"))
    record("registration: latent of warped", error, END_TO_END)


def test_golden_losses(outputs):
    values = [*outputs.losses, LOSSES[2] @ outputs.losses]
    names = ("pixel", "latent", "smoothness", "total")
    for name, value, expected in zip(names, values, arrays()["losses"], strict=True):
        error = abs(float(value) - expected) / expected
        record(f"registration: loss {name}", error, END_TO_END)


def test_golden_gradient_of_the_latent_loss(outputs):
    error = relative_error(outputs.gradient_warped, golden_map("grad_lat_wrt_warped"))
    record("registration: d latent loss / d warped", error, END_TO_END)


def test_golden_jacobian(outputs):
    alone = jax.jit(jacobian_determinant)(jnp.asarray(golden_map("flow") * 63.5))
    expected = arrays()["jacobian_determinant"][None]
    record("registration: Jacobian alone", relative_error(alone, expected), PER_BLOCK)
    found = jacobian_determinant(outputs.displacement)
    record("registration: Jacobian", relative_error(found, expected), END_TO_END)
    # one pixel of the 16384 may change sides by rounding
    percent = 100 * np.mean(np.asarray(found) <= 0)
    error = abs(percent - float(arrays()["jacobian_nonpositive_percent"]))
    record("registration: folded pixels, percentage points", error, 100 / 16384)


@pytest.mark.parametrize(
    "linearised, loss, key, median, largest",
    [
        ("published", "total", "grad_norms", 1e-5, 5e-4),
        ("published", "pixel", "grad_norms_pix", 1e-5, 5e-4),
        ("published", "latent", "grad_norms_lat", 1e-5, 5e-4),
        ("ours", "total", "grad_norms", 1e-3, 2e-2),
    ],
)
def test_golden_gradient_norms(outputs, linearised, loss, key, median, largest):
    """Norm of the gradient of every parameter, inference mode.

    The derivative of bilinear interpolation jumps where a sampling point passes a pixel centre.
    Our flow differs by 1e-5 (2e-4 pixels): a dozen of the 16384 points lie on the other side, and
    with the noise images' steep slopes this alone moves norms by 1e-3 (perturbing the published
    flow by as much shows the same). Hence two comparisons: with the losses linearised at the
    published flow, tight, and end to end, loose.
    """
    expected = description()[key]
    gradients = outputs.gradients[linearised, loss]
    found = {
        registration_name(tuple(part.key for part in path)): np.linalg.norm(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda leaf: leaf.reshape(-1), gradients)
        )
    }
    assert found.keys() == expected.keys()
    errors = [abs(found[name] - expected[name]) / expected[name] for name in expected]
    where = f"registration: gradient norms of {loss} at {linearised} flow"
    record(f"{where}, median", np.median(errors), median)
    record(f"{where}, largest", np.max(errors), largest)


def test_golden_displacement_in_bfloat16(inputs):
    """bfloat16 keeps 8 bits, 4e-3 per operation; the weights are random, the network is deep."""
    network = RegistrationNetwork(dtype=jnp.bfloat16)
    run = jax.jit(lambda params, *x: network.apply({"params": params}, *x, train=False))
    displacement = run(inputs.params, inputs.pair, inputs.groups)
    assert displacement.dtype == jnp.float32
    error = relative_error(displacement, golden_map("flow") * 63.5)
    record("registration: flow in bfloat16", error, 0.1)
