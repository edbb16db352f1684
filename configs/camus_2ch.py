"""LDM-Morph at the paper's size on CAMUS, apical two-chamber view (400/20/80 pairs), for GPUs.

    ldm-morph train --config camus_2ch --config.data.source=DIR --workdir runs/camus_2ch
    ldm-morph evaluate --workdir runs/camus_2ch --split test

DIR is the folder that contains database_nifti/ (docs/datasets.md). The data are prepared at the
first run, or beforehand by `ldm-morph prepare --dataset camus_2ch --source DIR`. `--config
camus_2ch:small` is the same experiment with networks and training for a laptop.

The target is the row "Ours" of Table 1: DSC 0.882 (0.049), 0.239 (0.263) % of pixels with J <= 0,
scored on the left ventricle; without registration DSC 0.764 (0.067). All settings are the paper's.
The paper does not say how long its latent diffusion model was trained, so those two stages keep the
durations of ldm_morph_jax/config.py. No result is claimed, because obtaining the data needs a
registration. Tests compile and check this configuration on synthetic archives; it has not been
trained.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", "symmetric", "one_gpu", "official_code"."""
    c = paper_config()
    c.data.name = "camus_2ch"
    c.data.options = {"allow_partial": False}  # True: accept a subset of the patients
    return preset(c, variant)
