"""Real hearts on a laptop: LDM-Morph, small, on Sunnybrook short-axis cine MRI (100/25/128 pairs).

    python -m ldm_morph_jax.train --config configs/sunnybrook_small.py \\
        --config.data.source=DIR --workdir runs/sb
    python -m ldm_morph_jax.evaluate --workdir runs/sb --split test

DIR holds the public PNG layout (docs/datasets.md). The images were stretched by each image's
brightest pixel, so ED and ES differ in scale: they are clipped to their 1st to 99th percentile
before they are scaled to [0, 1] (the paper's min-max is the default elsewhere). Measured results,
times and seeds are in README.md.
"""

from ldm_morph_jax.config import paper_config, preset, small


def get_config(variant: str = ""):
    """`variant`: "official_code" reproduces the published code's departures (docs/fidelity.md)."""
    c = small(paper_config())
    c.data.name = "sunnybrook"
    c.data.intensity = "percentile"
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.augmentation.orientations = tuple(range(8))  # flips and quarter turns
    c.diffusion.train.log_every = 100
    # A displacement folds with the paper's smoothness of 0.01 and cannot follow large contractions
    # with one that does not fold; a smoothed velocity does both, and the smoother it is the better
    # hearts overlap. The latent term, of an autoencoder trained for minutes, outweighs the pixels
    # at the paper's beta of 0.6 (README).
    c.registration.integration_steps = 6
    c.registration.velocity_sigma = 6.0
    c.registration.smoothness_weight = 0.03
    c.registration.pixel_weight = 0.95
    c.registration.train.steps = 600
    c.registration.train.evaluate_every = 100
    return preset(c, variant, ("official_code",))
