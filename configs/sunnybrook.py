"""LDM-Morph at the paper's size on Sunnybrook short-axis cine MRI (100/25/128 pairs), for a GPU.

    python -m ldm_morph_jax.train --config configs/sunnybrook.py \\
        --config.data.source=DIR --workdir runs/sunnybrook
    python -m ldm_morph_jax.evaluate --workdir runs/sunnybrook --split test

DIR holds the public PNG layout. Networks, losses, learning rates and the registration stage's
24,000 steps of one pair are the paper's; its ACDC setting, 95/5/50 pairs, is nearest (DSC 0.850,
0.157 % of folds). The paper does not say how long its latent diffusion model was trained: here
20,000 steps of 32 images for each of its two stages, learning rates scaled to that batch, the
discriminator from step 10,000. Intensities as in configs/sunnybrook_small.py. No result is claimed:
this configuration is checked by tests but has not been trained yet.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "official_code" reproduces the published code's departures (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "sunnybrook"
    c.data.intensity = "percentile"
    c.autoencoder.adversarial_start = 10_000
    for stage, rate in ((c.autoencoder, 4.5e-6), (c.diffusion, 1e-6)):
        stage.train.steps = 20_000
        stage.train.batch_size = 32
        stage.train.learning_rate = 32 * rate
        stage.train.evaluate_every = 1000
        stage.augmentation.orientations = tuple(range(8))
    c.registration.train.sample_every = 4000
    return preset(c, variant, ("official_code",))
