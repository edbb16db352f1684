"""LDM-Morph at the paper's size on CAMUS, apical four-chamber view (400/20/80 pairs), for GPUs.

    ldm-morph train --config camus_4ch --config.data.source=DIR --workdir runs/camus_4ch
    ldm-morph evaluate --workdir runs/camus_4ch --split test

DIR is the folder that contains database_nifti/ (docs/datasets.md). The data are prepared at the
first run, or beforehand by `ldm-morph prepare --dataset camus_4ch --source DIR`. `--config
camus_4ch:small` is the same experiment with networks and training for a laptop.

The target is the row "Ours" of Table 1: DSC 0.889 (0.055), 0.441 (0.351) % of pixels with J <= 0,
scored on the left ventricle; without registration DSC 0.764 (0.071). All settings are the paper's.
The paper does not say how long its latent diffusion model was trained, so those two stages keep the
durations of ldm_morph_jax/config.py. No result is claimed, because obtaining the data needs a
registration. Tests compile and check this configuration on synthetic archives; it has not been
trained.
"""

from ldm_morph_jax.config import ECHO_AUGMENTATION, paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", "symmetric", "one_gpu", "official_code"."""
    c = paper_config()
    c.data.name = "camus_4ch"
    c.data.options = {"allow_partial": False}  # True: accept a subset of the patients
    preset(c, variant)
    if variant == "symmetric":  # the shipped weights camus-4ch-small
        c.registration.similarity = "ncc"
        c.registration.smoothness_weight = 0.05
        c.registration.augmentation.update(ECHO_AUGMENTATION)
    return c
