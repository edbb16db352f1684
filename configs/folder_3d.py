"""LDM-Morph in three dimensions on your own pairs of volumes, listed in a CSV file, for GPUs.

    ldm-morph train --config folder_3d --config.data.source=pairs.csv --workdir runs/mine
    ldm-morph evaluate --workdir runs/mine --split test

pairs.csv is that of `--config folder`; each file is a volume. Volumes become 128 x 128 x 32 voxels
(`--config.data.image_size`, `--config.data.depth`). Everything else is as in `--config acdc_3d`.
`--config folder_3d:small` is for a laptop: 64 x 64 x 16 voxels; start with it.
"""

from ldm_morph_jax.config import experiment


def get_config(variant: str = ""):
    """`variant`: "" or "paper", or "small"."""
    c = experiment("acdc_3d", variant)
    c.data.name, c.data.options = "folder_3d", {}
    return c
