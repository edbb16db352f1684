"""Shared by both directions: prefixes of the published checkpoints, shapes of their networks."""

import contextlib
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.published.ldm import unet_name
from ldm_morph_jax.published.registration import LEVELS

# prefixes of the published latent diffusion model's entries
AUTOENCODER, UNET, EMA = "first_stage_model.", "model.diffusion_model.", "model_ema."
# within the autoencoder: its training loss, which contains two more networks
DISCRIMINATOR, PERCEPTUAL = "loss.discriminator.", "loss.perceptual_loss."
NORM_GROUPS = 32  # of every GroupNorm in the published code
STATISTICS = ("running_mean", "running_var")  # of the discriminator's norms
COUNTER = "num_batches_tracked"


def unet_name_of(config):
    c = config.diffusion.model
    return functools.partial(
        unet_name,
        levels=len(c.channel_multipliers),
        residual_blocks=c.residual_blocks,
        attention_levels=c.attention_levels,
    )


def init_discriminator(config) -> dict:
    model = PatchDiscriminator(**config.autoencoder.discriminator)
    return dict(model.init(jax.random.key(0), jnp.zeros((1, *grid_shape(config), 1)), train=True))


def abstract_discriminator(config) -> dict:
    return jax.eval_shape(lambda: init_discriminator(config))


def abstract_registration(config) -> dict:
    method = build_method(config)
    return jax.eval_shape(lambda: method.init(jax.random.key(0), grid_shape(config)))


def check_published_architecture(config) -> None:
    c = config.registration
    if c.method != "ldm_morph" or c.model.fusion != "lgca" or len(c.model.depths) != LEVELS:
        raise ValueError(
            f"found registration.method {c.method!r}, fusion {c.model.fusion!r} and "
            f"{len(c.model.depths)} levels; the published registration network is ldm_morph, "
            f"lgca and {LEVELS} levels"
        )


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists; choose a new name")


@contextlib.contextmanager
def complete_or_absent(out: Path):
    """A directory to fill; renamed to `out` if the block succeeds, otherwise deleted."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as part:
        part.mkdir()
        yield part
