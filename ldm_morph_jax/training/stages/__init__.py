"""One file per training stage; each builds the stage's program from a configuration."""

from ldm_morph_jax.methods import build_method
from ldm_morph_jax.training.program import Program
from ldm_morph_jax.training.stages.anatomy import anatomy_program
from ldm_morph_jax.training.stages.autoencoder import autoencoder_program
from ldm_morph_jax.training.stages.diffusion import diffusion_program
from ldm_morph_jax.training.stages.registration import registration_program

STAGES = ("autoencoder", "diffusion", "registration")  # in the order in which they are trained


def trained_stages(config) -> tuple[str, ...]:
    """The stages that a run trains: all, or the last for a method without an LDM of its own."""
    if "anatomy" in config:
        return ("anatomy",)
    own_ldm = build_method(config).reads_ldm and config.ldm_from is None
    return STAGES if own_ldm else STAGES[-1:]


def stage_program(config, name: str, *, cached: bool) -> Program:
    """The program of a stage, one of `STAGES`, or "anatomy", which stands alone.

    `cached`: whether batches contain what is computed once for every image: latents for the
    diffusion stage, frozen features for the registration stage of a method with constant features.
    """
    if name == "anatomy":
        return anatomy_program(config)
    if name == "autoencoder":
        return autoencoder_program(config)
    if name == "diffusion":
        return diffusion_program(config, cached=cached)
    method = build_method(config)
    return registration_program(config, method, cached=cached and method.features_are_constant)
