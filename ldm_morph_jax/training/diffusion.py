"""Stage 2: the denoising U-Net on the frozen autoencoder's latents (paper Eqs. 1-6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import Schedule, ddim_sample, q_sample
from ldm_morph_jax.ops.losses import diffusion_loss
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.training.checkpoints import SCORE
from ldm_morph_jax.training.loop import Stage
from ldm_morph_jax.training.optimiser import adam

SAMPLING_STEPS = 50


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

    def noise_prediction_loss(params, z, key):
        time_key, noise_key = jax.random.split(key)
        t = jax.random.randint(time_key, z.shape[:1], 0, times)
        noise = jax.random.normal(noise_key, z.shape)
        predicted = unet.apply({"params": params}, q_sample(schedule, z, t, noise), t)
        return diffusion_loss(noise, predicted)

    def train_step(state, frozen, batch, key, step):
        latent = batch["latent"] if "latent" in batch else encode(frozen, batch["image"])
        z = latent * frozen["latent_scale"]
        loss, gradient = jax.value_and_grad(noise_prediction_loss)(state["params"], z, key)
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        # the published EMA warms up: (1 + n) / (10 + n) until it reaches the configured decay
        decay = jnp.minimum(c.ema_decay, (2.0 + step) / (11.0 + step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], params)
        terms = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return {"params": params, "ema": ema, "optimiser": optimiser_state}, terms

    @jax.jit
    def validation_loss(params, frozen, images, key):
        return noise_prediction_loss(params, encode(frozen, images) * frozen["latent_scale"], key)

    @jax.jit
    def sample(params, frozen, key):
        """Latents from noise by DDIM, decoded: `[8, H, W, 1]`."""
        z = jax.random.normal(key, (8, size, size, autoencoder.latent_channels))
        z = ddim_sample(
            schedule, lambda z, t: unet.apply({"params": params}, z, t), z, steps=SAMPLING_STEPS
        )
        variables = {"params": frozen["autoencoder"]}
        quantised = autoencoder.apply(variables, z / frozen["latent_scale"], method="quantise")
        return autoencoder.apply(variables, quantised.latent, method="decode")

    def evaluate(state, frozen, *, pictures):
        # fixed noise and times: the numbers of two validations differ by the weights alone; every
        # image is noised several times, since one draw of t per image is a rough estimate
        step = c.train.batch_size
        losses = [
            float(validation_loss(state["ema"], frozen, validation[s : s + step], key))
            for s in range(0, len(validation) - len(validation) % step or 1, step)
            for key in jax.random.split(jax.random.key(s), 8)
        ]
        loss = float(np.mean(losses))
        scores, figures = {SCORE: -loss, "loss": loss}, {}
        if pictures:
            key = jax.random.key(1)
            samples = np.clip(np.asarray(sample(state["ema"], frozen, key)), 0, 1)
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
