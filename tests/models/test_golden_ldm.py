"""The latent diffusion model's networks against the published implementation's own outputs.

The fixtures are files of numbers; every test compares one network with regenerated weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_report import record
from published_weights import arrays, description, relative_error, state_dict

from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import ddim_invert, linear_schedule, q_sample
from ldm_morph_jax.published.ldm import autoencoder_name, discriminator_name, unet_name
from ldm_morph_jax.published.names import from_published, to_published

pytestmark = pytest.mark.integration

TOLERANCE = 2e-5

IMAGE = jax.ShapeDtypeStruct((1, 128, 128, 1), np.float32)
LATENT = jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32)
TIME = jax.ShapeDtypeStruct((1,), np.int32)


def golden(*names: str) -> np.ndarray:
    """Golden maps (1, h, w) or (h, w), one per name, as a batch [B, h, w, 1]."""
    maps = [arrays()[name] for name in names]
    return np.stack([m.reshape(*m.shape[-2:], 1) for m in maps])


def published_params(model, name_of, prefix, *inputs, unread=lambda name: False, **options):
    """Parameters of `model` from the regenerated state dict; the way back must be exact."""
    abstract = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x, **options), *inputs)
    published = state_dict(prefix)
    params = from_published(published, abstract["params"], name_of, unread=unread)
    back = to_published(params, name_of)
    assert back.keys() == {name for name in published if not unread(name)}
    assert all(np.array_equal(back[name], published[name]) for name in back)
    return params


@pytest.fixture(scope="module", autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def autoencoder_outputs(highest_precision):
    model = Autoencoder()
    params = published_params(
        model,
        autoencoder_name,
        "first_stage_model.",
        IMAGE,
        unread=lambda name: name.startswith("loss."),
    )

    @jax.jit
    def run(params, images, golden_latent):
        """Latents; the quantiser on our latent of `moving` and on the golden one; both decoded."""
        latent = model.apply({"params": params}, images, method="encode")
        ours, alone = (
            model.apply({"params": params}, z, method="quantise")
            for z in (latent[:1], golden_latent)
        )
        decoded = [
            model.apply({"params": params}, quantised.latent, method="decode")
            for quantised in (ours, alone)
        ]
        return latent, ours, alone, decoded

    return run(params, golden("moving", "fixed"), golden("latent_moving"))


def test_golden_latents(autoencoder_outputs):
    latent, *_ = autoencoder_outputs
    for i, name in enumerate(("moving", "fixed")):
        error = relative_error(latent[i : i + 1], golden(f"latent_{name}"))
        record("autoencoder: latent", error, TOLERANCE)


def test_golden_quantiser(autoencoder_outputs):
    _, ours, alone, _ = autoencoder_outputs
    expected = arrays()["codeword_indices_moving"]
    # rounding of our latent may tip the choice between two codewords at a few positions
    for block, quantised, tolerance in (("end to end", ours, 0.005), ("golden latent", alone, 0)):
        flips = np.mean(np.asarray(quantised.indices).reshape(-1) != expected)
        record(f"quantiser: other codewords, {block}", flips, tolerance)
    # on the golden latent: codewords lie so close to the latents that the squared distance
    # multiplies the error of our latent
    for loss in (alone.codebook_loss, alone.commitment_loss):
        error = relative_error(loss, arrays()["quantiser_mse"])
        record("quantiser: mean squared distance", error, TOLERANCE)


def test_golden_reconstruction(autoencoder_outputs):
    *_, (end_to_end, reconstruction) = autoencoder_outputs
    error = relative_error(reconstruction, golden("reconstruction_moving"))
    record("autoencoder: reconstruction", error, TOLERANCE)
    # from our own latent, of which a processor's rounding may tip a codeword to its neighbour
    error = relative_error(end_to_end, golden("reconstruction_moving"))
    record("autoencoder: reconstruction, end to end", error, 2e-4)


def test_golden_discriminator():
    model = PatchDiscriminator()
    prefix = "first_stage_model.loss.discriminator."
    params = published_params(model, discriminator_name, prefix, IMAGE, train=False)
    batch_stats = {
        f"norm{i}": {"mean": np.zeros(channels), "var": np.ones(channels)}
        for i, channels in ((1, 128), (2, 256), (3, 512))
    }

    @jax.jit
    def run(params, real, fake, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        trained, _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
        real, fake = (model.apply(variables, x, train=False) for x in (real, fake))
        return real, fake, trained

    images = golden("moving", "fixed")
    real, fake, trained = run(params, images[:1], golden("reconstruction_moving"), images)
    record("discriminator: real", relative_error(real, golden("disc_real")), TOLERANCE)
    record("discriminator: fake", relative_error(fake, golden("disc_fake")), TOLERANCE)
    expected = arrays()["disc_train_mode_batch"][..., None]
    record("discriminator: training mode", relative_error(trained, expected), TOLERANCE)


@pytest.fixture(scope="module")
def unet_outputs(highest_precision):
    model = UNet()
    params = published_params(model, unet_name, "model.diffusion_model.", LATENT, TIME)
    schedule = linear_schedule()
    t = description()["ddim_t"]

    @jax.jit
    def run(params, z):
        """eps and encoder features of a batch: one program, the encoder runs once."""
        variables, times = {"params": params}, jnp.full(len(z), t)
        eps = model.apply(variables, z, times)
        return eps, model.apply(variables, z, times, method="encode")

    noisy = q_sample(
        schedule,
        golden("latent_moving", "latent_fixed"),
        jnp.full(2, t),
        golden("noise_moving", "noise_fixed"),
    )
    eps, features = run(params, jnp.concatenate([noisy, golden("latent_moving")]))
    return noisy, eps, features


def test_golden_schedule():
    at = linear_schedule().alphas_cumprod[[0, 1, 2, 10, 100, 500, 999]]
    record("schedule: alphas_cumprod", relative_error(at, arrays()["alphas_cumprod"]), 1e-6)


def test_golden_noising(unet_outputs):
    noisy, _, _ = unet_outputs
    record("q_sample", relative_error(noisy[:1], golden("noisy_moving")), 2e-6)


def test_golden_eps(unet_outputs):
    _, eps, _ = unet_outputs
    for i, name in enumerate(("moving", "fixed")):
        error = relative_error(eps[i : i + 1], golden(f"eps_{name}"))
        record("U-Net: eps", error, TOLERANCE)


def test_golden_encoder_features(unet_outputs):
    _, _, features = unet_outputs
    assert len(features) == 12
    for i, (name, feature) in enumerate(features.items()):
        feature = np.asarray(feature[0], np.float64)
        channels = arrays()[f"unet_tap_moving_{i}_first_channels"].transpose(1, 2, 0)
        error = relative_error(feature[..., :2], channels)
        record(f"U-Net: {name}, first channels", error, TOLERANCE)
        # the mean may be near zero: all four numbers relative to the whole map's root mean square
        expected = arrays()[f"unet_tap_moving_{i}_stats"]
        found = np.array([feature.mean(), feature.std(), feature.min(), feature.max()])
        error = np.max(np.abs(found - expected)) / np.hypot(expected[0], expected[1])
        record(f"U-Net: {name}, mean std min max", error, TOLERANCE)


def test_golden_inversion(unet_outputs):
    _, eps, _ = unet_outputs
    eps = eps[2:]

    def eps_fn(z, t):
        assert z.shape == eps.shape
        return jnp.where(t[:, None, None, None] == 1, eps, jnp.nan)  # asked at the tap time only

    latent = golden("latent_moving")
    z1 = ddim_invert(linear_schedule(), eps_fn, latent, tap_time=1, steps=1)
    record("inversion: eps", relative_error(eps, golden("inversion_eps_moving")), TOLERANCE)
    record("inversion: z1", relative_error(z1, golden("inversion_z1_moving")), TOLERANCE)
