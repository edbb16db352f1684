"""CycleMorph (Kim et al., 2021) in place of LDM-Morph, in any other experiment.

    ldm-morph train --config baselines/cyclemorph:sunnybrook_small \\
        --config.data.source=DIR --workdir runs/cyclemorph
    ldm-morph evaluate --workdir runs/cyclemorph --split test

The argument is the experiment to repeat, NAME or NAME:ARGUMENT (`camus_2ch`, `camus_2ch:small`);
the default is the quickstart. Data, seed, augmentation, steps and batch size are taken from that
experiment, network, losses and optimiser from the method.

Two U-Nets of 120,602 parameters each, trained with NCC as in the paper. Its row of Table 1: DSC
0.824, 0.945 % of pixels with J <= 0 on CAMUS 2CH.
Sources and choices: docs/baselines.md.
"""

from ldm_morph_jax.config import baseline


def get_config(like: str = "quickstart"):
    """`like`: the experiment to repeat, NAME or NAME:ARGUMENT."""
    return baseline("cyclemorph", like)
