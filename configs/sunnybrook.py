"""LDM-Morph at the paper's size on Sunnybrook short-axis cine MRI (100/25/128 pairs), for a GPU.

    ldm-morph train --config sunnybrook --config.data.source=DIR --workdir runs/sunnybrook
    ldm-morph evaluate --workdir runs/sunnybrook --split test

DIR holds the public PNG layout (docs/datasets.md). Networks, losses, learning rates and the
registration stage's 24,000 steps of one pair are the paper's. The closest dataset in the paper is
ACDC, with 95/5/50 pairs (DSC 0.850, 0.157 % of folds). The paper does not say how long its latent
diffusion model was trained. Here each of its two stages takes 20,000 steps of 32 images, with
learning rates scaled to that batch and the discriminator starting at step 10,000. Intensities are
scaled as in configs/sunnybrook_small.py. No result is claimed: tests check this configuration, but
it has not been trained yet.
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
