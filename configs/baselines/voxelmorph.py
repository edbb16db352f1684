"""VoxelMorph (Balakrishnan et al., 2019) in place of LDM-Morph, in any other experiment.

    ldm-morph train --config baselines/voxelmorph:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/voxelmorph
    ldm-morph evaluate --workdir runs/voxelmorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT (`camus_2ch`, `camus_2ch:small`);
the default is the quickstart. Data, seed, augmentation, steps and batch size are taken from that
experiment, network, losses and optimiser from the method.

A U-Net of 109,170 parameters that predicts a displacement, as in the paper's tables. Its row of
Table 1: DSC 0.852, 0.542 % of pixels with J <= 0 on CAMUS 2CH.
`--config.registration.integration_steps=7` makes it diffeomorphic.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("voxelmorph", like)
