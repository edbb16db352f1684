"""Configuration -> networks and methods."""

import jax.numpy as jnp

from ldm_morph_jax.methods.ldm_morph import LDMFeatures, LDMMorph
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.registration import RegistrationNetwork
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import Schedule, linear_schedule


def compute_options(config) -> dict:
    """Arguments of every network: `dtype` and `remat`."""
    c = config.compute
    if c.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"compute.dtype is {c.dtype!r}, expected 'float32' or 'bfloat16'")
    return {"dtype": jnp.dtype(c.dtype), "remat": c.remat}


def build_autoencoder(config) -> Autoencoder:
    return Autoencoder(**config.autoencoder.model, **compute_options(config))


def build_unet(config) -> UNet:
    return UNet(**config.diffusion.model, **compute_options(config))


def build_schedule(config) -> Schedule:
    c = config.diffusion
    return linear_schedule(c.timesteps, c.beta_start, c.beta_end)


def build_features(config) -> LDMFeatures:
    c = config.features
    return LDMFeatures(
        build_autoencoder(config),
        build_unet(config),
        build_schedule(config),
        noising=c.noising,
        tap_time=c.tap_time,
        inversion_steps=c.inversion_steps,
    )


def _ldm_morph(config) -> LDMMorph:
    c = config.registration
    return LDMMorph(
        RegistrationNetwork(**c.model, **compute_options(config)),
        build_features(config),
        pixel_weight=c.pixel_weight,
        smoothness_weight=c.smoothness_weight,
        smoothness_scale=c.smoothness_scale,
        latent_gradient=c.latent_gradient,
        stochastic_depth_steps=c.stochastic_depth_steps,
    )


LEARNED_METHODS = {"ldm_morph": _ldm_morph}


def build_method(config):
    """The learned method that `config.registration.method` names (`methods.base.LearnedMethod`)."""
    name = config.registration.method
    if name not in LEARNED_METHODS:
        raise ValueError(
            f"registration.method is {name!r}, expected one of {', '.join(sorted(LEARNED_METHODS))}"
        )
    return LEARNED_METHODS[name](config)


def needs_ldm(method) -> bool:
    """Whether the method reads the frozen autoencoder (and, `uses_taps`, the diffusion U-Net)."""
    return isinstance(method, LDMMorph) and (method.uses_taps or method.uses_latent_loss)
