"""One file per training stage: a program of the configuration."""

from ldm_morph_jax.methods import build_method
from ldm_morph_jax.training.program import Program
from ldm_morph_jax.training.stages.autoencoder import autoencoder_program
from ldm_morph_jax.training.stages.diffusion import diffusion_program
from ldm_morph_jax.training.stages.registration import registration_program

STAGES = ("autoencoder", "diffusion", "registration")  # in the order in which they are trained


def stage_program(config, name: str, *, cached: bool) -> Program:
    """The program of a stage, one of `STAGES`.

    `cached`: whether batches bring what is computed once of every image, where the stage has that:
    latents for the diffusion stage, frozen features for the registration of a method whose features
    are constant.
    """
    if name == "autoencoder":
        return autoencoder_program(config)
    if name == "diffusion":
        return diffusion_program(config, cached=cached)
    method = build_method(config)
    return registration_program(config, method, cached=cached and method.features_are_constant)
