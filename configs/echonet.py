"""LDM-Morph at the paper's size on EchoNet-Dynamic (7460/1288/1276 pairs), for GPUs.

    # reading the videos needs PyAV: pip install "ldm_morph_jax[video]"
    ldm-morph train --config echonet --config.data.source=DIR --workdir runs/echonet
    ldm-morph evaluate --workdir runs/echonet --split test

DIR is the folder that contains FileList.csv (docs/datasets.md). The data are prepared at the first
run, or beforehand by `ldm-morph prepare --dataset echonet --source DIR`. `--config echonet:small`
is the same experiment with networks and training for a laptop.

The target is the row "Ours" of Table 1: DSC 0.883 (0.056), 0.400 (0.419) % of pixels with J <= 0,
scored on the left ventricle; without registration DSC 0.738 (0.076). All settings are the paper's.
The paper does not say how long its latent diffusion model was trained, so those two stages keep the
durations of ldm_morph_jax/config.py. No result is claimed, because obtaining the data needs a
registration. Tests compile and check this configuration on synthetic archives; it has not been
trained.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", "symmetric", "one_gpu", "official_code"."""
    c = paper_config()
    c.data.name = "echonet"
    c.data.options = {"allow_partial": False}  # True: accept a subset of the patients
    return preset(c, variant)
