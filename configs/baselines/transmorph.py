"""TransMorph (J. Chen et al., 2022) in place of LDM-Morph, in any of the other experiments.

    python -m ldm_morph_jax.train --config configs/baselines/transmorph.py:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/transmorph
    python -m ldm_morph_jax.evaluate --workdir runs/transmorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT of a file configs/NAME.py
(`camus_2ch`, `camus_2ch:small`); without one it is the quickstart. Data, seed, augmentation, steps
and batch size are that experiment's, network, losses and optimiser the method's.

Swin encoder and convolutional decoder, 31,013,570 parameters at the paper's size: its row of
Table 1 is DSC 0.871, 0.696 % of pixels with J <= 0 on CAMUS 2CH.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("transmorph", like)
