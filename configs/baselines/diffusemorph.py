"""DiffuseMorph (Kim et al., 2022) in place of LDM-Morph, in any other experiment.

    ldm-morph train --config baselines/diffusemorph:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/diffusemorph
    ldm-morph evaluate --workdir runs/diffusemorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT (`camus_2ch`, `camus_2ch:small`);
the default is the quickstart. Data, seed, augmentation, steps and batch size are taken from that
experiment, network, losses and optimiser from the method.

A noise predictor and a deformation network, trained together, with 90,672,387 parameters at the
paper's size. Its row of Table 1: DSC 0.852, 0.437 % of pixels with J <= 0 on CAMUS 2CH.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("diffusemorph", like)
