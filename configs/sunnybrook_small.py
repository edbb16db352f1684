"""Real hearts on a laptop: LDM-Morph, small, on Sunnybrook short-axis cine MRI (100/25/128 pairs).

    python -m ldm_morph_jax.train --config configs/sunnybrook_small.py \\
        --config.data.source=DIR --workdir runs/sb
    python -m ldm_morph_jax.evaluate --workdir runs/sb --split test

DIR holds the public PNG layout (docs/datasets.md). The images were stretched by each image's
brightest pixel, so ED and ES differ in scale: they are clipped to their 1st to 99th percentile
before they are scaled to [0, 1] (the paper's min-max is the default elsewhere). Measured results,
times and seeds are in README.md.
"""

from ldm_morph_jax.config import official_code_if_asked, paper_config, stage_config

ORIENTATIONS = tuple(range(8))  # flips and quarter turns: short-axis slices have no upright


def get_config(variant: str = ""):
    """`variant`: "official_code" reproduces the published code's departures (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "sunnybrook"
    c.data.intensity = "percentile"

    c.autoencoder.model.base_channels = 16
    c.autoencoder.model.channel_multipliers = (1, 2, 2)
    c.autoencoder.model.residual_blocks = 1
    c.autoencoder.model.attention_levels = ()
    c.autoencoder.model.codebook_size = 64
    c.autoencoder.commitment_order = "paper"
    c.autoencoder.model.norm_groups = 8
    c.autoencoder.train = stage_config(
        steps=600, batch_size=4, learning_rate=1e-3, schedule="cosine", evaluate_every=200
    )
    c.autoencoder.augmentation.orientations = ORIENTATIONS

    c.diffusion.model.base_channels = 32
    c.diffusion.model.residual_blocks = 1
    c.diffusion.model.norm_groups = 8
    c.diffusion.latent_scale = 0.0
    c.diffusion.ema_decay = 0.995
    c.diffusion.train = stage_config(
        steps=800,
        batch_size=8,
        learning_rate=5e-4,
        schedule="cosine",
        log_every=100,
        evaluate_every=400,
    )
    c.diffusion.augmentation.orientations = ORIENTATIONS

    c.registration.model.embed_dim = 16
    c.registration.model.depths = (2, 2, 2, 2)
    c.registration.model.num_heads = (2, 2, 4, 4)
    c.registration.model.drop_path_rate = 0.1
    # A displacement folds with the paper's smoothness of 0.01 and cannot follow large contractions
    # with one that does not fold; a smoothed velocity does both, and the smoother it is the better
    # hearts overlap. The latent term, of an autoencoder trained for minutes, outweighs the pixels
    # at the paper's beta of 0.6 (README).
    c.registration.integration_steps = 6
    c.registration.velocity_sigma = 6.0
    c.registration.smoothness_weight = 0.03
    c.registration.pixel_weight = 0.95
    c.registration.train = stage_config(
        steps=600,
        batch_size=4,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        evaluate_every=100,
    )
    c.registration.augmentation.orientations = ORIENTATIONS
    return official_code_if_asked(c, variant)
