"""Real hearts on a laptop: LDM-Morph, small, on Sunnybrook short-axis cine MRI (100/25/128 pairs).

    ldm-morph train --config sunnybrook_small --config.data.source=DIR --workdir runs/sb
    ldm-morph evaluate --workdir runs/sb --split test

DIR holds the public PNG layout (docs/datasets.md). Each image was scaled by its own brightest
pixel, so intensities differ between ED and ES. They are therefore clipped to the 1st to 99th
percentile before scaling to [0, 1]; the default elsewhere is the paper's min-max scaling.
docs/results/sunnybrook_small has results of this network, trained a little longer and antisymmetric
in the two images, beside all other methods.

`--config sunnybrook_small:symmetric` trains the weights that `register` takes by default, the
network without LDM, made antisymmetric in the two images.
"""

from ldm_morph_jax.config import MRI_AUGMENTATION, paper_config, preset, small, smoothed_velocity


def get_config(variant: str = ""):
    """`variant`: "symmetric", or "official_code" (docs/fidelity.md)."""
    c = small(paper_config())
    c.data.name = "sunnybrook"
    c.data.intensity = "percentile"
    c.diffusion.train.log_every = 100
    smoothed_velocity(c, symmetric=False)
    c.registration.train.steps = 600
    c.registration.train.evaluate_every = 100
    preset(c, variant, ("symmetric", "official_code"))
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.augmentation.orientations = tuple(range(8))  # flips and quarter turns
    if variant == "symmetric":
        c.registration.augmentation.update(MRI_AUGMENTATION)
    return c
