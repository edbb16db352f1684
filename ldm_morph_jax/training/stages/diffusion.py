"""Stage 2: the denoising U-Net on the frozen autoencoder's latents (paper Eqs. 1-6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.methods.ldm import build_autoencoder, build_schedule, build_unet
from ldm_morph_jax.ops.diffusion import ddim_sample, q_sample
from ldm_morph_jax.ops.losses import diffusion_loss
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.runs.directory import abstract_autoencoder, latent_shape
from ldm_morph_jax.training.accumulation import mean_gradient
from ldm_morph_jax.training.optimiser import adam, moving_average, stepped
from ldm_morph_jax.training.program import Program, at_once, mesh_of
from ldm_morph_jax.training.sampling import decoded

SAMPLING_STEPS = 50
SAMPLES = 8  # of the pictures
VALIDATION_DRAWS = 8  # of time and noise per image; a single one gives only a rough estimate


def diffusion_program(config, *, cached: bool) -> Program:
    """The stage.

    `frozen` is {"autoencoder": all its parameters, "latent_scale": scalar by which the latents are
    multiplied before they are noised}; validation data are images `[N, *space, 1]`.

    Args:
      config: the whole configuration.
      cached: whether batches have {"latent": `[B, h, w, C]`} instead of {"image": `[B, H, W, 1]`}
        (volumes: with one axis more).
    """
    c = config.diffusion
    autoencoder, unet, schedule = (
        build(config) for build in (build_autoencoder, build_unet, build_schedule)
    )
    space, latent, mesh = grid_shape(config), latent_shape(config), mesh_of(config)
    optimiser = adam(c.train, weight_decay=c.weight_decay)
    times = len(schedule.betas)

    def encode(frozen, images):
        return autoencoder.apply({"params": frozen["autoencoder"]}, images, method="encode")

    def init(key):
        params = unet.init(key, jnp.zeros((1, *latent)), jnp.zeros(1, jnp.int32))["params"]
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

    def step(state, frozen, batch, key, number):
        latent = batch["latent"] if "latent" in batch else encode(frozen, batch["image"])
        z = latent * frozen["latent_scale"]
        t, noise = draw(key, z.shape)

        def loss_of_part(params, part, _):
            return noise_prediction_loss(params, *part), {}

        (loss, _), gradient = mean_gradient(
            loss_of_part, state["params"], (z, t, noise), c.train.micro_batches
        )
        new = stepped(optimiser, gradient, state)
        ema = moving_average(state["ema"], new["params"], number, c.ema_decay)
        return new | {"ema": ema}, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}

    @replicated_jit(mesh)
    def validation_losses(shared, batch):
        """Loss of every image `[B]`; its random draws do not depend on the batch it is in."""
        params, frozen = shared
        z = encode(frozen, batch["image"]) * frozen["latent_scale"]

        def losses(draw_number):
            def one(z, image_number):
                key = jax.random.fold_in(jax.random.key(image_number), draw_number)
                return noise_prediction_loss(params, z[None], *draw(key, (1, *z.shape)))

            return jax.vmap(one)(z, batch["number"])

        return jnp.mean(jax.lax.map(losses, jnp.arange(VALIDATION_DRAWS)), axis=0)

    @replicated_jit(mesh)
    def sample(shared, z):
        """Latents from noise `z` by DDIM, decoded."""
        params, frozen = shared
        z = ddim_sample(
            schedule, lambda z, t: unet.apply({"params": params}, z, t), z, steps=SAMPLING_STEPS
        )
        return decoded(autoencoder, frozen, z)

    def evaluate(state, frozen, validation, *, pictures):
        # fixed noise and times, so that two validations differ only by the weights
        images = {"image": validation, "number": np.arange(len(validation), dtype=np.uint32)}
        losses = over_batches(
            validation_losses,
            (state["ema"], frozen),
            images,
            batch_size=c.train.batch_size,
            mesh=mesh,
        )
        loss = float(np.mean(losses))
        scores, figures = {SCORE: -loss, "loss": loss}, {}
        if pictures:
            noise = jax.random.normal(jax.random.key(1), (SAMPLES, *latent))
            rows = at_once(config, SAMPLES)
            samples = over_batches(
                sample, (state["ema"], frozen), noise, batch_size=rows, mesh=mesh
            )
            samples = np.clip(samples, 0, 1)
            figures["samples"] = image_grid(
                samples,
                columns=SAMPLES,
                title=f"samples of the diffusion model (DDIM, {SAMPLING_STEPS})",
            )
        return scores, figures

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    images = c.train.batch_size
    return Program(
        name="diffusion",
        train=c.train,
        init=init,
        step=step,
        evaluate=evaluate,
        frozen={"autoencoder": abstract_autoencoder(config), "latent_scale": shape()},
        batch={"latent": shape(images, *latent)} if cached else {"image": shape(images, *space, 1)},
        images_per_step=images,
        mesh=mesh,
    )
