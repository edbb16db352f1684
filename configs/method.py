"""Any learned method in place of LDM-Morph, in any other experiment.

    ldm-morph train --config method:NAME:EXPERIMENT --workdir runs/NAME

NAME is the name of the method (`voxelmorph`, or your own: CONTRIBUTING.md). EXPERIMENT is the
experiment to repeat, with its argument if it takes one (`camus_2ch:small`); the default is the
quickstart. Data, seed, augmentation, steps and batch size are taken from that experiment, network,
losses and optimiser from the method. `configs/baselines/` does the same for each method of the
paper and describes the method.
"""

from ldm_morph_jax.config import baseline


def get_config(argument: str = "voxelmorph"):
    """`argument`: NAME or NAME:EXPERIMENT or NAME:EXPERIMENT:ARGUMENT."""
    name, _, experiment = argument.partition(":")
    return baseline(name, experiment or "quickstart")
