"""Stage 2: the denoising U-Net on the frozen autoencoder's latents (paper Eqs. 1-6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import Schedule, ddim_sample, q_sample
from ldm_morph_jax.ops.losses import diffusion_loss
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.training.accumulation import mean_gradient
from ldm_morph_jax.training.loop import Stage
from ldm_morph_jax.training.optimiser import adam

SAMPLING_STEPS = 50
VALIDATION_DRAWS = 8  # of time and noise per image: one alone is a rough estimate


def diffusion_stage(
    config, autoencoder: Autoencoder, unet: UNet, schedule: Schedule, frozen, batches, validation
) -> Stage:
    """Build the stage.

    Args:
      config: the whole configuration.
      frozen: {"autoencoder": all its parameters, "latent_scale": scalar that the latents are
        multiplied by before they are noised}.
      batches: iterator of {"latent": `[B, h, w, C]`} or {"image": `[B, H, W, 1]`}.
      validation: images `[N, H, W, 1]`.
    """
    c = config.diffusion
    size = config.data.image_size // autoencoder.downsampling
    optimiser = adam(c.train, weight_decay=c.weight_decay)
    times = len(schedule.betas)

    def encode(frozen, images):
        return autoencoder.apply({"params": frozen["autoencoder"]}, images, method="encode")

    def init(key):
        params = unet.init(
            key, jnp.zeros((1, size, size, autoencoder.latent_channels)), jnp.zeros(1, jnp.int32)
        )["params"]
        return {
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "optimiser": optimiser.init(params),
        }

    def draw(key, shape):
        """Times `[B]` and noise `[B, h, w, C]`."""
        time_key, noise_key = jax.random.split(key)
        t = jax.random.randint(time_key, shape[:1], 0, times)
        return t, jax.random.normal(noise_key, shape)

    def noise_prediction_loss(params, z, t, noise):
        predicted = unet.apply({"params": params}, q_sample(schedule, z, t, noise), t)
        return diffusion_loss(noise, predicted)

    def train_step(state, frozen, batch, key, step):
        latent = batch["latent"] if "latent" in batch else encode(frozen, batch["image"])
        z = latent * frozen["latent_scale"]
        t, noise = draw(key, z.shape)

        def loss_of_part(params, part, _):
            return noise_prediction_loss(params, *part), {}

        loss, _, gradient = mean_gradient(
            loss_of_part, state["params"], (z, t, noise), c.train.micro_batches
        )
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        # the published EMA warms up: (1 + n) / (10 + n) until it reaches the configured decay
        n = jnp.asarray(step + 1, jnp.float32)
        decay = jnp.minimum(c.ema_decay, (1 + n) / (10 + n))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], params)
        terms = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return {"params": params, "ema": ema, "optimiser": optimiser_state}, terms

    @replicated_jit
    def validation_losses(shared, batch):
        """Loss of every image `[B]`, over draws that are its own, whatever batch it is in."""
        params, frozen = shared
        z = encode(frozen, batch["image"]) * frozen["latent_scale"]

        def losses(draw_number):
            def one(z, image_number):
                key = jax.random.fold_in(jax.random.key(image_number), draw_number)
                return noise_prediction_loss(params, z[None], *draw(key, (1, *z.shape)))

            return jax.vmap(one)(z, batch["number"])

        return jnp.mean(jax.lax.map(losses, jnp.arange(VALIDATION_DRAWS)), axis=0)

    @replicated_jit
    def sample(params, frozen):
        """Latents from noise by DDIM, decoded: `[8, H, W, 1]`."""
        z = jax.random.normal(jax.random.key(1), (8, size, size, autoencoder.latent_channels))
        z = ddim_sample(
            schedule, lambda z, t: unet.apply({"params": params}, z, t), z, steps=SAMPLING_STEPS
        )
        variables = {"params": frozen["autoencoder"]}
        quantised = autoencoder.apply(variables, z / frozen["latent_scale"], method="quantise")
        return autoencoder.apply(variables, quantised.latent, method="decode")

    def evaluate(state, frozen, *, pictures):
        # fixed noise and times: the numbers of two validations differ by the weights alone
        images = {"image": validation, "number": np.arange(len(validation), dtype=np.uint32)}
        losses = over_batches(
            validation_losses, (state["ema"], frozen), images, batch_size=c.train.batch_size
        )
        loss = float(np.mean(losses))
        scores, figures = {SCORE: -loss, "loss": loss}, {}
        if pictures:
            samples = np.clip(np.asarray(sample(state["ema"], frozen)), 0, 1)
            figures["samples"] = image_grid(
                samples, columns=8, title=f"samples of the diffusion model (DDIM, {SAMPLING_STEPS})"
            )
        return scores, figures

    return Stage(
        name="diffusion",
        init=init,
        train_step=train_step,
        frozen=frozen,
        batches=batches,
        evaluate=evaluate,
        train=c.train,
        images_per_step=c.train.batch_size,
    )
