"""LDM-Morph at the paper's size on ACDC, middle short-axis slice (95/5/50 pairs), for GPUs.

    ldm-morph train --config acdc --config.data.source=DIR --workdir runs/acdc
    ldm-morph evaluate --workdir runs/acdc --split test

DIR is the folder that contains database/ (docs/datasets.md). The data are prepared at the first
run, or beforehand by `ldm-morph prepare --dataset acdc --source DIR`. `--config acdc:small` is the
same experiment with networks and training for a laptop.

The target is the row "Ours" of Table 1: DSC 0.850 (0.053), 0.157 (0.255) % of pixels with J <= 0,
scored on myocardium and left ventricle; without registration DSC 0.555 (0.207). All settings are
the paper's. The paper does not say how long its latent diffusion model was trained, so those two
stages keep the durations of ldm_morph_jax/config.py. No result is claimed, because obtaining the
data needs a registration. Tests compile and check this configuration on synthetic archives; it has
not been trained.
"""

from ldm_morph_jax.config import MRI_AUGMENTATION, paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", "symmetric", "one_gpu", "official_code"."""
    c = paper_config()
    c.data.name = "acdc"
    c.data.options = {"allow_partial": False}  # True: accept a subset of the patients
    preset(c, variant)
    if variant == "symmetric":  # the shipped weights acdc-small
        c.registration.augmentation.update(MRI_AUGMENTATION)
        c.registration.train.steps = 700
    return c
