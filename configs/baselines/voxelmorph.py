"""VoxelMorph (Balakrishnan et al., 2019) in place of LDM-Morph, in any of the other experiments.

    python -m ldm_morph_jax.train --config configs/baselines/voxelmorph.py:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/voxelmorph
    python -m ldm_morph_jax.evaluate --workdir runs/voxelmorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT of a file configs/NAME.py
(`camus_2ch`, `camus_2ch:small`); without one it is the quickstart. Data, seed, augmentation, steps
and batch size are that experiment's, network, losses and optimiser the method's.

U-Net of 109,170 parameters, the displacement model as in the paper's tables: its row of Table 1 is
DSC 0.852, 0.542 % of pixels with J <= 0 on CAMUS 2CH. `--config.registration.integration_steps=7`
makes it diffeomorphic.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("voxelmorph", like)
