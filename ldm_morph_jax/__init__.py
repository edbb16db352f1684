"""LDM-Morph: latent-diffusion-guided deformable registration of 2D cardiac images, in JAX/Flax.

    from ldm_morph_jax import load
    result = load("runs/sb")(moving, fixed)

Conventions (arrays, units, direction of displacements) are stated in `ldm_morph_jax.ops`.
"""

__version__ = "0.2.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str):
    if name == "load":  # JAX is imported when it is needed, so that `--help` is quick
        from ldm_morph_jax.registering.registrar import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
