"""Any learned method in place of LDM-Morph, in any other experiment.

    ldm-morph train --config method:NAME:EXPERIMENT --workdir runs/NAME

NAME is the method's (`voxelmorph`, or a method of your own: CONTRIBUTING.md), EXPERIMENT the file
in configs/ to repeat, with its argument if it takes one (`camus_2ch:small`); without it the
quickstart. Data, seed, augmentation, steps and batch size are that experiment's; network, losses
and optimiser the method's. `configs/baselines/` has the same for each method of the paper, with
what is known about it.
"""

from ldm_morph_jax.config import baseline


def get_config(argument: str = "voxelmorph"):
    """`argument`: NAME or NAME:EXPERIMENT or NAME:EXPERIMENT:ARGUMENT."""
    name, _, experiment = argument.partition(":")
    return baseline(name, experiment or "quickstart")
