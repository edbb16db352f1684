"""Quickstart: the whole method, small, on the built-in phantom (short-axis, 64 x 64).

    ldm-morph train --config quickstart --workdir runs/quickstart
    ldm-morph evaluate --workdir runs/quickstart --split test

Shows the three stages and the report in minutes, on images with known motion. It does not
correspond to any row of the paper: networks, images and training are far smaller. README.md has
results and times.
"""

from ldm_morph_jax.config import paper_config, small, smoothed_velocity


def get_config():
    c = small(paper_config())
    c.data.name = "phantom"
    c.data.image_size = 64
    c.data.options = {"look": "sax", "n_train": 200, "n_validation": 20, "n_test": 40}
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.augmentation.orientations = tuple(range(8))  # flips and quarter turns

    c.autoencoder.train.update(steps=200, batch_size=8, evaluate_every=200)

    c.diffusion.model.channel_multipliers = (1, 2, 2, 2)
    c.diffusion.ema_decay = 0.99
    c.diffusion.train.update(steps=250, batch_size=16, evaluate_every=250)

    c.registration.model.window_size = 4
    # The latent loss has a small weight, since the autoencoder is trained for only a minute. Local
    # correlation also sees motion in dark tissue, which is most of these images; with squared
    # error, the end-point error is a tenth larger.
    smoothed_velocity(c, sigma=3.5, smoothness_weight=0.3, pixel_weight=0.99)
    c.registration.similarity = "ncc"
    c.registration.train.update(
        steps=2750, batch_size=2, learning_rate=3e-3, warmup_steps=50, evaluate_every=550
    )
    return c
