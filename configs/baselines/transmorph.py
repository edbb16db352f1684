"""TransMorph (J. Chen et al., 2022) in place of LDM-Morph, in any other experiment.

    ldm-morph train --config baselines/transmorph:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/transmorph
    ldm-morph evaluate --workdir runs/transmorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT (`camus_2ch`, `camus_2ch:small`);
the default is the quickstart. Data, seed, augmentation, steps and batch size are taken from that
experiment, network, losses and optimiser from the method.

A Swin encoder and a convolutional decoder, with 31,013,570 parameters at the paper's size. Its row
of Table 1: DSC 0.871, 0.696 % of pixels with J <= 0 on CAMUS 2CH.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("transmorph", like)
