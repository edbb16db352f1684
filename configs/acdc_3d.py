"""LDM-Morph in three dimensions on whole stacks of ACDC (81/9/50 patients, both directions).

    ldm-morph train --config acdc_3d --config.data.source=DIR --workdir runs/acdc3d
    ldm-morph evaluate --workdir runs/acdc3d --split test

DIR is the folder that contains database/ (docs/datasets.md). Volumes have 128 x 128 x 32 voxels of
1.5 x 1.5 x 3.15 mm, for GPUs. The networks are those of the paper with convolutions and windows of
volumes; the paper has no settings for volumes, and these have not been trained at this size.

`--config acdc_3d:small` is for a laptop: 64 x 64 x 16 voxels of 3 x 3 x 6.3 mm, small networks with
three levels, which predict a smoothed velocity, antisymmetric in the two images.
`--config method:voxelmorph:acdc_3d:small` is VoxelMorph on the same data with the same budget, and
`method:transmorph:acdc_3d:small` TransMorph.
"""

from ldm_morph_jax.config import paper_config, preset, smoothed_velocity


def get_config(variant: str = ""):
    """`variant`: "" or "paper", or "small"."""
    c = paper_config()
    c.data.name, c.data.depth = "acdc_3d", 32
    c.data.intensity = "percentile"
    c.data.options = {"allow_partial": False, "train_until": 81, "validation_until": 90}
    c.registration.model.window_size = 4  # a cube: 64 positions
    c.autoencoder.train.batch_size = 8
    c.diffusion.train.batch_size = 16
    preset(c, variant, ("paper", "small"))
    if variant == "small":
        small_volumes(c)
    return c


def small_volumes(c):
    """Three levels, since 16 planes cannot be halved more often than that after the patches."""
    c.data.update(image_size=64, depth=16)
    c.autoencoder.train.update(steps=400, batch_size=1)
    c.diffusion.model.channel_multipliers = (1, 2, 2)
    c.diffusion.model.attention_levels = (1, 2)
    c.diffusion.train.update(steps=800, batch_size=4)
    c.registration.model.update(depths=(2, 2, 2), num_heads=(2, 2, 4), window_size=4)
    smoothed_velocity(c, sigma=2.0, smoothness_weight=0.03, pixel_weight=0.99)
    c.registration.train.update(steps=1500, batch_size=1, evaluate_every=300)
    return c
