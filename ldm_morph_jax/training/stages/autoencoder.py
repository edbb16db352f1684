"""Stage 1: the VQ autoencoder (VQGAN; paper Sec. 4.2).

Loss: L1 + LPIPS + quantiser + adaptive weight x adversarial (after `adversarial_start` steps).
"""

import functools
import logging
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.methods.ldm import build_autoencoder
from ldm_morph_jax.models.autoencoder import LAST_LAYER, codebook_usage
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.models.lpips import load_lpips, lpips
from ldm_morph_jax.ops.losses import (
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    vq_loss,
)
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.training.accumulation import in_parts
from ldm_morph_jax.training.optimiser import adam, stepped
from ldm_morph_jax.training.program import Program, mesh_of

log = logging.getLogger(__name__)


def load_frozen(config) -> dict:
    """Arrays that the stage reads but never trains: the weights of LPIPS, if it is configured.

    Raises as `load_lpips` does.
    """
    c = config.autoencoder
    perceptual = c.perceptual_weight > 0 and c.lpips_weights is not None
    return {"lpips": load_lpips(c.lpips_weights)} if perceptual else {}


def autoencoder_program(config) -> Program:
    """The stage.

    Batches are {"image": `[B, *space, 1]`}; validation data are images `[N, *space, 1]`. Of volumes
    LPIPS compares the planes.
    """
    model = build_autoencoder(config)
    c = config.autoencoder
    space, mesh = grid_shape(config), mesh_of(config)
    optimiser = adam(c.train, b1=0.5, b2=0.9)
    adversarial = c.adversarial_weight > 0 and c.adversarial_start < c.train.steps
    discriminator = PatchDiscriminator(**c.discriminator, dtype=model.dtype)
    frozen_shapes = jax.eval_shape(lambda: load_frozen(config))
    perceptual = "lpips" in frozen_shapes
    if c.perceptual_weight > 0 and not perceptual:
        log.info("autoencoder: no LPIPS term, because config.autoencoder.lpips_weights is not set")
    if c.adversarial_weight > 0 and not adversarial:
        log.info(
            "autoencoder: no adversarial term, because it starts at step %d of %d",
            c.adversarial_start,
            c.train.steps,
        )

    def init(key):
        generator_key, discriminator_key = jax.random.split(key)
        images = jnp.zeros((1, *space, 1))
        params = model.init(generator_key, images)["params"]
        state = {"params": params, "optimiser": optimiser.init(params)}
        if adversarial:
            variables = discriminator.init(discriminator_key, images, train=True)
            state["discriminator"] = {**variables, "optimiser": optimiser.init(variables["params"])}
        return state

    def reconstruction_error(frozen, images, reconstruction):
        """L1 + LPIPS, means over the batch."""
        l1 = jnp.mean(jnp.abs(images - reconstruction))
        p = 0.0
        if perceptual:
            planes = (x.reshape(-1, *x.shape[-3:]) for x in (images, reconstruction))
            p = jnp.mean(lpips(frozen["lpips"], *planes))
        return l1 + c.perceptual_weight * p, {"l1": l1, **({"lpips": p} if perceptual else {})}

    def step(state, frozen, batch, key, number):
        images = batch["image"]

        def forward(params):
            def of_part(images):
                output = model.apply({"params": params}, images)
                q = output.quantised
                vq = vq_loss(
                    q.codebook_loss, q.commitment_loss, c.commitment, order=c.commitment_order
                )
                return output.reconstruction, q.indices, vq

            # the discriminator normalises over the whole batch, so it gets all reconstructions
            reconstruction, indices, vq = in_parts(
                of_part, images, c.train.micro_batches, joined=(True, True, False)
            )
            return (reconstruction, vq), indices

        # One forward pass. Its pullback gives the whole gradient and the two gradients at the last
        # layer that the adaptive weight compares; the compiler removes the unused rest of those two
        # as dead code.
        (reconstruction, vq), pullback, indices = jax.vjp(forward, state["params"], has_aux=True)
        (error, terms), d_error = jax.value_and_grad(reconstruction_error, 2, has_aux=True)(
            frozen, images, reconstruction
        )
        d_reconstruction = d_error
        if adversarial:
            d_state = state["discriminator"]
            on = (number >= c.adversarial_start).astype(jnp.float32)

            def fool(reconstruction):
                variables = {"params": d_state["params"], "batch_stats": d_state["batch_stats"]}
                scores, _ = discriminator.apply(
                    variables, reconstruction, train=True, mutable=["batch_stats"]
                )
                return generator_loss(scores)

            g_loss, d_fool = jax.value_and_grad(fool)(reconstruction)
            gradients = (pullback((d, jnp.zeros_like(vq)))[0] for d in (d_error, d_fool))
            at_last_layer = (functools.reduce(operator.getitem, LAST_LAYER, g) for g in gradients)
            weight = c.adversarial_weight * adaptive_weight(*at_last_layer)
            d_reconstruction = d_error + on * weight * d_fool
            terms |= {"generator": g_loss, "adaptive_weight": weight}
        gradient = pullback((d_reconstruction, jnp.ones_like(vq)))[0]
        new = stepped(optimiser, gradient, state)
        perplexity, used = codebook_usage(indices, c.model.codebook_size)
        terms |= {
            "loss": error + vq,
            "vq": vq,
            "perplexity": perplexity,
            "codebook_used": used,
            "gradient_norm": optax.tree.norm(gradient),
        }
        if adversarial:
            new["discriminator"], d_terms = _discriminator_step(
                discriminator, optimiser, d_state, images, reconstruction, on
            )
            terms |= d_terms
        return new, terms

    @replicated_jit(mesh)
    def reconstruct(params, images):
        output = model.apply({"params": params}, images)
        return output.reconstruction, output.latent, output.quantised.indices

    def evaluate(state, frozen, validation, *, pictures):
        reconstruction, latent, indices = over_batches(
            reconstruct, state["params"], validation, batch_size=c.train.batch_size, mesh=mesh
        )
        l1 = float(np.mean(np.abs(reconstruction - validation)))
        mse = float(np.mean((reconstruction - validation) ** 2))
        perplexity, used = codebook_usage(jnp.asarray(indices), c.model.codebook_size)
        scores = {
            SCORE: -l1,
            "l1": l1,
            "psnr_db": float(-10 * np.log10(mse)),
            "perplexity": float(perplexity),
            "codebook_used": float(used),
            "latent_std": float(latent.std()),
        }
        figures = {}
        if pictures:
            n = min(8, len(validation))
            rows = np.concatenate([validation[:n], np.clip(reconstruction[:n], 0, 1)])
            figures["reconstructions"] = image_grid(
                rows, columns=n, row_names=("validation image", "reconstruction")
            )
        return scores, figures

    batch_shape = (c.train.batch_size, *space, 1)
    return Program(
        name="autoencoder",
        train=c.train,
        init=init,
        step=step,
        evaluate=evaluate,
        frozen=frozen_shapes,
        batch={"image": jax.ShapeDtypeStruct(batch_shape, jnp.float32)},
        images_per_step=c.train.batch_size,
        mesh=mesh,
    )


def _discriminator_step(discriminator, optimiser, state, real, fake, on):
    """One hinge-loss step of the discriminator; it has no effect until `on` is 1."""
    fake = jax.lax.stop_gradient(fake)

    def loss_fn(params):
        # real and fake batches are each normalised by their own statistics, as published
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        scores_real, updated = discriminator.apply(
            variables, real, train=True, mutable=["batch_stats"]
        )
        scores_fake, updated = discriminator.apply(
            {"params": params, **updated}, fake, train=True, mutable=["batch_stats"]
        )
        return hinge_discriminator_loss(scores_real, scores_fake), updated["batch_stats"]

    (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
    new = stepped(optimiser, gradient, state) | {"batch_stats": batch_stats}
    new = jax.tree.map(lambda a, b: jnp.where(on > 0, a, b), new, state)
    return new, {"discriminator": loss}
