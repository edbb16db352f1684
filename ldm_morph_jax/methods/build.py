"""Configuration -> networks and methods."""

import jax.numpy as jnp

from ldm_morph_jax.config import method_config, paper_config
from ldm_morph_jax.methods.cyclemorph import CycleMorph
from ldm_morph_jax.methods.diffusemorph import DiffuseMorph
from ldm_morph_jax.methods.ldm_morph import LDMFeatures, LDMMorph
from ldm_morph_jax.methods.transmatch import TransMatch
from ldm_morph_jax.methods.transmorph import TransMorph
from ldm_morph_jax.methods.voxelmorph import VoxelMorph
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.cyclemorph import DeformationUNet
from ldm_morph_jax.models.diffusemorph import DenoisingUNet
from ldm_morph_jax.models.registration import RegistrationNetwork
from ldm_morph_jax.models.transmatch import TransMatchNetwork
from ldm_morph_jax.models.transmorph import TransMorphNetwork
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.models.voxelmorph import VoxelMorphUNet
from ldm_morph_jax.ops.diffusion import Schedule, linear_beta_schedule, linear_schedule


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
        integration_steps=c.integration_steps,
        velocity_sigma=c.velocity_sigma,
    )


def _voxelmorph(config) -> VoxelMorph:
    c = config.registration
    return VoxelMorph(VoxelMorphUNet(**c.model), c.smoothness_weight, c.integration_steps)


def _cyclemorph(config) -> CycleMorph:
    c = config.registration
    return CycleMorph(
        DeformationUNet(**c.model),
        smoothness_weight=c.smoothness_weight,
        cycle_weight=c.cycle_weight,
        identity_weight=c.identity_weight,
    )


def _transmorph(config) -> TransMorph:
    c = config.registration
    return TransMorph(TransMorphNetwork(**c.model), c.smoothness_weight)


def _transmatch(config) -> TransMatch:
    c = config.registration
    return TransMatch(TransMatchNetwork(**c.model), c.smoothness_weight)


def _diffusemorph(config) -> DiffuseMorph:
    c = config.registration
    return DiffuseMorph(
        DenoisingUNet(**c.model.denoiser),
        DeformationUNet(**c.model.deformation),
        linear_beta_schedule(c.timesteps, c.beta_start, c.beta_end),
        registration_weight=c.registration_weight,
        smoothness_weight=c.smoothness_weight,
    )


LEARNED_METHODS = {
    "ldm_morph": _ldm_morph,
    "voxelmorph": _voxelmorph,
    "cyclemorph": _cyclemorph,
    "transmorph": _transmorph,
    "transmatch": _transmatch,
    "diffusemorph": _diffusemorph,
}


def build_method(config):
    """The learned method that `config.registration.method` names (`methods.base.LearnedMethod`).

    Raises ValueError for an unknown name and for settings that belong to another method.
    """
    c = config.registration
    if c.method not in LEARNED_METHODS:
        raise ValueError(
            f"registration.method is {c.method!r}, expected one of "
            f"{', '.join(sorted(LEARNED_METHODS))}"
        )
    expected = method_config(c.method)
    for part, found, wanted in (
        ("registration", c, expected),
        ("registration.model", c.model, expected.model),
    ):
        if missing := sorted(set(wanted) - set(found)):
            raise ValueError(
                f"registration.method is {c.method!r}, but {part} lacks {', '.join(missing)}: "
                "these settings are another method's; start from configs/baselines or with_method"
            )
    if c.method != "ldm_morph" and compute_options(config) != compute_options(paper_config()):
        raise ValueError(
            f"compute.dtype and compute.remat are LDM-Morph's, registration.method is {c.method!r}"
        )
    return LEARNED_METHODS[c.method](config)


def needs_ldm(method) -> bool:
    """Whether the method reads the frozen autoencoder (and, `uses_taps`, the diffusion U-Net)."""
    return isinstance(method, LDMMorph) and (method.uses_taps or method.uses_latent_loss)
