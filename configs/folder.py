"""LDM-Morph at the paper's size on your own pairs, listed in a CSV file, for GPUs.

    ldm-morph train --config folder --config.data.source=pairs.csv --workdir runs/mine
    ldm-morph evaluate --workdir runs/mine --split test

pairs.csv has the columns id,split,moving,fixed[,moving_mask,fixed_mask] (docs/datasets.md); split
is train, validation or test. Validation pairs need masks, since the weights with the best DSC on
them are kept. `--config folder:small` is the same with networks and training for a laptop: start
with it. Hyperparameters are the paper's, but the paper has no results for your data to compare
with.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", or "official_code" (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "folder"
    return preset(c, variant)
