"""LDM-Morph at the paper's size on your own pairs, listed in a CSV file, for GPUs.

    python -m ldm_morph_jax.train --config configs/folder.py \\
        --config.data.source=pairs.csv --workdir runs/mine
    python -m ldm_morph_jax.evaluate --workdir runs/mine --split test

pairs.csv has the columns id,split,moving,fixed[,moving_mask,fixed_mask] (docs/datasets.md), split
one of train, validation and test; validation needs masks, since the best weights are those with the
best DSC there. `--config configs/folder.py:small` is the same with networks and training for a
laptop: start with it. Hyper-parameters are the paper's; no row of the paper belongs to your data.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", or "official_code" (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "folder"
    return preset(c, variant)
