"""Quickstart: the whole method, small, on the built-in phantom (short-axis, 64 x 64).

    python -m ldm_morph_jax.train --config configs/quickstart.py --workdir runs/quickstart
    python -m ldm_morph_jax.evaluate --workdir runs/quickstart --split test

Shows the three stages and the report in minutes, with known motion to compare with. It targets no
row of the paper: networks, images and training are far smaller. Results and times are in README.md.
"""

from ldm_morph_jax.config import paper_config, stage_config

ORIENTATIONS = tuple(range(8))  # flips and quarter turns


def get_config():
    c = paper_config()
    c.data.name = "phantom"
    c.data.image_size = 64
    c.data.options = {"look": "sax", "n_train": 200, "n_validation": 20, "n_test": 40}

    c.autoencoder.model.base_channels = 16
    c.autoencoder.model.channel_multipliers = (1, 2, 2)
    c.autoencoder.model.residual_blocks = 1
    c.autoencoder.model.attention_levels = ()
    c.autoencoder.model.codebook_size = 64
    c.autoencoder.commitment_order = "paper"
    c.autoencoder.model.norm_groups = 8
    c.autoencoder.train = stage_config(
        steps=200, batch_size=8, learning_rate=1e-3, schedule="cosine", evaluate_every=200
    )
    c.autoencoder.augmentation.orientations = ORIENTATIONS

    c.diffusion.model.base_channels = 32
    c.diffusion.model.channel_multipliers = (1, 2, 2, 2)
    c.diffusion.model.residual_blocks = 1
    c.diffusion.model.norm_groups = 8
    c.diffusion.latent_scale = 0.0
    c.diffusion.ema_decay = 0.99
    c.diffusion.train = stage_config(
        steps=250,
        batch_size=16,
        learning_rate=5e-4,
        schedule="cosine",
        log_every=50,
        evaluate_every=250,
    )
    c.diffusion.augmentation.orientations = ORIENTATIONS

    c.registration.model.embed_dim = 16
    c.registration.model.depths = (2, 2, 2, 2)
    c.registration.model.num_heads = (2, 2, 4, 4)
    c.registration.model.window_size = 4
    c.registration.model.drop_path_rate = 0.1
    # A smoothed velocity instead of the paper's displacement, and little weight on the latents of
    # an autoencoder that was trained for a minute: see configs/sunnybrook_small.py.
    c.registration.integration_steps = 6
    c.registration.velocity_sigma = 3.0
    c.registration.smoothness_weight = 0.04
    c.registration.pixel_weight = 0.99
    c.registration.train = stage_config(
        steps=3000,
        batch_size=4,
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=50,
        evaluate_every=500,
    )
    c.registration.augmentation.orientations = ORIENTATIONS
    return c
